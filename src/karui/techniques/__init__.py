"""Every technique is one file here; the file's name is its name, and the folder is the registry.

A technique is a frozen dataclass of options (each with a default) with one verb: it changes a private
copy of the model and says what it did. One that finds nothing to do returns the model as it was.
Other packages add techniques by the entry-point group ``karui.techniques``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from karui import host
from karui.artifact import Signature
from karui.errors import UsageError, package_for
from karui.options import construct, only_class
from karui.recipe import Named

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from karui.data import Arrays
    from karui.graph.ranges.table import Table
    from karui.graph.training.loop import Watch
    from karui.measurement import Ratio
    from karui.units import Seconds

GROUP = "karui.techniques"


class Clock(Protocol):
    """Times changed copies of the model where they are to run."""

    def ratios(
        self, variants: Mapping[str, Callable[[], nn.Module]], careful: bool = False
    ) -> Mapping[str, Ratio]:
        """How many times faster than the original each variant is; those that do not run are left out.

        The name of a variant tells its structure: what was timed before under that name is not made again.
        """

    def original_s(self) -> Seconds:
        """One call of the original, at the batch of the target."""


@dataclass(frozen=True)
class Given:
    """What a technique may use: example inputs, calibration data, the user's training parts, a clock.

    inputs, calibrate: arrays by input name, each (n, ...). clock: None where no runtime is aimed at. ranges:
    what earlier steps have learned for the quantization table (``graph.ranges.table``). teacher: the model
    before any step, in eval mode, only to be asked. finetune, student: the user's own, as in ``Task``.
    folder: for checkpoints; what was finished in it is not repeated. watch: hears how a training goes.
    known: another, for what was measured on a model and holds for every step that asks the same of it.
    flags: instruction sets of the CPU where the model will run. effort: share of a training's steps to take,
    for a first look at what it may come to.
    """

    inputs: Arrays
    calibrate: Arrays
    signature: Signature
    train: Any = None
    clock: Clock | None = None
    ranges: Table | None = None
    teacher: nn.Module | None = None
    finetune: Callable[[nn.Module], nn.Module | None] | None = None
    student: Callable[[], nn.Module] | None = None
    folder: Path | None = None
    watch: Watch | None = None
    known: Path | None = None
    flags: frozenset[str] = field(default_factory=host.flags)
    effort: float = 1.0


@dataclass(frozen=True)
class Applied:
    """The changed model and the account of the change.

    touched: paths of the modules that were changed. skipped: path -> why it was left as it is.
    facts: what the step measured or learned, as plain numbers and strings. ranges: those of weights and
    activations that it has settled, for the INT8 runtimes to keep to.
    """

    model: nn.Module
    touched: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    ranges: Table | None = None


class Technique(ABC):
    """One verb and no state in between; subclasses are final frozen dataclasses.

    TIMED: options that, when given, let the outcome depend on the clock, and so on the runtime.
    ZEROES: whether it prunes by zeros alone, so that the model keeps its form. TRAINS: whether it takes steps
    of training, of which ``Given.effort`` is a share.
    """

    TIMED: ClassVar[frozenset[str]] = frozenset()
    ZEROES: ClassVar[bool] = False
    TRAINS: ClassVar[bool] = False

    @abstractmethod
    def apply(self, model: nn.Module, data: Given) -> Applied:
        """Change ``model``, a private copy in eval mode on the CPU, which is consumed.

        Inputs, outputs and their shapes stay as they are, and the model can still be exported.
        """


def names() -> list[str]:
    """Names of all techniques, without importing any of them."""
    here = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    return sorted(here | {entry.name for entry in elsewhere()})


def load(named: Named) -> Technique:
    """Import one technique and set its options; a missing package becomes one clear sentence."""
    technique: Technique = construct(find(named.name), named)
    return technique


def find(name: str) -> type[Technique]:
    """The technique class in the file of that name."""
    if name not in names():
        raise UsageError(f"no technique {name!r}", fix=f"one of: {', '.join(names())}")
    with package_for(f"the technique {name} needs"):
        outside = next((entry for entry in elsewhere() if entry.name == name), None)
        module = importlib.import_module(outside.module if outside else f"{__name__}.{name}")
    return only_class(module, Technique)  # type: ignore[type-abstract]


def elsewhere() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))
