"""What tools have made, in karui's bench: answers on all test samples, then time, in the same rounds."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.peers._build import ROW, read
from benchmarks.peers._given import MAX_DROP, THREADS, columns, task_of, test_of
from benchmarks.peers._registry import lines, tools, ways

from karui import host
from karui.artifact import MANIFEST, Artifact, load_artifact, save_artifact
from karui.bench.candidate import Candidate, Opened
from karui.bench.machine import Conditions
from karui.bench.rounds import Pace, session
from karui.data import save_arrays
from karui.errors import KaruiError, UsageError
from karui.graph.call import signature_of
from karui.process import Limits

SCORES, TIMES = "scores.json", "times.json"
EAGER = "torch.eager"
KARUI = "karui.defaults best"
CONDITIONS = Conditions(batch=1, threads=THREADS, limits=Limits())
FINAL = Pace(least=30, most=250, seconds=60.0, openings=5, most_openings=6)
TIMED_ROWS = 1


@dataclass(frozen=True)
class Entry:
    """One artifact that a way has made, or the way's failure. name: tool, way and which of its artifacts."""

    name: str
    row: Mapping[str, Any]
    home: Path
    word: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.home / self.row["made"][self.word])

    @property
    def score(self) -> dict[str, Any]:
        """Accuracy of the artifact's answers in percent, and its bytes; or the error."""
        kept = self.home / SCORES
        return read(kept).get(self.word, {}) if kept.is_file() else {}


def entries(runs: Path, task: str) -> list[Entry]:
    """All that has a row, in the order of the tools' names."""
    found = []
    for tool in tools():
        for way in ways(tool):
            home = runs / task / tool / way
            if not (home / ROW).is_file():
                continue
            row = read(home / ROW) | {"lines": lines(tool, way)}  # of the file as it is now
            words = row.get("made", {"": ""})
            found += [Entry(f"{tool}.{way} {word}".strip(), row, home, word) for word in words]
    return found


def score_all(runs: Path, task: str) -> None:
    """Score what has no score yet."""
    todo = [entry for entry in entries(runs, task) if "made" in entry.row and not entry.score]
    if not todo:
        return
    source = task_of(task)
    inputs, labels = test_of(source)
    signature, _ = signature_of(source.model, source.inputs, 1)
    names = [port.name for port in signature.inputs]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        rows = dict(zip(names, (tensor.numpy() for tensor in inputs)))
        save_arrays(rows, data / "rows")
        save_arrays({key: array[:TIMED_ROWS] for key, array in rows.items()}, data / "timing")
        for entry in todo:
            try:
                opened = as_artifact(entry, signature)
                found = scored(opened, data, labels.numpy())
            except KaruiError as error:
                found = {"error": error.line}
            keep_score(entry, found)


def keep_score(entry: Entry, found: dict[str, Any]) -> None:
    kept = entry.home / SCORES
    before = read(kept) if kept.is_file() else {}
    kept.write_text(json.dumps(before | {entry.word: found}, indent=1), encoding="utf-8")


def as_artifact(entry: Entry, signature: Any) -> Artifact:
    """The files of another tool with a manifest, so that the bench opens them; karui's have one already."""
    folder = entry.folder
    if not (folder / MANIFEST).is_file():
        if (folder / "model.xml").is_file():
            fit_openvino(folder, [port.name for port in signature.inputs])
        recipe = entry.row["recipe"]
        save_artifact(Artifact(folder, recipe, recipe.partition("@")[2], signature, THREADS))
    return load_artifact(folder)


def fit_openvino(folder: Path, names: Sequence[str]) -> None:
    """Inputs get the names of the model's arguments, nothing else changes; and the arithmetic that OpenVINO
    chooses itself on this machine is written down where the tool's user has chosen none.
    """
    import openvino as ov

    core = ov.Core()
    model = core.read_model(folder / "model.xml")
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    ov.serialize(model, folder / "named.xml", folder / "named.bin")
    del model
    for end in ("xml", "bin"):
        (folder / f"named.{end}").replace(folder / f"model.{end}")
    if not (folder / "openvino.json").is_file():
        chosen = core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        (folder / "openvino.json").write_text(json.dumps({"precision_hint": chosen}))


