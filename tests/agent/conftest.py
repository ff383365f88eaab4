"""A second local environment that has ONNX Runtime and numpy, and little else."""

from __future__ import annotations

import pytest
from lines import environment

ABSENT = (
    "torch",
    "onnx",
    "onnxscript",
    "rich",
    "safetensors",
    "openvino",
    "nncf",
    "executorch",
    "coremltools",
)


@pytest.fixture(scope="session")
def second(tmp_path_factory):
    """The ``karui`` of it."""
    return environment(tmp_path_factory.mktemp("second") / "env", ABSENT)
