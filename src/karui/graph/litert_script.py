"""The far side of ``karui.graph.litert_converter``: run as a file by the Python that has LiteRT's converter.

It knows nothing of karui. One JSON line in, one out, until the input ends or a conversion fails. A request
names a ``program`` (``.pt2``), its ``inputs`` by shape and dtype, the sizes of the ``batches``, the file
``to`` write, and the ``mode``: "float", "half", "static" or "dynamic" for a program that says where it
rounds, "own" to have it quantized here from what ``calibrate`` holds, ``rows`` a call.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from importlib.metadata import version
from typing import Any

import litert_torch  # also knows the operations of quantized programs
import numpy as np
import torch


def main() -> None:
    if sys.platform == "linux":  # end at once when the parent is killed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the converter prints goes to the log
    sys.excepthook = last_words
    for line in sys.stdin:
        convert(json.loads(line))
        answers.write(json.dumps({"converter": f"litert-torch {version('litert-torch')}"}) + "\n")
        answers.flush()


def last_words(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What the parent tells: the last line of the log."""
    sys.__excepthook__(kind, error, trace)
    print(f"{kind.__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    os._exit(1)  # at once: a pipe that is closed before the end would look like a crash


def convert(asked: dict[str, Any]) -> None:
    module = torch.export.load(asked["program"]).module()
    config = settings(asked["mode"])
    if asked["mode"] == "own":
        module = quantized(module, config.pt2e_quantizer, asked)
    converter = litert_torch.Converter()
    for batch in asked["batches"]:
        converter.signature(f"batch_{batch}", module, examples(asked["inputs"], batch))
    converter.convert(quant_config=config).export(asked["to"])


def settings(mode: str) -> Any:
    """How the converter shall read the roundings of the program, or what it shall store in half precision."""
    from litert_torch.generative.quantize import quant_recipes
    from litert_torch.quantize import pt2e_quantizer, quant_config

    if mode == "float":
        return None
    if mode == "half":
        return quant_recipes.full_fp16_recipe()
    scheme = pt2e_quantizer.get_symmetric_quantization_config(
        is_per_channel=True, is_dynamic=mode == "dynamic"
    )
    return quant_config.QuantConfig(pt2e_quantizer=pt2e_quantizer.PT2EQuantizer().set_global(scheme))


def examples(inputs: list[dict[str, Any]], batch: int) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.zeros([batch if size is None else size for size in one["shape"]], dtype=kind(one["dtype"]))
        for one in inputs
    )


def kind(dtype: str) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, dtype)).dtype


def quantized(module: Any, quantizer: Any, asked: dict[str, Any]) -> Any:
    """``module`` with the roundings of LiteRT's own quantizer; its answers go into ``reference``."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        for batch in batches(asked, "calibrate"):
            prepared(*batch)
        found = convert_pt2e(prepared, fold_quantize=False)
        parts = [found(*batch) for batch in batches(asked, "probe")]
    flat = [part if isinstance(part, (tuple, list)) else (part,) for part in parts]
    np.savez(asked["reference"], *[torch.cat(pieces).numpy() for pieces in zip(*flat)])
    return found


def batches(asked: dict[str, Any], key: str) -> Any:
    stored = np.load(asked[key], allow_pickle=False)
    arrays = [torch.from_numpy(stored[name]) for name in stored.files]
    for start in range(0, len(arrays[0]), asked["rows"]):
        yield [array[start : start + asked["rows"]] for array in arrays]


if __name__ == "__main__":
    main()
