"""Results as `karui optimize` writes them, made up but plausible: one full, and its odd cousins."""

from __future__ import annotations

import copy
import random
from typing import Any

EAGER = "torch_eager-fp32"
CLASSES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
BEFORE = (0.86, 0.985, 0.871, 0.918, 0.862, 0.979, 0.741, 0.965, 0.986, 0.961)
AFTER = (0.86, 0.985, 0.859, 0.918, 0.868, 0.979, 0.735, 0.965, 0.986, 0.955)
KIB, MS = 1024, 1e-3

# recipe, status, reason, KiB, p50 ms, same-runtime fp32 id, drop (share), drop verdict
ROWS: tuple[tuple[str, str, str, float, float, str, float, str], ...] = (
    ("fp32@torch_eager", "kept", "the original", 311, 2.02, "", 0.0, "baseline"),
    ("fp32@torch_compile", "kept", "", 311, 1.21, "torch_compile-fp32", 0.0, "within"),
    ("bf16@torch_compile", "rejected", "slower than fp32@torch_compile", 158, 1.88,
     "torch_compile-fp32", 0.0006, "within"),
    ("fp32@torchscript", "kept", "", 322, 1.52, "torchscript-fp32", 0.0, "within"),
    ("fp32@aot_inductor", "kept", "", 402, 0.84, "aot_inductor-fp32", 0.0, "within"),
    ("int8@aot_inductor", "rejected", "over budget: 2.35 points lost, 0.5 allowed", 131, 0.79,
     "aot_inductor-fp32", 0.0235, "over"),
    ("fp32@onnxruntime", "kept", "", 309, 0.396, "onnxruntime-fp32", 0.0, "within"),
    ("fp16@onnxruntime", "rejected", "slower than fp32@onnxruntime", 157, 0.583,
     "onnxruntime-fp32", 0.0, "within"),
    ("int8_dynamic@onnxruntime", "rejected", "slower than fp32@onnxruntime", 96, 0.702,
     "onnxruntime-fp32", 0.0024, "undecided"),
    ("int8@onnxruntime", "kept", "", 88, 0.217, "onnxruntime-fp32", 0.0012, "within"),
    ("fp32@openvino", "kept", "", 318, 0.562, "openvino-fp32", 0.0, "within"),
    ("bf16@openvino", "failed", "", 0, 0.0, "", 0.0, ""),
    ("int8@openvino", "kept", "", 101, 0.393, "openvino-fp32", 0.0018, "within"),
    ("int8[head=fp32]@openvino", "rejected",
     "undecided: 0.40 points lost, interval reaches 0.71; about 1,900 more samples", 113, 0.412,
     "openvino-fp32", 0.0040, "undecided"),
)  # fmt: skip


def full() -> dict[str, Any]:
    """Fourteen trials, four refused; best is INT8 in ONNX Runtime."""
    return {
        "schema": "karui.result/1", "karui": "0.1.0", "created": "2026-03-14T09:26:53Z",
        "command": "karui optimize examples/fashion/task.py:task --max-drop 0.5pt --out run",
        "seed": 0, "duration_s": 83.1,
        "task": task(), "target": target(), "host": host(), "baseline": EAGER,
        "best": "onnxruntime-int8", "best_effort": None,
        "budget": {"max_drop": 0.5, "unit": "points", "max_latency_s": None,
                   "max_size_bytes": 1 << 20, "time_s": 1200, "allowed": 0.005},
        "verdict": {
            "exit_code": 0,
            "headline": "onnxruntime int8 is 9.3x faster and 3.5x smaller, within 0.5 points",
            "detail": "5.1x comes from leaving eager PyTorch for ONNX Runtime, 1.8x more from INT8.",
        },
        "confirm": {"trial": "onnxruntime-int8", "baseline_value": 0.9141,
                    "quality": quality(0.0016, "within", 850, 0.9141),
                    "looks": [{"trial": "onnxruntime-int8", "verdict": "within"}]},
        "pareto": ["onnxruntime-fp32", "onnxruntime-int8"],
        "trials": [trial(i, row) for i, row in enumerate(ROWS)],
        "refused": refused(), "warnings": ["calibrate was drawn from the training data: 300 samples"],
    }  # fmt: skip


