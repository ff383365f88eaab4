"""INT8 on real tasks: what karui's table keeps of the accuracy, beside each runtime's own quantizer.

    python -m benchmarks.real_int8 --make                 (builds and scores; kept task after task)
    python -m benchmarks.real_int8 > benchmarks/results/real_int8.md
    python -m benchmarks.real_int8 --times --tasks fashion photos minilm      (on a quiet machine)

Every artifact answers the whole test set itself. Needs ``make data``, the checkpoint ``fashion`` and
``python -m benchmarks.real.packages``.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.int8 import SIDE_BY_SIDE
from benchmarks.networks.tasks import task_at

import karui
from karui.artifact import Artifact, load_artifact
from karui.bench.compare import compare
from karui.bench.machine import Conditions
from karui.data import Split, items, read_split
from karui.graph.call import run_all, signature_of
from karui.graph.onnx import path_of
from karui.score import Score, agreement, evaluate, resolve
from karui.task import Task

HOME = Path("karui-runs/real_int8")
ORT, OV = "int8@onnxruntime", "int8@openvino"
PEERS = {f"{ORT}:quantizer=onnxruntime": "ONNX Runtime's own", f"{OV}:quantizer=nncf": "NNCF"}
BOTH = ("fp32@onnxruntime", ORT, OV, *PEERS)
DYNAMIC = "int8_dynamic@onnxruntime"
CORRECTED = "fold_norm + round_weights:method=gptq + correct_bias"
FLOAT_LSTM = "int8_dynamic[lstm.weight_hh_l0=fp32]@onnxruntime"
TASKS = {
    "fashion": (
        "benchmarks.networks.tasks:fashion",
        (*BOTH, f"correct_bias + {ORT}", f"correct_bias + {OV}"),
    ),
    "photos": ("benchmarks.real.photos:task", (*BOTH, f"correct_bias + {ORT}", f"correct_bias + {OV}")),
    "minilm": ("benchmarks.real.minilm:task", BOTH),
    "vowels": ("benchmarks.real.vowels:task", (*BOTH, DYNAMIC)),
    "efficientnet": (
        "benchmarks.real.efficientnet:task",
        (*BOTH, f"{ORT}:per_channel=false", f"{CORRECTED} + {ORT}", f"{CORRECTED} + {OV}"),
    ),
    "voices": ("benchmarks.real.voices:task", ("fp32@onnxruntime", DYNAMIC, FLOAT_LSTM)),
}
ONE_SPLIT = ("voices",)  # whose other split is another task: only the first is scored
COLUMNS = (
    "task", "how", "score", "points lost", "beside the better peer", "agreement with FP32", "MACs in INT8",
    "runs",
)  # fmt: skip
ROWS = 32  # of a call


@dataclass(frozen=True)
class Test:
    """What is asked, and what the float model answers."""

    split: Split
    score: Score
    answers: list[np.ndarray]

    def outcomes(self, outputs: list[np.ndarray]) -> np.ndarray:
        targets = self.answers[0] if self.score.reference else self.split.targets
        return evaluate(self.score, outputs[0], targets, len(self.split))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--make", action="store_true", help="build and score what is not there yet")
    parser.add_argument("--times", action="store_true", help="time karui's beside its peer's, pair by pair")
    args = parser.parse_args()
    if args.make:
        for name in args.tasks:
            make(name)
    elif args.times:
        print("# INT8 on real tasks: latency of the peer over karui's\n")
        print("| task | runtime | batch | times as fast |\n|---|---|--:|--:|")
        for name in args.tasks:
            times(name)
    else:
        show(args.tasks)


def make(name: str) -> None:
    """Build the artifacts of one task and keep its rows."""
    home, (place, recipes) = HOME / name, TASKS[name]
    if (home / "outcomes.npz").is_file():
        return
    task = task_at(place)
    if not (home / "built.json").is_file():
        shutil.rmtree(home, ignore_errors=True)
        built = karui.quantize(task, recipes, home)
        (home / "built.json").write_text(json.dumps(built, default=str), encoding="utf-8")
    built = json.loads((home / "built.json").read_text(encoding="utf-8"))
    test = test_of(task, whole=name not in ONE_SPLIT)
    layers = next(
        (one["executed"]["layers"] for one in built if "artifact" in one and "layers" in one["executed"]), []
    )
    rows, outcomes = [], {}
    for one in built:
        found = row(name, one, test, layers)
        if "outcomes" in found:
            outcomes[one["recipe"]] = found.pop("outcomes")
        rows.append(found)
    np.savez(home / "outcomes.npz", **outcomes)
    (home / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def test_of(task: Task, *, whole: bool) -> Test:
    signature, _ = signature_of(task.model, task.inputs, 1)
    names = [port.name for port in signature.inputs]
    parts = [read_split(list(items(data, "test")), names, "test") for data in (task.select, task.confirm)]
    split = joined(parts) if whole else parts[0]
    return Test(split, resolve(task.score), run_all(task.model, signature.style, split.inputs))


def joined(parts: list[Split]) -> Split:
    inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    known = [part.targets for part in parts]
    return Split(inputs, None if known[0] is None else np.concatenate(known))


def row(name: str, one: Mapping[str, Any], test: Test, layers: list[Any]) -> dict[str, Any]:
    found = {"task": name, "recipe": one["recipe"]}
    if "artifact" not in one:
        return found | {"failure": one["failure"]}
    artifact = load_artifact(Path(one["artifact"]))
    outputs = answers(artifact, test.split)
    before, after = test.outcomes(test.answers), test.outcomes(outputs)
    executed = one["executed"]
    return found | {
        "artifact": one["artifact"], "n": len(test.split),
        "score": float(after.mean()),
        "lost": float(before.mean() - after.mean()),
        "outcomes": after,
        "agreement": likeness(test.score, outputs, test.answers),
        "macs": executed["int8_macs"] if "int8_macs" in executed else share(artifact, layers),
        "runs": executed["detail"],
        "heard": heard(executed),
    }  # fmt: skip


def likeness(score: Score, outputs: list[np.ndarray], answers: list[np.ndarray]) -> float:
    """Share of equal classes; of embeddings the mean cosine."""
    if score.name != "1 - EER":
        return float(agreement(outputs[0], answers[0]).mean())
    lengths = np.linalg.norm(outputs[0], axis=1) * np.linalg.norm(answers[0], axis=1)
    return float(((outputs[0] * answers[0]).sum(1) / lengths).mean())


def beside(recipe: str, outcomes: Mapping[str, np.ndarray]) -> str:
    """Points more than the better of the peers gets of the same samples, with the 95 % interval."""
    peers = [outcomes[peer] for peer in PEERS if peer in outcomes]
    mine = outcomes.get(recipe)
    if mine is None or recipe in PEERS or recipe.startswith("fp32") or not mine.ndim or not peers:
        return ""
    gain = 100 * (mine - max(peers, key=lambda one: one.mean()))
    half = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
    return f"{gain.mean():+.2f} [{gain.mean() - half:+.2f}, {gain.mean() + half:+.2f}]"


def answers(artifact: Artifact, split: Split) -> list[np.ndarray]:
    call, count = karui.load(artifact), len(split)
    parts = []
    for start in range(0, count, ROWS):
        given = {
            key: np.ascontiguousarray(value[start : start + ROWS]) for key, value in split.inputs.items()
        }
        found = call(given)
        parts.append(found[0] if isinstance(found, (tuple, list)) else found)
    return [np.concatenate([np.asarray(part) for part in parts])]


def share(artifact: Artifact, layers: list[Any]) -> float | None:
    """Of the layers' multiplications, those in INT8 kernels of a peer's file, told by the kernels' names."""
    if not layers or not artifact.recipe.startswith("int8"):
        return None
    done = {path_of(name) for name in int8_names(artifact)}
    return sum(one["macs"] for one in layers if {one["module"], one["layer"]} & done)


