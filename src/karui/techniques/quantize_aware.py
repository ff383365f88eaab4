"""Quantization-aware training: the model learns to live with the rounding, and the grids with the model.

Jacob et al. 2018, arXiv:1712.05877 (training with rounding, statistics of norms frozen late); Esser et al.
2020, arXiv:1902.08153 and Bhalgat et al. 2020, arXiv:2004.09576 (learned grids); Hinton et al. 2015,
arXiv:1503.02531 (the original as teacher, which needs no labels).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, IterableDataset

from karui.data import Split, as_batch, is_pair, items, shuffled
from karui.errors import Unsupported, UsageError
from karui.graph.call import arguments
from karui.graph.inspect import private_copy
from karui.graph.quantize_aware import LEAST_ROWS, QuantAware, Rounding, aware_of
from karui.graph.ranges.table import Range, load_table
from karui.numerics import Calibration
from karui.score import logits
from karui.structure import flatten
from karui.techniques import Applied, Given, Technique

TEMPERATURE = 4.0  # of the class scores that are compared with the teacher's
PROBE = 4  # batches on which the loss is told before and after
HALF = 0.5  # of the loss is the teacher's where there are labels
FIX = "give Task(train=...): a Dataset, a pair of arrays or a list of (inputs, targets) batches"


@final
@dataclass(frozen=True)
class QuantizeAware(Technique):
    """Weights and grids, trained in float32 on the CPU with rounding where ``runtime`` rounds.

    steps, or epochs over the training data; lr of the weights and, relative to each scale, scale_lr; both
    fall to zero as a cosine. bits: of weights, 2 to 8; none for what INT8 kernels of this CPU take (7 where
    they saturate). distill: share of the loss that is the distance to the original's answers; the rest is
    the labels' (cross-entropy for whole numbers, else squares); 1 where there are none. freeze: share of
    the steps after which batch norms keep their statistics. observer: of the ranges it starts from.
    protect: patterns over module paths that stay in float. ranges: a folder of ranges that were learned
    elsewhere (``karui.quantize_aware``), taken over without training.

    Without training data it learns from the calibration inputs alone.
    """

    steps: int = 300
    epochs: int | None = None
    lr: float = 3e-4
    scale_lr: float = 1e-3
    batch: int = 64
    bits: int | None = None
    distill: float | None = None
    freeze: float = 0.7
    observer: Calibration = "minmax"
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"
    protect: tuple[str, ...] = ()
    ranges: str = ""
    seed: int = 0

    def apply(self, model: nn.Module, data: Given) -> Applied:
        if self.ranges:
            return taken_over(model, Path(self.ranges))
        rounding = Rounding(self.bits, self.observer, self.runtime, self.protect)
        twin = private_copy(model)
        aware = aware_of(twin, data.signature, data.inputs, data.calibrate, rounding, data.ranges)
        left = dict.fromkeys(aware.left, "a pattern of protect, or its type, keeps it in float")
        if not aware.steps:
            return Applied(model, (), left or {"model": "it has no convolution or linear layer"})
        told = Training(self, aware, model, data).run()
        facts = {"bits": rounding.weight_bits(), "ranges": len(aware.ranges()), **told}
        return Applied(aware.model, layers_of(aware.ranges()), left, facts, aware.ranges())


def layers_of(ranges: Iterable[str]) -> tuple[str, ...]:
    """Paths of the modules whose weights have ranges: keys of computed tensors have a colon."""
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in ranges if ":" not in key))


def taken_over(model: nn.Module, folder: Path) -> Applied:
    table = load_table(folder)
    known = dict(model.named_parameters())
    if strange := [
        key for key, one in table.items() if one.role == "weight" and not fits(one, known.get(key))
    ]:
        raise UsageError(
            f"the ranges in {folder} are not of this model",
            why=f"it has no such weight: {', '.join(strange[:3])}",
            fix="give the model that was trained with them: aware.model",
        )
    return Applied(model, layers_of(table), facts={"ranges": len(table)}, ranges=table)


def fits(one: Range, weight: Tensor | None) -> bool:
    return weight is not None and (one.axis < 0 or one.low.shape == weight.shape[one.axis : one.axis + 1])


@final
class Training:
    """One run: ``aware`` learns from the data of ``given``, with ``teacher`` as the float original."""

    def __init__(self, options: QuantizeAware, aware: QuantAware, teacher: nn.Module, given: Given) -> None:
        self.options, self.aware, self.teacher = options, aware, teacher
        self.signature = given.signature
        self.names = [port.name for port in given.signature.inputs]
        self.data = Split(given.calibrate) if given.train is None else given.train
        self.batch = aware.rows or options.batch
        first = next(self.batches())
        labels = None if first.targets is None else first.targets.dtype.kind
        self.classes = labels is not None and labels in "iub"
        self.share = self.share_of_teacher(labelled=labels is not None)

    def share_of_teacher(self, *, labelled: bool) -> float:
        wanted = self.options.distill
        if wanted is None:
            return HALF if labelled else 1.0
        if not 0 <= wanted <= 1:
            raise UsageError(f"distill is a share of the loss, not {wanted:g}", fix="distill from 0 to 1")
        if wanted < 1 and not labelled:
            raise UsageError(f"distill={wanted:g} needs labels", why="the training data have none", fix=FIX)
        return wanted

    def run(self) -> dict[str, Any]:
        """Train, and tell how it went; the global random state is left as it was."""
        with torch.random.fork_rng(devices=()), torch.enable_grad():
            torch.manual_seed(self.options.seed)
            probe = list(itertools.islice(self.batches(), PROBE))
            before = self.told(probe)
            steps = self.total()
            self.train(steps)
            after = self.told(probe)
        self.aware.zero_grad()
        return {"steps": steps, "loss": [before, after], "distill": self.share, "labels": self.share < 1}

    def train(self, steps: int) -> None:
        options, aware = self.options, self.aware.train()
        fabric = Fabric(accelerator="cpu", devices=1)
        plain = torch.optim.Adam(aware.groups(options.lr, options.scale_lr))
        schedule = LambdaLR(plain, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
        module, optimizer = fabric.setup(aware, plain)
        for step, batch in enumerate(itertools.islice(self.batches(), steps)):
            aware.freeze_norms(step >= options.freeze * steps)
            loss = self.loss(module, batch)
            if not bool(torch.isfinite(loss)):
                raise Unsupported(f"the loss is not finite at step {step}", fix="a smaller lr")
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            schedule.step()
        aware.eval()

    @torch.no_grad()
    def told(self, batches: list[Split]) -> float:
        """The mean loss of the model as it will be quantized."""
        self.aware.eval()
        return round(sum(float(self.loss(self.aware, batch)) for batch in batches) / len(batches), 6)

    def loss(self, module: Any, batch: Split) -> Tensor:
        tensors = {name: torch.from_numpy(array) for name, array in batch.inputs.items()}
        args, kwargs = arguments(self.signature.style, tensors)
        answer = module(*args, **kwargs)
        parts = []
        if self.share > 0:
            with torch.no_grad():
                wanted = self.teacher(*args, **kwargs)
            parts.append(self.share * (kl if self.classes else distance)(answer, wanted))
        if self.share < 1:
            parts.append((1 - self.share) * label_loss(answer, torch.as_tensor(batch.targets)))
        return torch.stack(parts).sum()

    def total(self) -> int:
        """Steps of the whole run."""
        options = self.options
        found = options.steps if options.epochs is None else options.epochs * self.steps_a_pass()
        if found < 1:
            raise UsageError("there is no step to train", fix="steps or epochs of one or more")
        return found

    def steps_a_pass(self) -> int:
        if is_map(self.data):
            return max(len(self.data) // self.batch, 1)
        return sum(1 for _ in self.one_pass(0))

    def batches(self) -> Iterator[Split]:
        """Batches without end, each pass in an order that the seed tells."""
        for number in itertools.count():
            seen = 0
            for batch in self.one_pass(self.options.seed + number):
                seen += 1
                yield batch
            if not seen:
                why = "an iterator gives its batches only once" if number else "it is empty or too small"
                raise UsageError("the training set gives no batch of two samples or more", why=why, fix=FIX)

    def one_pass(self, seed: int) -> Iterator[Split]:
        for batch in self.cut(seed):
            if len(batch) >= LEAST_ROWS and self.aware.rows in (None, len(batch)):
                yield batch

    def cut(self, seed: int) -> Iterator[Split]:
        data = self.data() if callable(self.data) and not isinstance(self.data, Iterable) else self.data
        whole = as_batch(data, self.names, "training") if is_pair(data) else data
        if isinstance(whole, Split):
            order, size = shuffled(len(whole), seed), min(self.batch, len(whole))
            stops = range(size, len(whole) + 1, size) if size else ()
            yield from (whole.take(order[stop - size : stop]) for stop in stops)
            return
        for item in self.loader(whole, seed) if is_map(whole) else items(whole, "training"):
            yield as_batch(item, self.names, "training")

    def loader(self, data: Any, seed: int) -> Iterable[Any]:
        """Whole batches only: what is left over would tell a norm little, and comes in another pass."""
        drawn, size = torch.Generator().manual_seed(seed), min(self.batch, len(data)) or 1
        return DataLoader(data, size, shuffle=True, generator=drawn, drop_last=True)


def is_map(data: Any) -> bool:
    return isinstance(data, Dataset) and not isinstance(data, IterableDataset)


def label_loss(answer: Any, targets: Tensor) -> Tensor:
    """Cross-entropy for classes as whole numbers, else the mean squared difference."""
    found: Any = logits(answer)
    if not targets.is_floating_point():
        return functional.cross_entropy(found, targets.long())
    if found.numel() != targets.numel():
        raise UsageError(
            f"answers of shape {tuple(found.shape)} cannot be compared with targets {tuple(targets.shape)}",
            fix="distill=1 needs no targets; karui.quantize_aware takes your own loop",
        )
    return functional.mse_loss(found, targets.view_as(found).to(found.dtype))


def kl(answer: Any, wanted: Any) -> Tensor:
    """How far class scores (n, classes, ...) are from the teacher's: KL divergence at a temperature."""
    pair: tuple[Any, Any] = logits(answer), logits(wanted)
    one, other = (functional.log_softmax(part / TEMPERATURE, 1) for part in pair)
    return functional.kl_div(one, other, reduction="none", log_target=True).sum(1).mean() * TEMPERATURE**2


def distance(answer: Any, wanted: Any) -> Tensor:
    """Squared differences of all answers, each as a share of the teacher's own spread."""
    pairs = [
        (one, other) for one, other in zip(flatten(answer)[0], flatten(wanted)[0]) if one.is_floating_point()
    ]
    spread = [other.var(correction=0).clamp(min=1e-8) for _, other in pairs]
    return torch.stack(
        [functional.mse_loss(one, other) / by for (one, other), by in zip(pairs, spread)]
    ).sum()
