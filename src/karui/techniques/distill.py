"""Distillation: a smaller network learns to answer as the model does.

Hinton et al. 2015, arXiv:1503.02531 (class scores at a temperature); Huang et al. 2022, arXiv:2205.10536
(dist); Romero et al. 2015, arXiv:1412.6550 (hints).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, final

from torch import nn

from karui.blame import users_code
from karui.errors import Unsupported, UsageError
from karui.graph.call import run
from karui.graph.narrower import narrower, start_anew
from karui.graph.training import Material, learn
from karui.graph.training.hints import Hinted, found_in, pairs_of
from karui.graph.training.loop import Ways
from karui.graph.training.losses import Aim, Kind
from karui.graph.training.options import options_of
from karui.graph.training.random_state import seeded
from karui.techniques import Applied, Given, Technique


@final
@dataclass(frozen=True)
class Distill(Technique):
    """The task's student, or a narrower copy of the model, taught by the model (or the task's teacher).

    width: share of the units of every layer that the copy has; multiple_of: widths are multiples of it;
    protect: layers whose outputs stay. start: from the model's own weights, or fresh.
    distill: share of the loss that is the distance to the teacher's answers; the rest is the labels'; by
    default a half, and 1 where there are none. loss: of that share: kd, dist, squares, or auto, which is kd
    for classes. temperature: of kd (4) and dist (1). hints: layers that learn what the teacher's give:
    ``["stage1","mine:theirs"]``, or found for two of them; hint: their weight.
    The rest is as in ``finetune``: steps or epochs, batch, lr, optimizer, schedule, precision, and so on.
    """

    TRAINS = True

    width: float = 0.5
    multiple_of: int = 1
    protect: tuple[str, ...] = ()
    start: Literal["weights", "fresh"] = "weights"
    distill: float | None = None
    loss: Kind = "auto"
    temperature: float | None = None
    hints: Literal["none", "found"] | tuple[str, ...] = "none"
    hint: float = 1.0
    steps: int = 300
    epochs: int | None = None
    batch: int = 64
    lr: float = 3e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "one_cycle", "constant"] = "cosine"
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    clip: float | None = None
    accumulate: int = 1
    patience: int | None = None
    freeze: float = 1.0
    seed: int = 0
    devices: int = 1
    most_s: float | None = None

    def apply(self, model: nn.Module, data: Given) -> Applied:
        if data.student is not None:
            student = self.given(data.student, model, data)
            return self.taught(student, model, data, {"student": type(student).__name__})
        made = narrower(
            model,
            data.signature,
            data.inputs,
            self.width,
            multiple_of=self.multiple_of,
            protect=self.protect,
        )
        if not made.cut.removed:
            return Applied(model, (), made.stays or {"model": "no layer can be narrower"})
        if self.start == "fresh":
            start_anew(made.cut.model, self.seed)
        return self.taught(made.cut.model, model, data, made.facts(), made.stays)

    def given(self, make: Callable[[], nn.Module], model: nn.Module, data: Given) -> nn.Module:
        """The user's student; UsageError when it does not answer in the model's form."""
        with users_code(UsageError, "the function that makes the student failed"), seeded(self.seed):
            student = make()
        if not isinstance(student, nn.Module):
            raise UsageError(f"the student is a {type(student).__name__}, not an nn.Module")
        if {id(one) for one in student.parameters()} & {id(one) for one in model.parameters()}:
            raise UsageError("the student shares weights with the model", fix="make a network of its own")
        student = student.cpu().eval()
        wanted = [port.shape for port in data.signature.outputs]
        answers, tree = run(student, data.signature.style, data.inputs)
        found = [(None, *answer.shape[1:]) for answer in answers]
        if found != wanted or tree != data.signature.tree:
            raise UsageError(
                "the student answers in another form than the model",
                why=f"it gives {found}, the model {wanted}",
                fix="give it the same outputs",
            )
        return student

    def taught(
        self,
        student: nn.Module,
        model: nn.Module,
        data: Given,
        facts: dict[str, Any],
        stays: dict[str, str] | None = None,
    ) -> Applied:
        if self.devices > 1 and data.clock is not None:
            raise Unsupported("several processes cannot train in a recipe", fix="karui.distill can")
        counts = [sum(one.numel() for one in net.parameters()) for net in (model, student)]
        told = self.learn(student, data.teacher or model, data)
        touched = (holder(name) for name in facts.get("positions") or dict(student.named_parameters()))
        return Applied(
            student, tuple(dict.fromkeys(touched)), stays or {}, {"parameters": counts, **facts, **told}
        )

    def learn(self, student: nn.Module, teacher: nn.Module, data: Given) -> dict[str, Any]:
        rows = None if data.signature.dynamic_batch else data.signature.batch
        material = Material(data.signature, data.calibrate, data.train, rows)
        aim = Aim(self.distill, self.loss, self.temperature)
        ways = Ways(folder=data.folder, watch=data.watch, effort=data.effort)
        if self.hints == "none" or not self.hints:
            return learn(student, teacher, material, aim, options_of(self), ways)
        pairs = found_in(student, teacher) if self.hints == "found" else pairs_of(self.hints)
        with Hinted(student, teacher, pairs, self.hint) as hinted:
            for net in (hinted, teacher):
                run(net, data.signature.style, data.inputs)
            with seeded(self.seed):
                hinted.fit()
            ways = replace(ways, extra=hinted.loss, mark=f"{pairs} {self.hint}")
            told = learn(hinted, teacher, material, aim, options_of(self), ways)
        return told | {"hints": {one: other for one, other in pairs}}


def holder(name: str) -> str:
    """The path of the module that a parameter is in."""
    return name.rpartition(".")[0]
