"""Training after a change: the model regains what pruning or rounding took from it.

The original teaches, which needs no labels: Hinton et al. 2015, arXiv:1503.02531. A high learning rate that
falls again: Renda et al. 2020, arXiv:2003.02389.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from karui.blame import users_code
from karui.errors import Unsupported, UsageError
from karui.graph.inspect import private_copy, state_digest
from karui.graph.training import Material, learn
from karui.graph.training.checkpoint import Checkpoints, digest, named, put_back, tensors
from karui.graph.training.loop import Ways
from karui.graph.training.losses import Aim, Kind
from karui.graph.training.options import options_of
from karui.graph.training.random_state import seeded
from karui.graph.zeros import put, zeros_of
from karui.techniques import Applied, Given, Technique


@final
@dataclass(frozen=True)
class Finetune(Technique):
    """Trains the model it is given; zeros in weights stay zero. With ``Task(finetune=...)`` yours does.

    steps, or epochs over the training data, of ``batch`` samples; without training data it learns from the
    calibration inputs. lr falls to zero as a cosine, rises and falls (one_cycle) or stays (constant).
    distill: share of the loss that is the distance to the teacher's answers (the task's teacher, else its
    model as it was before any step); the rest is the labels'; by default a half, and 1 where there are none.
    loss: of that share: kd, dist, squares, or auto, which is kd for classes. temperature: of kd and dist.
    precision: of the forward pass; 16-mixed scales gradients and leaves steps out that overflow. clip:
    largest norm of gradients. accumulate: batches a step. patience: checks on a tenth of the data, held out,
    without a gain after which it stops with the best weights. freeze: share of the steps after which norms
    keep their statistics. devices: processes that share each batch. most_s: seconds; a training that will
    take longer is given up after its first steps.
    """

    TRAINS = True

    steps: int = 300
    epochs: int | None = None
    batch: int = 64
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    distill: float | None = None
    loss: Kind = "auto"
    temperature: float | None = None
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    clip: float | None = None
    accumulate: int = 1
    patience: int | None = None
    freeze: float = 1.0
    seed: int = 0
    devices: int = 1
    most_s: float | None = None

    def apply(self, model: nn.Module, data: Given) -> Applied:
        before = tensors(model)
        if data.finetune is not None:
            trained, told = self.by_function(model, data), {"by": "the task's own function"}
        elif data.teacher is None and data.train is None:
            return Applied(model, (), {"model": "there are neither labels nor a teacher to learn from"})
        else:
            trained, told = model, self.learn(model, data)
        return Applied(trained, moved(trained, before), facts=told)

    def by_function(self, model: nn.Module, data: Given) -> nn.Module:
        """Trained by the user's function; what it did to the very same model is not repeated."""
        assert data.finetune is not None
        told = [code_of(data.finetune), str(self.seed), state_digest(model)]
        kept = Checkpoints(data.folder, digest(told))
        if state := kept.load():
            put_back(model, state["model"])
            return model
        trained = called(data.finetune, model, self.seed)
        if trained is model:  # another one would have to be made by its own code
            kept.save({"model": tensors(model)})
        return trained

    def learn(self, model: nn.Module, data: Given) -> dict[str, Any]:
        if self.devices > 1 and data.clock is not None:
            raise Unsupported("several processes cannot train in a recipe", fix="karui.finetune can")
        rows = None if data.signature.dynamic_batch else data.signature.batch
        material = Material(data.signature, data.calibrate, data.train, rows)
        alone = data.teacher is None and self.distill is None  # its own answers would only hold it back
        aim = Aim(0.0 if alone else self.distill, self.loss, self.temperature)
        ways = Ways(folder=data.folder, watch=data.watch, effort=data.effort)
        return learn(model, data.teacher or private_copy(model), material, aim, options_of(self), ways)


def called(train: Callable[[nn.Module], nn.Module | None], model: nn.Module, seed: int) -> nn.Module:
    """What the user's function makes of ``model``, with its zeros put back."""
    zeros = zeros_of(model)
    with users_code(UsageError, "the task's function that trains failed"), seeded(seed), torch.enable_grad():
        found = train(model)
    trained = model if found is None else found
    if not isinstance(trained, nn.Module):
        what = f"the task's function that trains gave a {type(trained).__name__}, not an nn.Module"
        raise UsageError(what, fix="return the trained module, or nothing")
    put(trained, zeros)
    trained.zero_grad()
    return trained.cpu().eval()


def code_of(function: Callable[..., Any]) -> str:
    """Its source, or its name where there is none."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(type(function))


def moved(model: nn.Module, before: dict[str, Tensor]) -> tuple[str, ...]:
    """Paths of the modules whose own parameters or buffers changed."""
    changed = [
        name for name, one in named(model).items() if name not in before or not same(one, before[name])
    ]
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in changed))


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
