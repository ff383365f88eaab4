"""What is journalled comes back equal, whatever was measured."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from karui.measurement import Check, Measurement, Quality, Ratio, Timing, Trial, Verification
from karui.optimize.record import journal_json, read_trial, trial_json

numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**50)
words = st.text(max_size=8)
ratios = st.builds(Ratio, numbers, numbers, numbers, st.sampled_from(["faster", "slower", "baseline"]), words)
qualities = st.builds(
    Quality,
    numbers, numbers, numbers, numbers,
    st.sampled_from(["within", "over", "undecided", "baseline"]),
    counts,
    st.none() | numbers,
    st.none() | counts,
    st.lists(st.dictionaries(words, numbers | words, max_size=3), max_size=3).map(tuple),
)  # fmt: skip
samples = st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=5).map(tuple)
timings = st.builds(Timing, samples, samples, numbers, numbers, counts)
checks = st.lists(st.builds(Check, words, st.booleans(), words), max_size=3).map(tuple)
measurements = st.builds(
    Measurement,
    size_bytes=counts,
    size_compressed_bytes=counts,
    verification=st.builds(Verification, words, checks),
    quality=st.none() | qualities,
    timing=st.none() | timings,
    speedup=st.none() | ratios,
    speedup_compiled=st.none() | ratios,
    speedup_same_runtime=st.none() | ratios,
    executed=st.dictionaries(words, words | numbers | counts, max_size=3),
    build_s=numbers,
)
trials = st.builds(
    Trial,
    id=words,
    recipe=words,
    runtime=words,
    precision=words,
    status=st.sampled_from(["kept", "rejected", "failed"]),
    reason=words,
    complexity=st.integers(0, 20),
    measurement=st.none() | measurements,
    artifact=st.none() | words,
    log=st.none() | words,
)


@given(trials)
def test_a_trial_survives_the_journal(trial):
    line = json.dumps(journal_json(trial), ensure_ascii=False)
    assert "\n" not in line
    assert read_trial(json.loads(line)) == trial


@given(trials, st.integers(1, 64))
def test_a_trial_becomes_a_row_with_every_key(trial, batch):
    row = trial_json(trial, batch)
    wanted = {"id", "recipe", "runtime", "status", "reason", "size_bytes", "latency_s", "speedup",
              "speedup_same_runtime", "quality", "artifact"}  # fmt: skip
    assert wanted <= set(row)
    json.dumps(row)
