"""A model that lies in files and is never in memory whole, as the original of a run that quantizes it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from karui import host, runtimes
from karui.artifact import Artifact, Signature, load_artifact, publish, save_artifact
from karui.builder import build
from karui.errors import BuildFailed, UsageError, foreign
from karui.graph.call import called, signature_of, tensors_of
from karui.graph.inspect import ModelFacts, layers_of
from karui.graph.shards import Shards, count, fill_buffers, mode_of, named_in, open_shards
from karui.graph.weights.streamed import Streamed, streamed
from karui.numerics import WEIGHT_BITS
from karui.optimize.origin import Origin, constructed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from karui.data import Array, Arrays
    from karui.optimize.job import Job
    from karui.recipe import Recipe


@dataclass
class InFiles:
    """A blank ``model``, the files with its weights, and the name there of each; ``seen``: its program."""

    model: nn.Module
    shards: Shards
    named: Mapping[str, str]
    seen: Streamed | None = None

    def describe(self, example: Any, batch: int) -> tuple[Signature, Arrays]:
        """The signature, from shapes alone, and ``example`` as arrays by name."""
        return signature_of(self.model, example, batch, shapes)

    def program(self, signature: Signature, arrays: Arrays) -> Streamed:
        if self.seen is None:
            self.seen = streamed(self.model, signature, arrays, self.shards, self.named)
        return self.seen

    def answers(self, signature: Signature, arrays: Arrays) -> list[Array]:
        """Flat outputs of the original, in FP32."""
        with torch.no_grad():
            return self.program(signature, arrays).answers(arrays)

    def facts(self) -> ModelFacts:
        """Layers and sizes; nothing was run."""
        return ModelFacts(layers_of(self.model), count(self.model), 0, 0.0, self.shards.size_bytes)

    def build(self, job: Job, recipe: Recipe, trial_id: str) -> Artifact:
        """The artifact of a trial, made here: no other process has the model."""
        home, probe = job.folder / "trials" / trial_id, len(job.reference["probe"][0])
        draft = home / "draft"
        draft.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
            program = self.program(job.signature, job.example).twin()
            source = runtimes.Source(
                Path(scratch),
                program.signature,
                recipe.numerics,
                job.splits.calibrate.inputs,
                {name: rows[:probe] for name, rows in job.splits.select.inputs.items()},
                job.target.threads,
                job.target.batch,
                job.machine.flags(),
                program,
            )
            with foreign(BuildFailed, "the build failed"):
                made = build(source, recipe.runtime, draft)
        artifact = Artifact(
            draft, str(recipe), recipe.runtime.name, program.signature, job.target.threads,
            made.executed, host.versions(), job.machine.portrait(),
        )  # fmt: skip
        save_artifact(artifact)
        publish(draft, home / "artifact")
        return load_artifact(home / "artifact")


def in_files(given: Any, folder: Path) -> InFiles:
    """Raises UsageError where ``given`` is not a blank model, or ``folder`` does not hold its weights."""
    model = constructed(given, "model").eval()
    mode_of(model)
    shards = open_shards(folder)
    named = named_in(shards, model)
    fill_buffers(model, shards, named)
    return InFiles(model, shards, named)


def origin_of(whole: InFiles) -> Origin:
    return Origin("torch", "", program=whole)


def shapes(model: nn.Module, style: str, arrays: Arrays) -> tuple[list[Array], Any]:
    """As ``call.run``, of a blank model: outputs of the right shapes and types, that hold nothing."""
    mode = mode_of(model)
    given = {name: mode.from_tensor(tensor) for name, tensor in tensors_of(arrays).items()}
    with mode, torch.no_grad():
        leaves, tree = called(model, style, given)
    kinds = [str(leaf.dtype).removeprefix("torch.") for leaf in leaves]
    return [np.empty(tuple(leaf.shape), kind) for leaf, kind in zip(leaves, kinds)], tree


def check_recipes(recipes: Sequence[Recipe]) -> None:
    """Raises UsageError for what is not made of a model that lies in files."""
    for recipe in recipes:
        if recipe.steps or recipe.numerics.default not in WEIGHT_BITS:
            raise UsageError(
                f"{recipe} cannot be made of a model that stays in files",
                why="its weights are read one by one, and only weights in 8 or 4 bits are made so",
                fix="--weights 8 or --weights 4, and no steps; or leave --shards out",
            )
