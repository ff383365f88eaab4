"""A pruned model as a thing of its own: what was kept of it, a folder that holds it, and what fits it.

The folder has ``pruned.json`` (kept positions of every stored tensor, how the model is called, the hash of
the weights) and ``model.safetensors``. There is no code in it: the user's own class is constructed again,
cut at the same positions, checked against itself with zeros at the others, and given the stored weights.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import Tensor, nn

from karui import host
from karui.artifact import Signature, inside, publish, read_signature, sha256
from karui.data import as_arrays
from karui.errors import Tampered, Unsupported, UsageError, foreign
from karui.graph.cut import recut
from karui.graph.cut.in_module import replace as put
from karui.graph.cut.in_module import stored
from karui.graph.cut.positions import kept_of, spread
from karui.graph.inspect import modes_of, private_copy, with_modes
from karui.graph.packing import Packed, packed, unpacked
from karui.graph.trace import ROOT, trace
from karui.graph.units import find_units

SCHEMA = "karui.pruned/1"
MANIFEST, WEIGHTS = "pruned.json", "model.safetensors"
PACKED = (torch.float32, torch.float16)  # what is mostly zero in these is stored without its zeros
PARTS = ("fill", "places", "values")
BODY = "body."  # where a module of the form "graph" holds its graph
MADE_ROWS = 8
AGAIN = "construct the model by the code that was pruned"


@dataclass(frozen=True)
class Part:
    """One module that was cut by itself.

    form, positions: as in ``Cut``, paths below the part. signature: how the part is called. inexact: whether
    units went that a norm or a softmax looks at together.
    """

    form: str
    positions: Mapping[str, Any]
    signature: Signature
    inexact: bool = False


@dataclass(frozen=True)
class Manifest:
    """What was kept of a model.

    parts: path -> what was cut there: ``""`` for the model as a whole. shapes: of every stored tensor before
    the cut, under each of its names. parameters: names as ``model.named_parameters()`` has them.
    """

    parts: Mapping[str, Part]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    recipe: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=host.versions)

    @property
    def positions(self) -> dict[str, Mapping[str, Any]]:
        """Path of each stored tensor that lost something -> the positions it kept, by axis."""
        return {
            f"{where}.{path}" if where else path: axes
            for where, part in self.parts.items()
            for path, axes in part.positions.items()
        }

    def sliced(self, name: str, tensor: Tensor) -> Tensor:
        """The kept part of a tensor that is shaped as the stored tensor ``name`` was."""
        return kept_of(self.shapes[name], self.positions.get(name, {})).take(tensor)


def manifest_of(
    model: nn.Module, parts: Mapping[str, Part], recipe: str, facts: Mapping[str, Any]
) -> Manifest:
    """``model``: as it is before the cut."""
    shapes = {name: tuple(tensor.shape) for name, tensor in stored(model)}
    return Manifest(parts, shapes, tuple(name for name, _ in model.named_parameters()), recipe, facts)


@final
@dataclass(frozen=True)
class Pruned:
    """``model``, narrower, and what was kept of it."""

    model: nn.Module
    manifest: Manifest

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.manifest.facts

    def save(self, folder: Path | str) -> Path:
        """Write the new folder ``folder``; raises UsageError when it is there already."""
        return save_pruned(self, Path(folder))

    def replay(self, model: nn.Module, inputs: Any = None) -> Pruned:
        """The same positions of another checkpoint; ``model`` holds it and stays as it is.

        inputs: example inputs to check with; made up when not given. Nothing is refitted. Raises UsageError
        when names or shapes differ, Unsupported when the cut would not be exact.
        """
        check_same(self.manifest, model)
        made = with_modes(cut_again(self.manifest, private_copy(model), inputs), modes_of(model))
        return Pruned(made, replace(self.manifest, facts={}))

    def optimizer_state(self, state: Mapping[str, Any], names: Sequence[str] = ()) -> dict[str, Any]:
        """A ``torch.optim`` state dict of the model before the cut, as one of the model after it.

        Momenta are sliced as their parameters were; everything else stays. Load it into the same optimizer
        over the pruned model's parameters in the same order. names: of the parameters in the optimizer's
        order; those of ``model.parameters()`` when not given. Raises UsageError or Unsupported where it
        cannot be told what a state belongs to.
        """
        return remapped(self, state, tuple(names) or named_in(self, state))


def save_pruned(pruned: Pruned, folder: Path) -> Path:
    if folder.exists():
        raise UsageError(f"{folder} is there already", fix="name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".karui-") as scratch:
        draft = Path(scratch) / "draft"
        draft.mkdir()
        tensors, tied = apart(named(pruned))
        tensors, sparse = without_zeros(tensors)
        safetensors.torch.save_file(tensors, draft / WEIGHTS)
        files = {WEIGHTS: sha256(draft / WEIGHTS)}
        facts = {"schema": SCHEMA, **asdict(pruned.manifest), "tied": tied, "files": files, "packed": sparse}
        (draft / MANIFEST).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
        publish(draft, folder)
    return folder


def named(pruned: Pruned) -> dict[str, Tensor]:
    """The stored tensors by their names in the user's model; those that only a graph has keep its names."""
    found = {}
    for path, tensor in stored(pruned.model):
        found[original_name(pruned.manifest, path)] = tensor
    return found


