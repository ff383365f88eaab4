"""Trials as JSON, for the journal and the result, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from karui.bench.stats import percentiles, thin
from karui.measurement import Check, Measurement, Quality, Ratio, Timing, Trial, Verification


def trial_json(trial: Trial, batch: int) -> dict[str, Any]:
    """One entry of ``trials`` in the result; ``batch`` rows a call turn latency into throughput."""
    found = trial.measurement
    timing = found.timing if found else None
    latency = percentiles(timing.samples_s) if timing else None
    return {
        "id": trial.id,
        "recipe": trial.recipe,
        "runtime": trial.runtime,
        "precision": trial.precision,
        "status": trial.status,
        "reason": trial.reason,
        "size_bytes": found.size_bytes if found else None,
        "size_compressed_bytes": found.size_compressed_bytes if found else None,
        "latency_s": latency,
        "throughput_per_s": batch / latency["p50"] if latency else None,
        "load_s": timing.load_s if timing else None,
        "first_call_s": timing.first_call_s if timing else None,
        "build_s": found.build_s if found else None,
        "peak_memory_bytes": timing.peak_memory_bytes if timing else None,
        "speedup": dict_or_none(found and found.speedup),
        "speedup_compiled": dict_or_none(found and found.speedup_compiled),
        "speedup_same_runtime": dict_or_none(found and found.speedup_same_runtime),
        "quality": dict_or_none(found and found.quality),
        "executed": dict(found.executed) if found else None,
        "verification": asdict(found.verification) if found else None,
        "openings": timing.openings if timing else None,
        "samples_s": thin(timing.samples_s) if timing else None,
        "log": trial.log,
        "artifact": trial.artifact,
    }


def dict_or_none(value: Any) -> dict[str, Any] | None:
    return asdict(value) if value else None


def journal_json(trial: Trial) -> dict[str, Any]:
    """Everything of a trial, raw samples included."""
    return asdict(trial)


def read_trial(facts: Mapping[str, Any]) -> Trial:
    """The inverse of ``journal_json``."""
    found = facts["measurement"]
    return Trial(**{**facts, "measurement": read_measurement(found) if found else None})


def read_measurement(facts: Mapping[str, Any]) -> Measurement:
    checks = tuple(Check(**check) for check in facts["verification"]["checks"])
    ratios = {
        key: Ratio(**facts[key]) if facts[key] else None
        for key in ("speedup", "speedup_compiled", "speedup_same_runtime")
    }
    parts = {
        "verification": Verification(**{**facts["verification"], "checks": checks}),
        "quality": read_quality(facts["quality"]),
        "timing": read_timing(facts["timing"]),
    }
    return Measurement(**{**facts, **ratios, **parts})


def read_quality(facts: Mapping[str, Any] | None) -> Quality | None:
    return Quality(**{**facts, "per_class": tuple(facts["per_class"])}) if facts else None


def read_timing(facts: Mapping[str, Any] | None) -> Timing | None:
    lists = ("samples_s", "rounds_s")
    return Timing(**{**facts, **{key: tuple(facts[key]) for key in lists}}) if facts else None
