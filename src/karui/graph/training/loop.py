"""The training loop, on Lightning Fabric: steps, checks on held-out data, checkpoints, and how it went.

Micikevicius et al. 2017, arXiv:1710.03740 (half precision with scaled gradients).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor, nn

from karui.data import Split, fingerprint
from karui.errors import Unsupported
from karui.graph.inspect import state_digest
from karui.graph.training.checkpoint import Checkpoints, digest, put_back, tensors
from karui.graph.training.feed import Feed
from karui.graph.training.losses import Loss
from karui.graph.training.options import Options, keep_statistics
from karui.graph.training.random_state import State, random_state, restore, seeded
from karui.graph.zeros import held

PROBE = 4  # batches on which the loss is told before and after
CHECKS = 20  # of the held-out data in a whole run
EVERY = 50  # steps between checkpoints
TRIED = 10  # steps, after which it is known how long the rest takes
HOPELESS = 30  # steps in a row that overflow
KEPT = ("step", "overflows", "in_a_row", "number", "taken", "began", "checks", "best", "before")


@dataclass(frozen=True)
class Progress:
    """``step`` of ``steps`` is done; loss: of its batches; left_s: seconds that the rest will take."""

    step: int
    steps: int
    loss: float
    left_s: float


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Ways:
    """What differs from one kind of model to the other, and where a run is kept and told.

    groups: parameters in groups for the optimizer, which may have an lr of their own. keep_statistics: let
    norms keep theirs or not, asked before each step. hold: zeros in weights are held. folder: for
    checkpoints. watch: hears of every step. extra: added to the loss. mark: tells this training from others.
    effort: share of the steps to take, at least one; the schedule is as much shorter.
    """

    groups: Callable[[], list[dict[str, Any]]] | None = None
    keep_statistics: Callable[[bool], None] | None = None
    hold: bool = True
    folder: Path | None = None
    watch: Watch | None = None
    extra: Callable[[], Tensor] | None = None
    mark: str = ""
    effort: float = 1.0


def train(
    model: nn.Module,
    loss: Loss,
    feed: Feed,
    options: Options,
    ways: Ways | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place; it is in eval mode before and after, and holds no gradients.

    With a folder in ``ways`` there is a checkpoint every EVERY steps: a run that was killed goes on from the
    last one to the very same weights, and one that was finished is not repeated. The global random state
    stays as it was. Raises Unsupported when the loss is no longer finite.
    """
    ways = ways or Ways()
    zeros = held(model) if ways.hold else nullcontext()
    try:
        with seeded(options.seed), torch.enable_grad(), zeros:
            return Training(model, loss, feed, options, ways).run()
    finally:
        model.eval()
        model.zero_grad()