def original_name(manifest: Manifest, path: str) -> str:
    for where, part in manifest.parts.items():
        start = f"{where}." if where else ""
        if part.form == "graph" and path.startswith(f"{start}{BODY}{ROOT}"):
            return start + path.removeprefix(f"{start}{BODY}{ROOT}")
    return path


def apart(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and under which name the others are found."""
    first: dict[int, str] = {}
    tied = {name: one for name, t in tensors.items() if (one := first.setdefault(id(t), name)) != name}
    found = {name: own(tensor.detach()) for name, tensor in tensors.items() if name not in tied}
    return found, tied


def without_zeros(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights that are mostly zero in three tensors each, and how to put them together again."""
    found, forms = dict(tensors), dict[str, Any]()
    for name, tensor in tensors.items():
        one = packed(tensor.cpu().numpy()) if tensor.dtype in PACKED else None
        if one is not None:
            del found[name]
            forms[name] = {"form": one.form, "shape": one.shape}
            parts = (one.fill, one.places, one.values)
            found |= {f"{name}:{key}": torch.from_numpy(part) for key, part in zip(PARTS, parts)}
    return found, forms


def with_zeros(tensors: dict[str, Tensor], forms: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse."""
    for name, one in forms.items():
        fill, places, values = (tensors.pop(f"{name}:{key}").numpy() for key in PARTS)
        whole = unpacked(Packed(one["form"], fill, places, values, tuple(one["shape"])))
        tensors[name] = torch.from_numpy(whole)
    return tensors


def own(tensor: Tensor) -> Tensor:
    """Contiguous, and in no memory that others use."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)


def load_pruned(folder: Path | str, model: nn.Module, inputs: Any = None) -> Pruned:
    """The pruned model in ``folder``, made from the user's own class.

    model: freshly constructed by the code of the pruned one, with any weights; it stays as it is.
    inputs: example inputs to check the cut with; made up when not given.
    Raises UsageError when there is no such folder or ``model`` is another, Tampered when a file was
    changed, Unsupported when the model's code no longer gives what the cut was made for.
    """
    manifest, tensors = opened(Path(folder))
    check_same(manifest, model)
    whole = private_copy(model)
    with foreign(Tampered, f"{folder} does not hold what its manifest says"):
        fill(whole, manifest, tensors)
    pruned = Pruned(cut_again(manifest, whole, inputs), manifest)
    there = named(pruned)
    if there.keys() != tensors.keys() or any(there[name].shape != t.shape for name, t in tensors.items()):
        raise Unsupported(f"{folder} holds other tensors than this model", fix=AGAIN)
    for name, tensor in tensors.items():
        there[name].data.copy_(tensor)
    return Pruned(with_modes(pruned.model, modes_of(model)), manifest)


def opened(folder: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """What is stored, every tensor under each of its names."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} holds no pruned model", why=f"there is no {MANIFEST} in it")
    with foreign(Tampered, f"{path} cannot be read"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        schema, tied, files = (facts.pop(key) for key in ("schema", "tied", "files"))
        sparse = facts.pop("packed", {})
    if schema != SCHEMA:
        raise UsageError(f"{path} has the unknown schema {schema!r}", fix=f"this karui reads {SCHEMA}")
    with foreign(Tampered, f"{path} cannot be read"):
        manifest = read_manifest(facts)
        weights = inside(folder, WEIGHTS)
        if not weights.is_file() or sha256(weights) != files[WEIGHTS]:
            raise Tampered(f"{folder} is not as it was made", why=f"{WEIGHTS} was changed or lost")
        tensors = with_zeros(safetensors.torch.load_file(weights), sparse)
        return manifest, tensors | {name: tensors[one] for name, one in tied.items()}


def read_manifest(facts: Mapping[str, Any]) -> Manifest:
    parts = {
        where: Part(part["form"], part["positions"], read_signature(part["signature"]), bool(part["inexact"]))
        for where, part in facts["parts"].items()
    }
    shapes = {name: tuple(shape) for name, shape in facts["shapes"].items()}
    given = dict(facts) | {"parts": parts, "shapes": shapes, "parameters": tuple(facts["parameters"])}
    return Manifest(**given)


def check_same(manifest: Manifest, model: nn.Module) -> None:
    """Names and shapes are those of the model before the cut."""
    shapes = {name: tuple(tensor.shape) for name, tensor in stored(model)}
    for name in [*manifest.shapes, *shapes]:
        now, before = shapes.get(name, "nothing"), manifest.shapes.get(name, "nothing")
        if now != before:
            raise UsageError(
                "this is not the architecture that was pruned",
                why=f"{name} is {now}, and was {before} before the cut",
                fix=AGAIN,
            )


def fill(whole: nn.Module, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """The stored weights at the positions they were kept from, zeros at the others."""
    goals, positions = dict(stored(whole)), manifest.positions
    for name, tensor in tensors.items():
        if name in goals:
            left = kept_of(manifest.shapes[name], positions.get(name, {}))
            goals[name].data.copy_(spread(tensor, left))


def widened(whole: nn.Module, cut: nn.Module, part: Part) -> nn.Module:
    """A copy of ``whole`` with the weights of ``cut``, which was made from it, and zeros where it was cut."""
    twin, manifest = private_copy(whole), manifest_of(whole, {"": part}, "", {})
    fill(twin, manifest, named(Pruned(cut, manifest)))
    return twin


def cut_again(manifest: Manifest, whole: nn.Module, inputs: Any) -> nn.Module:
    """``whole``, which is consumed, with every part cut as the manifest says."""
    for where, part in manifest.parts.items():
        names = [port.name for port in part.signature.inputs]
        given = made_up(part.signature) if inputs is None or where else as_arrays(inputs, names)
        try:
            smaller = part_again(whole.get_submodule(where), part, given)
        except Unsupported as error:
            what = "the model cannot be cut where it was pruned"
            raise Unsupported(what, why=error.line, fix=AGAIN) from error
        if not where:
            return smaller
        put(whole, where, smaller)
    return whole


def part_again(module: nn.Module, part: Part, given: Mapping[str, Any]) -> nn.Module:
    units = find_units(trace(module, part.signature, dict(given)), inexact=part.inexact)
    with foreign(Unsupported, "the kept positions do not fit it"):
        found = recut(module, units, part.positions, dict(given))
    if found.form != part.form:
        raise Unsupported(f"it was cut in the form {part.form}, and now takes the form {found.form}")
    return found.model


def made_up(signature: Signature) -> dict[str, Any]:
    """Example inputs from their types alone: normal floats, and zeros for all others."""
    import numpy as np

    draw, found = np.random.default_rng(0), {}
    for port in signature.inputs:
        shape = (MADE_ROWS, *(size or 1 for size in port.shape[1:]))
        floats = np.dtype(port.dtype).kind == "f"
        found[port.name] = (draw.standard_normal(shape) if floats else np.zeros(shape)).astype(port.dtype)
    return found


def named_in(pruned: Pruned, state: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the optimizer's parameters: those it keeps itself, or those of the model in its order."""
    groups = state["param_groups"]
    if all("param_names" in group for group in groups):
        return tuple(name for group in groups for name in group["param_names"])
    now = [original_name(pruned.manifest, path) for path, _ in pruned.model.named_parameters()]
    if len(groups) > 1 or tuple(now) != pruned.manifest.parameters:
        why = (
            "it has several groups"
            if len(groups) > 1
            else "the pruned model has its parameters in another order"
        )
        raise UsageError(
            "the optimizer's state does not say which parameter is which", why=why, fix="give names=[...]"
        )
    return pruned.manifest.parameters


def remapped(pruned: Pruned, state: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    order = [number for group in state["param_groups"] for number in group["params"]]
    if len(order) != len(names):
        what = f"the optimizer has {len(order)} parameters, and {len(names)} are named"
        raise UsageError(what, fix="give names=[...], in the optimizer's order")
    if unknown := sorted(set(names) - set(pruned.manifest.shapes)):
        raise UsageError(f"there was no parameter {unknown[0]!r} in the model before the cut")
    of = dict(zip(order, names))
    states = {
        number: {key: smaller(pruned.manifest, of[number], key, value) for key, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": states, "param_groups": copy.deepcopy(state["param_groups"])}


def smaller(manifest: Manifest, name: str, key: str, value: Any) -> Any:
    """One entry of a parameter's state: sliced when it is shaped like the parameter."""
    if not isinstance(value, Tensor) or name not in manifest.positions:
        return copy.deepcopy(value)
    if tuple(value.shape) == manifest.shapes[name]:
        return manifest.sliced(name, value).clone()
    if value.numel() == 1:
        return value.clone()
    raise Unsupported(
        f"the optimizer's {key} of {name} cannot be sliced",
        why=f"it is {tuple(value.shape)}, the parameter was {manifest.shapes[name]}",
        fix="start this optimizer anew",
    )
