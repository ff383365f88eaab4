"""Every runtime is one file here; the file's name is its name, and the folder is the registry.

A runtime is a frozen dataclass of options (each with a default) with three verbs: refuse early,
build a folder, load it back. Build and load stand in one file: the folder's format is their secret.
Other packages add runtimes by the entry-point group ``karui.runtimes``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from karui import host
from karui.artifact import Signature
from karui.errors import MissingRuntime, Unsupported, UsageError, foreign, package_for
from karui.numerics import Numerics
from karui.options import construct, only_class
from karui.recipe import Named
from karui.units import Seconds

if TYPE_CHECKING:
    from karui.data import Array, Arrays
    from karui.graph.weights.streamed import Streamed

    Predict = Callable[[Arrays], list[Array]]

GROUP = "karui.runtimes"


@dataclass(frozen=True)
class Ask:
    """What is known before anything is built: enough to refuse without costing a trial.

    form: "torch" or "onnx", the kind of model that was given.
    layers: how often each torch module class occurs, by class name.
    flags: instruction sets of the CPU, as the kernel names them.
    """

    numerics: Numerics
    form: str = "torch"
    layers: Mapping[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    calibrated: bool = True
    batch: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Source:
    """What a build gets: the captured model as files, and the data it may use.

    folder: holds ``model.pt2`` (exported program; already cast when ``Runtime.casts_in_torch``
        says so) and, where tracing worked, ``traced.pt``; or ``model.onnx`` for a model given so.
    calibrate: input arrays, each (n, ...), for ranges.
    probe: input arrays on which ``Built.reference`` is computed.
    batch: samples of a call where it will run.
    flags: instruction sets of the CPU where it will run.
    program: one whose weights lie in files; then ``folder`` is empty, and only weights in few bits are made.
    """

    folder: Path
    signature: Signature
    numerics: Numerics
    calibrate: Arrays
    probe: Arrays
    threads: int = 1
    batch: int = 1
    flags: frozenset[str] = field(default_factory=host.flags)
    program: Streamed | None = None

    @property
    def rows(self) -> int:
        """Samples of a call: ``batch``, or the one size that the model takes."""
        return self.batch if self.signature.dynamic_batch else self.signature.batch


@dataclass(frozen=True)
class Built:
    """What a build did.

    executed: at least ``precision`` (what will really run) and ``detail``; counts of kernels.
    reference: flat outputs on ``Source.probe`` of the same quantized graph computed literally in
        float (fake-quant), where the runtime can do that.
    """

    executed: Mapping[str, Any]
    reference: Sequence[Array] | None = None


class Elsewhere(ABC):
    """A ``Predict`` whose model does not run in the calling process: in a browser's page, on a device.

    It brings a clock that stands beside the model, so that the way there and back is in no timing.
    """

    @abstractmethod
    def __call__(self, arrays: Arrays) -> list[Array]:
        """The flat list of outputs, as of every ``Predict``."""

    @abstractmethod
    def timed(self, arrays: Arrays, calls: int) -> list[Seconds]:
        """Seconds of a call on ``arrays``, which are there before the first starts; one number a sample.

        A sample may be the mean of several calls in a row where the clock is too coarse for one; all
        samples then are of equally many, and at least ``calls`` are made.
        """


class Runtime(ABC):
    """Three verbs and no state in between; subclasses are final frozen dataclasses.

    WHERE: options that say which device runs it; FP32 that others are compared with runs on the same.
    """

    WHERE: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def refuses(self, ask: Ask) -> str | None:
        """Why this runtime cannot honour ``ask``, or None if it can. Costs nothing."""

    @abstractmethod
    def casts_in_torch(self, precision: str) -> bool:
        """Whether the model shall be cast to ``precision`` in torch before it is captured."""

    def stands_in(self) -> str:
        """Why ``load`` gives a reference interpreter on this machine instead of the runtime; empty where it
        does not. What stands in is verified and scored, and never timed.
        """
        return ""

    def lacks(self) -> str:
        """The command that brings what this machine still needs beside the imported packages (a browser,
        a converter of its own); empty where nothing is missing. Costs little.
        """
        return ""

    def verified_as(self) -> str:
        """The status of an artifact that passes every check here: how much these checks prove."""
        return "verified by reference" if self.stands_in() else "verified on runtime"

    @abstractmethod
    def build(self, source: Source, folder: Path) -> Built:
        """Write everything ``load`` needs into the empty ``folder``."""

    @abstractmethod
    def load(self, folder: Path, signature: Signature, threads: int) -> Predict:
        """Open ``folder``: a function from input arrays by name to the flat list of outputs.

        It takes any batch the signature allows, copies nothing it need not, and runs in the
        measuring process, which has loaded no torch unless this runtime needs it. Where the model runs
        in no process of ours, the function is an ``Elsewhere``.
        """


def names() -> list[str]:
    """Names of all runtimes, without importing any of them."""
    here = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    return sorted(here | {entry.name for entry in elsewhere()})


def load(named: Named) -> Runtime:
    """Import one runtime and set its options; a missing package becomes one clear sentence."""
    runtime: Runtime = construct(find(named.name), named)
    return runtime


def usable(named: Named) -> Runtime:
    """The same, only if nothing else is missing either. Raises MissingRuntime with the remedy."""
    runtime = load(named)
    if remedy := runtime.lacks():
        raise MissingRuntime(f"the runtime {named.name} is not complete on this machine", fix=remedy)
    return runtime


def find(name: str) -> type[Runtime]:
    """The runtime class in the file of that name."""
    if name not in names():
        raise UsageError(f"no runtime {name!r}", fix=f"one of: {', '.join(names())}")
    with package_for(f"the runtime {name} needs", name):
        outside = next((entry for entry in elsewhere() if entry.name == name), None)
        module = importlib.import_module(outside.module if outside else f"{__name__}.{name}")
    return only_class(module, Runtime)  # type: ignore[type-abstract]


def lacks(name: str) -> str:
    """Why the runtime cannot be used on this machine; empty where it can."""
    try:
        with foreign(Unsupported, "it cannot be used"):
            usable(Named(name))
    except MissingRuntime as error:
        return f"not installed: {error.fix}"
    except (Unsupported, UsageError) as error:
        return error.line
    return ""


def elsewhere() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))