def nothing_met() -> dict[str, Any]:
    """The budget was too tight for all: the original is kept, the best effort shown."""
    result = full()
    for entry in result["trials"][1:]:
        if entry["status"] == "kept":
            entry.update(status="rejected", reason="0.217 ms a call, 0.1 ms allowed")
    result["budget"]["max_latency_s"] = 0.1 * MS
    result.update(best=None, best_effort="onnxruntime-int8", confirm=None)
    result["verdict"] = {
        "exit_code": 3,
        "headline": "Nothing met the budget; the original is kept",
        "detail": "Closest: int8@onnxruntime at 0.217 ms, 2.2 times the 0.1 ms allowed.",
    }
    return result


def minimal() -> dict[str, Any]:
    """Every field of the trials is null, and most others are missing."""
    keys = list(full()["trials"][0])
    return {
        "schema": "karui.result/1",
        "trials": [dict.fromkeys(keys), {"id": "x", "status": "failed"}],
        "baseline": None,
        "best": None,
    }


def unlabelled() -> dict[str, Any]:
    """No labels: the original's own answers are the reference, so its score is 1."""
    result = full()
    result["task"].update(score="agreement", labels=False)
    for entry in result["trials"]:
        if entry["quality"]:
            entry["quality"].update(value=1 - entry["quality"]["drop"], per_class=None)
    result["confirm"].update(baseline_value=1.0, quality=quality(0.0047, "within", 850, 1.0))
    return result


def regression() -> dict[str, Any]:
    """A score where lower is better, with a relative budget."""
    result = full()
    result["task"].update(score="mse", higher_is_better=False, share=False, classes=None)
    result["budget"].update(max_drop=0.02, unit="relative", allowed=0.02 * 0.0214)
    result["verdict"]["headline"] = "onnxruntime int8 is 9.3x faster and 3.5x smaller, within 2 %"
    for entry in result["trials"]:
        found = entry["quality"]
        if found:
            drop = found["drop"] * 0.1
            half = 1e-4 if drop else 0.0
            found.update(value=0.0214 + drop, drop=drop, low=drop - half, high=drop + half)
            found.update(per_class=None)
    result["confirm"].update(baseline_value=0.0214)
    result["confirm"]["quality"].update(value=0.02152, drop=0.00012, low=-1e-5, high=0.00025)
    return result


def hostile(text: str) -> dict[str, Any]:
    """The full result with every free text replaced."""
    result: dict[str, Any] = replaced(full(), text)
    return result


def replaced(value: Any, text: str) -> Any:
    """Ids and status words stay, so that the result still hangs together."""
    kept = {"id", "best", "baseline", "against", "status", "pareto", "trial", "score", "unit"}
    if isinstance(value, dict):
        return {k: v if k in kept else replaced(v, text) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(item, text) for item in value]
    return text if isinstance(value, str) else copy.deepcopy(value)


def trial(index: int, row: tuple[str, str, str, float, float, str, float, str]) -> dict[str, Any]:
    recipe, status, reason, kib, p50_ms, same, drop, verdict = row
    numerics, runtime = recipe.split("@")
    name = f"{runtime}-{numerics.replace('[head=fp32]', '-head')}"
    entry: dict[str, Any] = {
        "id": name, "recipe": recipe, "runtime": runtime, "precision": numerics.split("[")[0],
        "status": status, "reason": reason, "log": f"trials/{name}/worker.log",
        "artifact": f"trials/{name}/artifact", "samples_s": [],
    }  # fmt: skip
    if status == "failed":
        why = "the worker was killed by signal 11 (segmentation fault) at batch 64"
        entry.update(reason=why, artifact=None, quality=None, speedup=None, latency_s=None)
        entry.update(speedup_same_runtime=None, size_bytes=None, verification=None, executed=None)
        return entry
    return entry | measured(index, name, kib, p50_ms, same) | judged(name, drop, verdict)


def measured(index: int, name: str, kib: float, p50_ms: float, same: str) -> dict[str, Any]:
    random_ = random.Random(index)
    samples = [p50_ms * MS * random_.lognormvariate(0, 0.06) for _ in range(196)]
    samples += [p50_ms * MS * random_.uniform(1.4, 2.6) for _ in range(4)]
    p50 = sorted(samples)[100]
    p50s = {f"{r[0].split('@')[1]}-{r[0].split('@')[0]}": r[4] for r in ROWS}
    return {
        "size_bytes": round(kib * KIB), "size_compressed_bytes": round(kib * KIB * 0.91),
        "latency_s": {"p50": p50, "p90": sorted(samples)[180], "p99": None, "n": 2400},
        "throughput_per_s": 1 / p50, "load_s": 0.05 + 0.01 * index, "first_call_s": 0.004,
        "build_s": 1.3, "peak_memory_bytes": 180 << 20, "samples_s": samples,
        "speedup": ratio(2.02 / p50_ms, EAGER, name),
        "speedup_compiled": ratio(1.21 / p50_ms, "torch_compile-fp32", name),
        "speedup_same_runtime": ratio(p50s[same] / p50_ms, same, name) if same else None,
        "executed": {"precision": name.split("-")[1], "detail": "QLinearConv x7, QGemm x1"
                     if name == "onnxruntime-int8" else ""},
    }  # fmt: skip