def int8_names(artifact: Artifact) -> list[str]:
    if artifact.runtime == "onnxruntime":
        from karui.graph.ort_build import INT8_KERNELS, optimised

        with tempfile.TemporaryDirectory() as scratch:
            graph = optimised(artifact.folder / "model.onnx", Path(scratch), everything=False)
        return [node.name for node in graph.node if node.op_type in INT8_KERNELS]
    from karui.graph.ov_kernels import INT8, kernels_of, products_of
    from karui.runtimes.openvino import compiled_from, ov

    products = products_of(ov.Core().read_model(artifact.folder / "model.xml"))
    kernels = kernels_of(compiled_from(artifact.folder, 1), products)
    return [name for kernel in kernels if kernel.precision in INT8 for name in kernel.names]


def heard(executed: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The three layers that disturb most, with their decibels."""
    told = [
        (one["layer"], one["sqnr_db"]) for one in executed.get("layers", ()) if one["sqnr_db"] is not None
    ]
    return sorted(told, key=lambda one: one[1])[:3]


def show(names: list[str]) -> None:
    print("# INT8 on real tasks\n")
    print(
        "Scores of each artifact's own answers on the whole test set, and what the model in FP32 "
        "has more (points lost). Beside the better of the runtimes' own quantizers: points more on the same "
        "samples, with the 95 % interval of the paired differences. Share of the multiplications in "
        "INT8 kernels, counted in the runtime's own graph: of convolutions and linear layers, in dynamic "
        "INT8 of LSTMs too. Agreement: share of equal classes; of voices the mean cosine.\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|{'--:|' * 5}---|")
    loud = []
    for name in names:
        path = HOME / name / "rows.json"
        if not path.is_file():
            continue
        outcomes = np.load(path.with_name("outcomes.npz"))
        for one in json.loads(path.read_text(encoding="utf-8")):
            print(told(one, beside(one["recipe"], outcomes)))
            if one.get("heard"):
                words = ", ".join(f"`{layer}` {decibels:.1f} dB" for layer, decibels in one["heard"])
                loud.append(f"- {name}, `{one['recipe']}`: {words}")
    print("\nLayers whose rounding alone disturbs most (signal to noise at the answer):\n")
    print("\n".join(loud))


def told(one: Mapping[str, Any], gain: str) -> str:
    how = f"`{one['recipe']}`" + (f" ({PEERS[one['recipe']]})" if one["recipe"] in PEERS else "")
    if "failure" in one:
        return f"| {one['task']} | {how} | {one['failure']} |" + " |" * (len(COLUMNS) - 3)
    cells = [
        f"{100 * one['score']:.2f}", f"{100 * one['lost']:+.2f}",
        gain,
        f"{100 * one['agreement']:.2f}", "" if one["macs"] is None else f"{one['macs']:.1%}", one["runs"],
    ]  # fmt: skip
    return f"| {one['task']} (n={one['n']:,}) | {how} | {' | '.join(cells)} |"


def times(name: str) -> None:
    rows = json.loads((HOME / name / "rows.json").read_text(encoding="utf-8"))
    homes = {one["recipe"]: Path(one["artifact"]) for one in rows if "artifact" in one}
    for mine, other in zip((ORT, OV), PEERS, strict=True):
        for batch in (1, 32) if mine in homes and other in homes else ():
            found = compare([homes[other], homes[mine]], Conditions(batch), SIDE_BY_SIDE)[1]["speedup"]
            said = f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
            print(f"| {name} | {mine.partition('@')[2]} | {batch} | {said} |", flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
