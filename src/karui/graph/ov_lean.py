"""An OpenVINO file without what it need not say: in small INT8 models more than half of the bytes."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

XML, PACKED = "model.xml", "model.xml.gz"


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


def pack(folder: Path) -> None:
    """``model.xml`` as ``model.xml.gz``, a tenth of its bytes or less."""
    path = folder / XML
    (folder / PACKED).write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def read(folder: Path) -> Any:
    """The model in either form."""
    import numpy as np
    import openvino as ov

    core = ov.Core()
    if not (folder / PACKED).is_file():
        return core.read_model(folder / XML)
    weights = np.fromfile(folder / "model.bin", np.uint8)
    return core.read_model(gzip.decompress((folder / PACKED).read_bytes()), ov.Tensor(weights))