def scored(artifact: Artifact, data: Path, labels: Any) -> dict[str, Any]:
    home = data / "worker"
    shutil.rmtree(home, ignore_errors=True)
    with Opened() as opened:
        alive, failed = opened.again({"": Candidate(artifact, data, home, CONDITIONS)})
        for error in failed.values():
            raise error
        answers = alive[""].outputs(data / "rows", 1, list(range(len(labels))))
    right = answers[0].reshape(len(labels), -1).argmax(1) == labels
    return {
        "accuracy": 100 * float(np.mean(right)),
        "samples": len(labels),
        "size_bytes": artifact.size_bytes,
    }


def held(runs: Path, task: str) -> list[Entry]:
    """Those that lost at most the points allowed, and the baseline."""
    found = [entry for entry in entries(runs, task) if "accuracy" in entry.score]
    base = baseline(found)
    return [entry for entry in found if lost(entry, base) <= MAX_DROP + 1e-9]


def baseline(found: Sequence[Entry]) -> Entry:
    """Raises UsageError where it is not there."""
    for entry in found:
        if entry.name == EAGER and entry.score:
            return entry
    raise UsageError("the original model has no score yet", fix="python -m benchmarks.peers --build")


def lost(entry: Entry, base: Entry) -> float:
    """Points of accuracy."""
    return float(base.score["accuracy"] - entry.score["accuracy"])


def time_all(runs: Path, task: str, pace: Pace = FINAL) -> dict[str, Any]:
    """Ratios of all that held the accuracy, to eager and of karui's best to each; kept, and made once."""
    kept, found = runs / task / TIMES, held(runs, task)
    these = {entry.name: [entry.score["accuracy"], entry.score["size_bytes"]] for entry in found}
    if kept.is_file() and read(kept)["of"] == these:
        return read(kept)
    facts = {"of": these, "host": host.facts()} | timed(task, found, pace)
    kept.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def timed(task: str, found: Sequence[Entry], pace: Pace) -> dict[str, Any]:
    source = task_of(task)
    signature, _ = signature_of(source.model, source.inputs, 1)
    *inputs, _ = columns(source.confirm)
    first = {port.name: tensor[:TIMED_ROWS].numpy() for port, tensor in zip(signature.inputs, inputs)}
    best = [entry.name for entry in found if entry.name.startswith("karui.")]
    pairs = [(EAGER, entry.name) for entry in found if entry.name != EAGER]
    pairs += [(entry.name, mine) for mine in best for entry in found if entry.name not in (EAGER, mine)]
    with tempfile.TemporaryDirectory() as name, Opened() as opened:
        data = Path(name)
        save_arrays(first, data / "timing")

        def fresh() -> dict[str, Candidate]:
            return {
                entry.name: Candidate(load_artifact(entry.folder), data, data / str(i), CONDITIONS)
                for i, entry in enumerate(found)
            }

        rounds = session(lambda: opened.again(fresh()), pairs, pace, seed=0)
    ratios: dict[str, dict[str, Any]] = {}
    for base, other in pairs:
        if not {base, other} & set(rounds.failed):
            ratio = rounds.ratio(base, other, 0)
            ratios.setdefault(other, {})[base] = [ratio.ratio, ratio.low, ratio.high, ratio.verdict]
    p50 = {key: float(np.median(samples)) for key, samples in rounds.samples_s.items() if samples}
    failed = {key: error.line for key, error in rounds.failed.items()}
    return {"ratios": ratios, "p50_s": p50, "failed": failed, "rounds": sum(map(len, rounds.blocks_s[EAGER]))}