@final
class Training:
    """One run: where it stands, and the best that was seen."""

    def __init__(self, model: nn.Module, loss: Loss, feed: Feed, options: Options, ways: Ways) -> None:
        self.model, self.loss, self.feed, self.options, self.ways = model, loss, feed, options, ways
        self.probe = list(itertools.islice(feed.batches(), PROBE))
        self.held = feed.held() if options.patience else []
        whole = options.total(feed.steps_a_pass() if options.epochs else 0)
        self.steps = max(round(ways.effort * whole), 1)
        self.step, self.overflows, self.in_a_row = 0, 0, 0
        self.number, self.taken = 0, 0  # the pass over the data, and batches taken from it
        self.began: State = {}  # the random state in which that pass began
        self.checks: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.before = math.nan

    def run(self) -> dict[str, Any]:
        kept = Checkpoints(self.ways.folder, self.identity())
        state = kept.load()
        if state and state["finished"]:
            put_back(self.model, state["model"])
            return dict(state["facts"])
        self.begin()
        self.resume(state)
        self.go(kept, state)
        if self.best:
            put_back(self.model, self.best)
        if self.fabric.world_size > 1:  # norms saw other batches in each process
            put_back(self.model, self.fabric.broadcast(tensors(self.model)))
        facts = self.told()
        if self.fabric.is_global_zero:
            kept.save({"finished": True, "facts": facts, "model": tensors(self.model)})
        return facts

    def identity(self) -> str:
        """Of all that two runs must share to end in the same weights."""
        told = [
            repr(replace(self.options, most_s=None)),
            str(self.steps),
            repr(self.loss.aim),
            str(self.ways.hold),
            self.ways.mark,
        ]
        told += [state_digest(self.model), state_digest(self.loss.teacher)]
        return digest(told + [fingerprint(batch) for batch in self.probe])

    def begin(self) -> None:
        """Set up what trains; where processes share the work, they are started here."""
        options = self.options
        groups = self.ways.groups() if self.ways.groups else trainable(self.model)
        if not any(group["params"] for group in groups):
            raise Unsupported("no parameter can be trained", why="none requires a gradient")
        self.fabric = fabric_of(options)
        self.before = self.mean_loss(self.probe)
        self.module, self.optimizer = self.fabric.setup(self.model, options.optimizer_of(groups))
        self.scaler = self.fabric.strategy.precision.scaler if options.precision == "16-mixed" else None
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def resume(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        put_back(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        for name in KEPT:
            setattr(self, name, state[name])

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in KEPT} | {
            "finished": False,
            "model": tensors(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "random": random_state(),
        }

    def go(self, kept: Checkpoints, state: dict[str, Any] | None) -> None:
        start, first = time.monotonic(), self.step
        batches = self.batches(state["random"] if state else None)
        self.model.train()
        while self.step < self.steps and not self.stops():
            found = self.take_step(list(itertools.islice(batches, self.options.accumulate)))
            self.step += 1
            self.check()
            pace = (time.monotonic() - start) / (self.step - first)
            left = pace * (self.steps - self.step)
            if self.ways.watch:
                self.ways.watch(Progress(self.step, self.steps, found, left))
            if self.step - first == TRIED:
                self.check_time(left / self.ways.effort)
            if self.step % EVERY == 0 and self.fabric.is_global_zero:
                kept.save(self.state())

    def check_time(self, left_s: float) -> None:
        most = self.options.most_s
        if most is not None and self.fabric.broadcast(left_s) > most:
            raise Unsupported(
                f"the training would take {left_s:.0f} s more",
                why=f"{most:g} s are allowed",
                fix="most_s=..., fewer steps, or a smaller batch",
            )

    def batches(self, now: State | None) -> Iterator[Split]:
        """From where the run stands; ``now`` is the random state that it stood in."""
        while True:
            if now is not None:
                restore(self.began)
            else:
                self.began = random_state()
            found = self.feed.one_pass(self.number)
            for _ in itertools.islice(found, self.taken):
                pass
            if now is not None:
                restore(now)
                now = None
            for batch in found:
                self.taken += 1
                yield batch
            self.feed.check(self.number, self.taken)
            self.number, self.taken = self.number + 1, 0

    def take_step(self, batches: list[Split]) -> float:
        """One step of the optimizer; the mean loss of its batches."""
        options = self.options
        (self.ways.keep_statistics or self.keep)(self.step >= options.freeze * self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * options.share_of_lr(self.step, self.steps)
        self.optimizer.zero_grad()
        losses = []
        for position, batch in enumerate(batches):
            with self.fabric.no_backward_sync(self.module, enabled=position < len(batches) - 1):
                losses.append(self.backward(batch, len(batches)))
        found = self.finite(float(torch.stack(losses).mean()))
        if options.clip is not None:
            self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=options.clip, error_if_nonfinite=False
            )
        self.update()
        return found

    def keep(self, kept: bool) -> None:
        keep_statistics(self.model, kept)

    def backward(self, batch: Split, count: int) -> Tensor:
        """Gradients of this process's part of the batch, as a share of the whole step."""
        part, world = batch, self.fabric.world_size
        if world > 1:
            part = batch.take(slice(self.fabric.global_rank, None, world))
        found = self.loss(self.module, part)
        self.fabric.backward(found * (len(part) * world / len(batch) / count))
        return found.detach()

    def finite(self, found: float) -> float:
        """The loss in the mean over the processes; in half precision the scaler deals with an overflow."""
        if self.fabric.world_size > 1:
            found = float(self.fabric.all_reduce(torch.tensor(found)))
        if not math.isfinite(found) and self.scaler is None:
            raise Unsupported(
                f"the loss is not finite at step {self.step}",
                why=f"it is {found:g}; nothing was changed",
                fix="a smaller lr, or clip=1",
            )
        return found

    def update(self) -> None:
        """Move the weights; a step whose gradients overflow is left out, and the next is scaled less."""
        before = 0.0 if self.scaler is None else self.scaler.get_scale()
        self.optimizer.step()
        if self.scaler is None:
            return
        over = self.scaler.get_scale() < before
        self.overflows, self.in_a_row = self.overflows + over, (self.in_a_row + 1) * over
        if self.in_a_row >= HOPELESS:
            raise Unsupported(
                f"{HOPELESS} steps in a row overflow in half precision",
                why="activations or gradients are beyond 65504",
                fix="precision=bf16-mixed, or 32",
            )

    def check(self) -> None:
        """Now and then: how good it is on what it was not trained on."""
        every = max(self.steps // CHECKS, 1)
        if not self.held or (self.step % every and self.step < self.steps):
            return
        found = self.fabric.broadcast(self.mean_loss(self.held))
        if not self.checks or found < min(self.checks):
            self.best = tensors(self.model)
        self.checks.append(found)
        self.model.train()

    def stops(self) -> bool:
        """Whether the last ``patience`` checks gained nothing."""
        patience = self.options.patience
        if patience is None or len(self.checks) <= patience:
            return False
        return min(self.checks[-patience:]) >= min(self.checks[:-patience])

    @torch.no_grad()
    def mean_loss(self, batches: list[Split]) -> float:
        """Over the samples, in eval mode and full precision."""
        self.model.eval()
        count = sum(map(len, batches))
        return sum(float(self.loss(self.model, batch)) * len(batch) for batch in batches) / count

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = {"steps": self.step}
        found["loss"] = [round(self.before, 6), round(self.mean_loss(self.probe), 6)]
        if self.held:
            found["held_out"] = [round(self.checks[0], 6), round(min(self.checks), 6)]
            found["stopped"] = self.step < self.steps
        if self.scaler is not None:
            found["overflows"] = self.overflows
        return found


def trainable(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [one for one in model.parameters() if one.requires_grad]}]


def fabric_of(options: Options) -> Any:
    """Fabric on the CPU; with several devices, its launcher runs the script once for each."""
    plugins = {
        "32": None,
        "bf16-mixed": lambda: MixedPrecision("bf16-mixed", "cpu"),
        # given by itself: for a CPU, Fabric would take bf16 instead, and say so
        "16-mixed": lambda: MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu")),
    }[options.precision]
    strategy = "auto" if options.devices == 1 else "ddp"
    plugin = plugins() if plugins else None
    fabric = Fabric(accelerator="cpu", devices=options.devices, strategy=strategy, plugins=plugin)
    fabric.launch()
    return fabric