def ratio(value: float, against: str, name: str) -> dict[str, Any]:
    word = "faster" if value > 1.02 else "slower" if value < 0.98 else "no measurable difference"
    word = "baseline" if against == name else word
    return {"ratio": value, "low": value * 0.983, "high": value * 1.019, "verdict": word,
            "against": against}  # fmt: skip


def judged(name: str, drop: float, verdict: str) -> dict[str, Any]:
    found = quality(drop, verdict, 850, 0.9141)
    if name == "onnxruntime-int8":
        found["per_class"] = [
            {"class": c, "before": b, "after": a, "n": 85}
            for c, b, a in zip(CLASSES, BEFORE, AFTER, strict=True)
        ]
    checks = [
        {"name": "fresh process", "ok": True, "detail": "batch 1, 1 and 64"},
        {"name": "two equal calls", "ok": True, "detail": "bit-equal"},
        {"name": "against eager FP32", "ok": True, "detail": "largest difference 0.31 on a scale of 14.2"},
        {"name": "against fake-quant", "ok": True, "detail": "largest difference 0.02"},
        {"name": "source state dict", "ok": True, "detail": "unchanged"},
    ]
    return {"quality": found, "verification": {"status": "verified on runtime", "checks": checks}}


def quality(drop: float, verdict: str, n: int, base: float) -> dict[str, Any]:
    half = 0.0 if drop == 0 else 0.0018 + drop * 0.3
    return {"value": base - drop, "drop": drop, "low": drop - half, "high": drop + half,
            "verdict": verdict, "agreement": 1 - 2.5 * drop, "n": n, "per_class": None,
            "more_samples": 1900 if verdict == "undecided" else None}  # fmt: skip


def task() -> dict[str, Any]:
    return {
        "name": "fashion-resnet", "model": "SmallResNet", "score": "top1",
        "higher_is_better": True, "share": True, "labels": True,
        "splits": {"calibrate": 300, "select": 850, "confirm": 850},
        "notes": ["one validation set was given: split into select and confirm, seed 0"],
        "parameters": 77_754, "macs": 12_345_678, "sparsity": 0.0, "size_bytes": 318_464,
        "classes": list(CLASSES),
        "inputs": [{"name": "input", "dtype": "float32", "shape": [None, 1, 28, 28]}],
        "outputs": [{"name": "output", "dtype": "float32", "shape": [None, 10]}],
    }  # fmt: skip


def target() -> dict[str, Any]:
    runtimes = ["torch_eager", "torch_compile", "torchscript", "aot_inductor", "onnxruntime", "openvino"]
    return {"name": "cpu", "runtimes": runtimes, "batch": 1, "threads": 1}


def host() -> dict[str, Any]:
    return {
        "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 2,
        "flags": ["avx2", "avx512f", "avx512_vnni", "amx_int8"], "memory_bytes": 16 << 30,
        "os": "Linux 6.1 x86_64", "python": "3.11.7", "governor": "unknown",
        "load_average": [0.42, 0.55, 0.61],
        "versions": {"torch": "2.13.0", "onnxruntime": "1.27.0", "openvino": "2026.2.0", "numpy": "2.4.1"},
        "noise": {"spread": 0.061, "drift": 0.004},
        "warnings": ["another process used 38 % of one core while timing; intervals are wider for it"],
    }  # fmt: skip


def refused() -> list[dict[str, Any]]:
    return [
        {"recipe": "fp16@torch_eager", "runtime": "torch_eager",
         "reason": "this CPU has no FP16 arithmetic; PyTorch would emulate it"},
        {"recipe": "int8@torchscript", "runtime": "torchscript",
         "reason": "TorchScript has no INT8 of its own"},
        {"recipe": "int8_dynamic@openvino", "runtime": "openvino",
         "reason": "OpenVINO has no dynamic INT8 for convolutions"},
        {"recipe": "fp32@executorch", "runtime": "executorch",
         "reason": "not installed: pip install 'karui[executorch]'"},
    ]  # fmt: skip
