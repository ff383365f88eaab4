"""A page that shows a finished artifact at work: one HTML file beside the model and ONNX Runtime Web.

Any static server will do, with no headers of its own and no network behind it.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.browser.ort_web import FILES, ort_web
from karui.errors import UsageError

if TYPE_CHECKING:
    from karui.artifact import Artifact, Signature
    from karui.data import Arrays

TEMPLATE = Path(__file__).with_name("demo.html")
PAGE, MODEL = "index.html", "model.onnx"
SMALLEST_SIDE = 8  # of what is taken for an image


@dataclass(frozen=True)
class Shown:
    """What the page cannot know from the artifact.

    labels: a name for each class. mean, std: of each channel, or one for all, on pixels in [0, 1].
    samples: rows of inputs that the page holds; random: whether they are made up.
    """

    title: str
    labels: Sequence[str] = ()
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    samples: Arrays | None = None
    random: bool = True


def write_page(artifact: Artifact, shown: Shown, folder: Path) -> None:
    """Write the page and the files of ONNX Runtime Web beside the ``model.onnx`` in ``folder``.

    Raises UsageError when the artifact is no ONNX file, MissingRuntime without the npm package.
    """
    if MODEL not in artifact.files:
        raise UsageError(
            f"{artifact.recipe} cannot run in a browser",
            why=f"its artifact holds no {MODEL}",
            fix="choose one of ort_web or onnxruntime",
        )
    provider = "webgpu" if "provider=webgpu" in artifact.recipe else "wasm"
    dist = ort_web()
    for name in FILES[provider]:
        shutil.copyfile(dist / name, folder / name)
    facts = config(artifact, shown) | {"bundle": f"./{FILES[provider][0]}", "provider": provider}
    text = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")  # no label may end the script
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{CONFIG}}", text)
    (folder / PAGE).write_text(page, encoding="utf-8")


def config(artifact: Artifact, shown: Shown) -> dict[str, Any]:
    rows = artifact.signature.batch if not artifact.signature.dynamic_batch else 1
    ports, image = artifact.signature.inputs, image_of(artifact.signature, shown)
    samples = {} if image and shown.random else shown.samples or {}  # noise is no picture
    return {
        "title": shown.title,
        "about": f"{artifact.recipe}, made light by karui",
        "bytes": artifact.size_bytes,
        "image": image,
        "inputs": [
            {"name": port.name, "type": port.dtype, "dims": [size or rows for size in port.shape]}
            for port in ports
        ],
        "samples": encoded(samples, [port.name for port in ports], rows) if samples else [],
        "random": shown.random,
        "labels": list(shown.labels),
    }


def image_of(signature: Signature, shown: Shown) -> dict[str, Any] | None:
    """Size and scale of the image that the model takes, or None when it takes something else."""
    port = signature.inputs[0]
    shape = port.shape
    single = len(signature.inputs) == 1 and port.dtype == "float32" and len(shape) == 4
    if not single or shape[1] not in (1, 3) or min(shape[2] or 0, shape[3] or 0) < SMALLEST_SIDE:
        return None
    if signature.batch != 1 and not signature.dynamic_batch:
        return None
    scales = {"mean": each(shown.mean, shape[1], "mean"), "std": each(shown.std, shape[1], "std")}
    return {"channels": shape[1], "height": shape[2], "width": shape[3]} | scales


def each(values: Sequence[float], channels: int, what: str) -> list[float]:
    """One value for each channel."""
    if len(values) not in (1, channels):
        raise UsageError(
            f"{len(values)} values of {what} for {channels} channels", fix="give one, or one each"
        )
    return list(values) * (channels if len(values) == 1 else 1)


def encoded(samples: Mapping[str, Any], names: Sequence[str], rows: int) -> list[list[str]]:
    """Each call's inputs, in order, as base64 of their raw bytes."""
    calls = range(0, len(samples[names[0]]) - rows + 1, rows)
    return [
        [base64.b64encode(samples[name][start : start + rows].tobytes()).decode() for name in names]
        for start in calls
    ]
