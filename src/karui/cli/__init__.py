"""The command line: words in, values out, one call, one exit code."""
