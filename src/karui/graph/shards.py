"""A model whose weights stay in files: built with no memory behind its parameters, and read one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import register_module_parameter_registration_hook

from karui.errors import Tampered, UsageError, foreign

NAMED = 4  # names that a message tells
HALF = (torch.float16, torch.bfloat16)


@contextmanager
def blank() -> Iterator[None]:
    """In this block, parameters of new modules have shapes and no memory; buffers are as usual.

    Setting their values does nothing: ``karui.quantize(..., shards=folder)`` reads these from files.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def forget(module: nn.Module, name: str, value: nn.Parameter | None) -> nn.Parameter | None:
        if value is None or is_blank(value):
            return None
        with mode:
            return nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=False)

    handle = register_module_parameter_registration_hook(forget)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def is_blank(value: object) -> bool:
    """Whether there is a shape and no memory."""
    return isinstance(value, FakeTensor)


def mode_of(model: nn.Module) -> FakeTensorMode:
    """In which ``model`` runs to give shapes alone. Raises UsageError where it was not built blank."""
    modes = {id(p.fake_mode): p.fake_mode for p in model.parameters() if isinstance(p, FakeTensor)}
    if len(modes) != 1 or not all(is_blank(p) for p in model.parameters()):
        raise UsageError(
            "the model holds weights of its own",
            why="with shards, its weights are read from files, one after the other",
            fix="build it in one block: with karui.blank(): net = Net()",
        )
    return next(iter(modes.values()))


@dataclass(frozen=True)
class Shards:
    """The tensors of the ``.safetensors`` files of a folder, or of one such file, by name."""

    folder: Path
    files: Mapping[str, Path] = field(default_factory=dict)

    def read(self, name: str) -> Tensor:
        """That tensor alone, as long as it is held; half precisions become float32.

        Others lie in the mapped file still: memory from the heap, freed a thousand times over, stays with the
        process.
        """
        with (
            foreign(UsageError, f"{name} cannot be read from {self.files[name].name}"),
            safe_open(self.files[name], "pt") as file,
        ):
            value: Tensor = file.get_tensor(name)
        return value.float() if value.dtype in HALF else value

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self.files[name], "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in set(self.files.values()))


def open_shards(folder: Path) -> Shards:
    """Raises UsageError where there are no such files, or one name stands in two of them."""
    paths = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UsageError(
            f"{folder} holds no .safetensors file",
            fix="save the state dict there: safetensors.torch.save_file, or save_pretrained",
        )
    files: dict[str, Path] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as cause:
            raise Tampered(f"{path.name} is not a whole .safetensors file", why=str(cause)) from cause
        for name in names:
            if name in files:
                raise UsageError(f"{name} stands in {files[name].name} and in {path.name}")
            files[name] = path
    return Shards(folder, files)


def named_in(shards: Shards, model: nn.Module) -> dict[str, str]:
    """By the path of each parameter and stored buffer of ``model``, its name in the files.

    One that has several paths may stand there by any of them. Raises UsageError for what is missing, left
    over, or of another shape.
    """
    state = model.state_dict(keep_vars=True)
    alike: dict[int, list[str]] = {}
    for path, value in state.items():
        alike.setdefault(id(value), []).append(path)
    found = {
        path: next((name for name in alike[id(value)] if name in shards.files), "")
        for path, value in state.items()
    }
    missing = [path for path, name in found.items() if not name]
    over = sorted(set(shards.files) - set(state))
    if missing or over:
        why = [f"missing: {listed(missing)}"] * bool(missing) + [f"left over: {listed(over)}"] * bool(over)
        raise UsageError(f"{shards.folder} holds another model's weights", why="; ".join(why))
    for path, name in found.items():
        if shards.shape(name) != tuple(state[path].shape):
            both = f"{name} is {shards.shape(name)} there, and {tuple(state[path].shape)} in the model"
            raise UsageError(f"{shards.folder} holds weights of other shapes", why=both)
    return found


def fill_buffers(model: nn.Module, shards: Shards, names: Mapping[str, str]) -> None:
    """Give the buffers their stored values; they are small, and stay in memory."""
    for path, buffer in model.named_buffers():
        if path in names:
            buffer.copy_(shards.read(names[path]))


def listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def count(model: nn.Module) -> int:
    """Parameters, each once."""
    return sum(math.prod(p.shape) for p in model.parameters())
