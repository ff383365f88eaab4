"""Weights in 8 or 4 bits, arithmetic in float: what is stored, how it is rounded, and how it is written.

``groups`` puts one matrix on its grids; ``store`` finds and rounds those of a program; ``emit_onnx`` writes
them.
"""
