"""Small models, captured once, and artifacts built once, for every runtime and technique by listing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch import nn

from karui import host, runtimes
from karui.artifact import Signature
from karui.errors import MissingRuntime
from karui.graph.call import run_all, signature_of
from karui.graph.capture import capture
from karui.graph.inspect import private_copy
from karui.numerics import Numerics
from karui.recipe import Named
from karui.techniques import Given
from karui.techniques.prune_channels import PruneChannels

ROWS = 100


class Cnn(nn.Module):
    """(n, 2, 6, 6) -> (n, 3)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.head = nn.Linear(8 * 6 * 6, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm(self.conv(image))).flatten(1))


class Written(Cnn):
    """The same with a size written in its code: narrowed, it becomes the rewritten graph."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm(self.conv(image))).view(-1, 288))


class Dicts(nn.Module):
    """A dict of images (n, 2, 6, 6) and integers (n,) -> a dict of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv2d(2, 4, 3), nn.Embedding(5, 64)
        self.first, self.second = nn.Linear(64, 4), nn.Linear(64, 2)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen = torch.relu(self.conv(batch["image"])).flatten(1) + self.embed(batch["kind"])
        return {"scores": self.first(seen), "place": self.second(seen).tanh()}


@dataclass(frozen=True)
class Case:
    """A model, what it is called with, and what it answers."""

    model: nn.Module
    signature: Signature
    rows: Mapping[str, np.ndarray]
    answers: list[np.ndarray]
    layers: Mapping[str, int]


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "cnn": Cnn,
    "dicts": Dicts,
    "narrow module": Cnn,
    "narrow graph": Written,
}


def make(kind: str) -> Case:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((ROWS, 2, 6, 6), dtype=np.float32)
    model = MODELS[kind]()
    example: Any = {"image": images, "kind": np.arange(ROWS) % 5} if kind == "dicts" else torch.tensor(images)
    if kind != "dicts":
        model(example)  # statistics of the batch norm that are not those of a fresh one
    model.eval()
    signature, rows = signature_of(model, example, 1)
    if kind.startswith("narrow"):
        done = PruneChannels().apply(model, Given(dict(rows), dict(rows), signature))
        assert done.facts["form"] == kind.partition(" ")[2]
        model = done.model
    layers = Counter(type(module).__name__ for module in model.modules())
    return Case(model, signature, rows, run_all(model, signature.style, rows), layers)


@pytest.fixture(scope="session", autouse=True)
def quick_wrappers():
    """Half the time of a compilation ahead of time goes into optimising code that runs once a call."""
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        yield


@pytest.fixture(scope="session")
def case() -> Callable[[str], Case]:
    made: dict[str, Case] = {}
    return lambda kind: made.setdefault(kind, made.get(kind) or make(kind))


@dataclass(frozen=True)
class Outcome:
    """An artifact that was built and opened, or why it was refused."""

    refused: str | None = None
    executed: Mapping[str, Any] | None = None
    predict: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]] | None = None


@pytest.fixture(scope="session")
def outcome(case, tmp_path_factory) -> Callable[[str, str, str], Outcome]:
    """``outcome(runtime, precision, kind)``, made once; skips when the runtime is not installed."""
    captured: dict[tuple[str, str], Path] = {}
    made: dict[tuple[str, str, str], Outcome] = {}

    def folder(kind: str, precision: str) -> Path:
        if (kind, precision) not in captured:
            captured[kind, precision] = tmp_path_factory.mktemp(f"{kind}-{precision}".replace(" ", "-"))
            found = case(kind)
            model = private_copy(found.model)
            capture(model, found.signature, dict(found.rows), captured[kind, precision], precision)
        return captured[kind, precision]

    def get(name: str, precision: str, kind: str) -> Outcome:
        key = (name, precision, kind)
        if key not in made:
            runtime, found = opened(name), case(kind)
            ask = runtimes.Ask(Numerics(precision), layers=found.layers, flags=tuple(host.flags()))
            refused = runtime.refuses(ask)
            cast = precision if runtime.casts_in_torch(precision) else "fp32"
            made[key] = Outcome(refused) if refused else build(runtime, folder(kind, cast), precision, found)
        return made[key]

    def build(runtime: runtimes.Runtime, source: Path, precision: str, found: Case) -> Outcome:
        numerics, rows = Numerics(precision), dict(found.rows)
        artifact = tmp_path_factory.mktemp("artifact")
        given = runtimes.Source(source, found.signature, numerics, calibrate=rows, probe=rows)
        built = runtime.build(given, artifact)
        return Outcome(None, built.executed, runtime.load(artifact, found.signature, 1))

    return get


def opened(name: str) -> runtimes.Runtime:
    try:
        return runtimes.usable(Named(name))
    except MissingRuntime as error:
        pytest.skip(error.line)
