"""An OpenVINO file without what it need not say: in small INT8 models more than half of the bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def simplified(model: Any) -> Any:
    """In place, as OpenVINO's converter does it, which would report usage: constants are worked out, shapes
    of biases among them, but not weights in few bits.
    """
    from openvino import _offline_transformations as passes

    passes.apply_moc_transformations(model, cf=False, smart_reshape=False)
    passes.apply_fused_names_cleanup(model)
    return model


def save(model: Any, path: Path, *, fp16: bool = False) -> None:
    """With no blanks between the elements. fp16: how weights are stored."""
    import openvino as ov

    ov.save_model(model, path, compress_to_fp16=fp16)
    path.write_text(re.sub(r">\s+<", "><", path.read_text(encoding="utf-8")), encoding="utf-8")
