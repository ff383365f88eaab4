"""Small networks with their data, quick settings, and what must stay as it was."""

from __future__ import annotations

import hashlib
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

import karui
from karui.bench.rounds import Pace
from karui.optimize import Settings
from karui.process import Limits

SHORT = Pace(least=4, most=6, seconds=0.3)
FP32 = ("fp32@torch_eager", "fp32@onnxruntime")
PATIENT = Limits(seconds=120.0)
HAS_OPENVINO = bool(find_spec("openvino") and find_spec("nncf"))
FLOAT_AND_INT8 = ["fp32@onnxruntime", "int8@onnxruntime", "int8_dynamic@onnxruntime"]
FLOAT_AND_INT8 += ["fp32@openvino", "int8@openvino"] if HAS_OPENVINO else []


def quick(*recipes: str, limits: Limits = PATIENT) -> Settings:
    """Settings of a run that measures as little as can be."""
    return Settings(recipes=recipes or FP32, pace=SHORT, final=SHORT, limits=limits, command="test")


def mlp(features: int = 8, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, classes)).eval()


def labelled(model: nn.Module, *shape: int, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Random inputs of ``shape`` per sample, and labels with which ``model`` is always right."""
    inputs = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return inputs, model(inputs).argmax(1)


def mlp_task(name: str = "mlp") -> karui.Task:
    model = mlp()
    return karui.Task(model=model, select=labelled(model, 8), name=name)


def clear(model: nn.Module, inputs: torch.Tensor, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs of which ``model`` is most sure, and its answers: INT8 changes few of them."""
    with torch.no_grad():
        scores = model(inputs)
    best = scores.topk(2, 1).values
    surest = (best[:, 0] - best[:, 1]).argsort(descending=True)[:rows]
    return inputs[surest], scores[surest].argmax(1)


def write_files(folder: Path) -> tuple[nn.Module, torch.Tensor]:
    """A network as ``net.pt2`` (one row a call), ``net.pt`` and ``net.onnx``; data as ``data.py:both``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    inputs, labels = labelled(model, 8, rows=240)
    np.savez(folder / "data.npz", inputs=inputs.numpy(), labels=labels.numpy())
    (folder / "data.py").write_text(DATA_FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(model, (inputs[:1],)), folder / "net.pt2")
        torch.jit.trace(model, inputs[:2]).save(folder / "net.pt")
    (folder / "net.onnx").write_bytes(onnx_of(model))
    return model, inputs


def onnx_of(model: nn.Sequential) -> bytes:
    """Linear, ReLU, Linear as an ONNX file, node by node."""
    from onnx import TensorProto, helper, numpy_helper

    first, _, last = model
    arrays = {"w1": first.weight, "b1": first.bias, "w2": last.weight, "b2": last.bias}
    stored = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in arrays.items()]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], transB=1),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", first.in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", last.out_features])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return model.SerializeToString()


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def portrait(model: nn.Module) -> dict[str, object]:
    """All of a module that a tool might disturb: weights bit by bit, modes, hooks, attributes."""
    state = {name: (t.dtype, t.cpu().numpy().tobytes()) for name, t in model.state_dict().items()}
    parts = dict(model.named_modules())
    return {
        "state": state,
        "ties": [(name, t.data_ptr()) for name, t in model.named_parameters(remove_duplicate=False)],
        "grad": [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        "training": {name: part.training for name, part in parts.items()},
        "classes": {name: type(part) for name, part in parts.items()},
        "hooks": {name: (list(p._forward_hooks), list(p._forward_pre_hooks)) for name, p in parts.items()},
        "attributes": {name: sorted(vars(part)) for name, part in parts.items()},
    }


DATA_FILE = """
from pathlib import Path

import numpy as np

stored = np.load(Path(__file__).with_name("data.npz"))
both = stored["inputs"], stored["labels"]
"""

TASK_FILE = '''
"""A job as a user would write it."""

import numpy as np
import torch
from torch import nn

import karui


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


def data():
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net()(x).argmax(1)


def task():
    print("a print of the user's own")
    return karui.Task(model=net, select=data(), name="story")
'''
