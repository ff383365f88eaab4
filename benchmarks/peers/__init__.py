"""karui beside the tools that do a part of its work: same networks, data, machine, threads and time.

A tool is one file here, named like it; the folder is the registry. Its functions of a ``Given`` that return
a recipe are its ways: each holds the lines that a user of the tool writes, leaves files in ``given.out`` and
says by which recipe karui's bench opens them. Files whose names begin with an underscore are no tools.
"""
