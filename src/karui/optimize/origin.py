"""The model as it was given: a torch module, or an ONNX file; it is never changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karui.artifact import Port, Signature, sha256
from karui.blame import users_code
from karui.errors import MissingRuntime, UsageError, foreign
from karui.graph.call import run_all, signature_of
from karui.graph.inspect import ModelFacts, check_model, look, private_copy, state_digest
from karui.graph.program import from_torchscript
from karui.structure import flatten

if TYPE_CHECKING:
    from torch import nn

    from karui.data import Array, Arrays
    from karui.optimize.streamed import InFiles


@dataclass(frozen=True)
class Origin:
    """``form`` is "torch" (``model`` holds a private copy in eval mode) or "onnx" (``path``).

    program: in place of a model, one whose weights stay in files. against: the recipe every ratio is taken
    against, where it is not the usual one.
    """

    form: str
    digest: str
    model: nn.Module | None = None
    path: Path | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""
    program: InFiles | None = None

    @property
    def baseline(self) -> str:
        """The recipe every ratio is taken against."""
        if self.against:
            return self.against
        return "fp32@torch_eager" if self.form == "torch" else "fp32@onnxruntime"

    def answers(self, signature: Signature, arrays: Arrays) -> list[Array]:
        """Flat outputs of the original model, in FP32."""
        if self.program is not None:
            return self.program.answers(signature, arrays)
        if self.model is not None:
            return run_all(self.model, signature.style, arrays)
        return run_onnx(self.path, signature, arrays)


def from_model(given: Any, example: Any, *, consume: bool = False) -> Origin:
    """An Origin from a module, a function that makes one, or the path of an ONNX file; one is left as it is.

    consume: hold the given module itself, put on the CPU and into eval mode, instead of a copy.
    """
    import torch

    if isinstance(given, Origin):
        return given
    if isinstance(given, Path):
        return from_onnx(given)
    given = constructed(given, "model")
    if isinstance(given, torch.jit.ScriptModule):
        given = from_torchscript(given.cpu().eval(), tuple(map(torch.as_tensor, flatten(example)[0])))
    notes = ("the model was in training mode: a copy in eval mode is measured",) if given.training else ()
    model = given.cpu().eval() if consume else private_copy(given)
    check_model(model)
    return Origin("torch", digest(model), model, notes=notes)


def constructed(given: Any, what: str) -> nn.Module:
    """``given``, a module or a function that makes one; raises UsageError for anything else."""
    from torch import nn

    if isinstance(given, nn.Module):
        return given
    if not callable(given):
        raise UsageError(
            f"the {what} is a {type(given).__name__}, not an nn.Module",
            why=state_dict_hint(given),
            fix="give the module, or a function that makes it",
        )
    with users_code(UsageError, f"the function that makes the {what} failed"):
        found = given()
    if not isinstance(found, nn.Module):
        raise UsageError(
            f"the {what} function gave a {type(found).__name__}, not an nn.Module",
            why=state_dict_hint(found),
        )
    return found


def module_of(given: Any, what: str) -> nn.Module:
    """The same as a private copy in eval mode on the CPU, in float32."""
    made = private_copy(constructed(given, what))
    check_model(made)
    return made


def digest(model: nn.Module) -> str:
    """Weights and structure; the code of a ``forward`` is not seen."""
    classes = [f"{name} {type(part).__qualname__}" for name, part in model.named_modules()]
    return hashlib.sha256("\n".join([state_digest(model), *classes]).encode()).hexdigest()


def state_dict_hint(given: Any) -> str:
    is_state = isinstance(given, dict) and given and all(type(v).__name__ == "Tensor" for v in given.values())
    return (
        "a state dict holds weights but not the network: build the module and load it in" if is_state else ""
    )


def from_onnx(path: Path) -> Origin:
    onnx = import_onnx()
    with foreign(UsageError, f"{path.name} is not a whole ONNX file", fix="export or copy it again"):
        model = onnx.load(path)
        onnx.checker.check_model(model)
    return Origin(
        "onnx",
        sha256(path),
        path=path,
        notes=(
            "the model was given as ONNX: ratios are taken "
            "against ONNX Runtime FP32, and torch runtimes are left out",
        ),
    )


def copy_onnx(path: Path, copy: Path) -> None:
    """Copy an ONNX file; weights that it keeps in files beside it are taken into the copy."""
    onnx = import_onnx()
    bare = onnx.load(path, load_external_data=False)
    if any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in bare.graph.initializer):
        with foreign(UsageError, f"the weights beside {path.name} cannot be taken in"):
            onnx.save(onnx.load(path), copy)
    else:
        shutil.copyfile(path, copy)


def import_onnx() -> Any:
    try:
        import onnx
    except ImportError as cause:
        raise MissingRuntime(
            "reading ONNX needs the package 'onnx'", fix="pip install 'karui[onnxruntime]'"
        ) from cause
    return onnx


def describe(origin: Origin, example: Any, batch: int) -> tuple[Signature, Arrays]:
    """The signature of the original, and the example inputs by name."""
    if origin.program is not None:
        return origin.program.describe(example, batch)
    if origin.model is not None:
        return signature_of(origin.model, example, batch)
    return onnx_signature(origin.path, example, batch)


def facts_of(origin: Origin, signature: Signature, example: Arrays) -> ModelFacts:
    """Layers and costs; an ONNX file only tells its weights."""
    from karui.graph.call import arguments, tensors_of

    if origin.program is not None:
        return origin.program.facts()
    if origin.model is None:
        assert origin.path is not None
        weights = import_onnx().load(origin.path).graph.initializer
        count = sum(prod(w.dims) for w in weights)
        return ModelFacts({}, count, 0, 0.0, origin.path.stat().st_size)
    args, kwargs = arguments(signature.style, {k: v[:1] for k, v in tensors_of(example).items()})
    return look(origin.model, args, kwargs)


def prod(dims: Any) -> int:
    total = 1
    for size in dims:
        total *= size
    return total


def onnx_signature(path: Path | None, example: Any, batch: int) -> tuple[Signature, Arrays]:
    from karui.data import as_arrays

    session = onnx_session(path)
    names = [node.name for node in session.get_inputs()]
    arrays = as_arrays(example, names)
    dynamic = all(not isinstance(node.shape[0], int) for node in session.get_inputs() if node.shape)
    rows = len(next(iter(arrays.values())))
    size = rows if dynamic else session.get_inputs()[0].shape[0]
    given = {name: array[:size] for name, array in arrays.items()}
    with foreign(UsageError, "the ONNX model does not run on the example inputs"):
        outputs = session.run(None, given)
    inputs = tuple(Port(name, str(a.dtype), (None, *a.shape[1:])) for name, a in arrays.items())
    named = zip(session.get_outputs(), outputs)
    found = tuple(Port(node.name, str(o.dtype), (None, *o.shape[1:])) for node, o in named)
    tree = 0 if len(found) == 1 else ["tuple", list(range(len(found)))]
    return Signature("args", inputs, found, tree, dynamic, batch if dynamic else size), arrays


def run_onnx(path: Path | None, signature: Signature, arrays: Arrays) -> list[Array]:
    import numpy as np

    session, names = onnx_session(path), [port.name for port in signature.outputs]
    rows, size = len(next(iter(arrays.values()))), 256 if signature.dynamic_batch else signature.batch
    parts = []
    for start in range(0, rows, size):
        index = np.minimum(np.arange(start, start + size), rows - 1)
        outputs = session.run(names, {name: array[index] for name, array in arrays.items()})
        parts.append([output[: rows - start] for output in outputs])
    return [np.concatenate(pieces) for pieces in zip(*parts)]


def onnx_session(path: Path | None) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # see karui.runtimes.onnxruntime
    try:
        import onnxruntime as ort
    except ImportError as cause:
        raise MissingRuntime(
            "an ONNX model needs ONNX Runtime", fix="pip install 'karui[onnxruntime]'"
        ) from cause
    with foreign(UsageError, f"ONNX Runtime cannot open {path}"):
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"])
