"""What is known of TensorRT where there is none: its operators, its rules for files, the scripts for a GPU.

``rules`` checks an ONNX file; ``files`` writes what lies beside it; ``verify_on_gpu`` builds and runs
engines, for the runtime and, copied beside an artifact, by itself.
"""
