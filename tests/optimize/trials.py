"""Trials as a run would make them, from a few numbers."""

from __future__ import annotations

from karui.measurement import Check, Measurement, Quality, Ratio, Timing, Trial, Verification


def measured(
    latency_s=1e-3, ratio=2.0, drop=0.0, verdict="within", size=1000, speed="faster", checks_ok=True
) -> Measurement:
    checks = (Check("form at batch 1", checks_ok, "as wanted"),)
    return Measurement(
        size_bytes=size,
        size_compressed_bytes=size // 2,
        verification=Verification("verified on runtime" if checks_ok else "failed", checks),
        quality=Quality(0.9 - drop, drop, drop - 0.01, drop + 0.01, verdict, 100),
        timing=Timing((latency_s,) * 3, (latency_s,) * 3, 0.1, 0.2, 10_000),
        speedup=Ratio(ratio, ratio * 0.98, ratio * 1.02, speed, "torch_eager-fp32"),
    )


def trial(recipe="int8@onnxruntime", status="kept", complexity=2, **facts) -> Trial:
    precision, _, runtime = recipe.partition("@")
    return Trial(
        id=f"{runtime}-{precision}",
        recipe=recipe,
        runtime=runtime,
        precision=precision,
        status=status,
        reason="because",
        complexity=complexity,
        measurement=measured(**facts),
        artifact=f"trials/{runtime}-{precision}/artifact",
    )


BASE = trial(
    "fp32@torch_eager",
    complexity=0,
    latency_s=2e-3,
    ratio=1.0,
    verdict="baseline",
    size=4000,
    speed="baseline",
)
