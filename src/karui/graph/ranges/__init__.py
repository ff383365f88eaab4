"""Quantization as a table of ranges: found by observers or learned, and emitted as each runtime likes it.

``places`` says which tensors there are and which a runtime wants rounded; ``calibrate`` fills the table;
``insert`` puts ``karui::fake_quant`` into the program; ``emit_onnx`` and ``emit_pt2e`` translate it.
"""
