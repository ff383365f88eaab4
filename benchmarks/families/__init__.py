"""Real architectures: torchvision's models and 85 families of timm, pruned at random and checked exact.

``python -m benchmarks.families.sweep`` prints the table. It needs torchvision and timm, which karui does not:
see ``make families``.
"""
