"""Verification finds what silently went wrong: garbage rows, swapped outputs, NaN, answers that change."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from arrays import WEIGHT, make_artifact
from hypothesis import given
from hypothesis import strategies as st

from karui.artifact import Artifact
from karui.bench.machine import HERE
from karui.bench.verify import Expected, rows_for, verify

ROWS = 64


@dataclass
class Spoiled:
    """Answers right, then hands the answer to ``spoil(answer, batch, call)``."""

    artifact: Artifact
    x: np.ndarray
    spoil: object = None
    calls: int = 0
    stands_in: str = ""
    verified_as: str = "verified on runtime"

    def outputs(self, rows, batch, index):
        self.calls += 1
        right = self.x[list(index)] @ WEIGHT
        spoiled = self.spoil(right.copy(), batch, self.calls) if self.spoil else right
        return spoiled if isinstance(spoiled, list) else [spoiled]

    def check_files(self):
        HERE.check(self.artifact)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return make_artifact(tmp_path_factory.mktemp("verify") / "artifact")


@pytest.fixture
def check(artifact):
    x = np.random.default_rng(2).standard_normal((ROWS, 6)).astype(np.float32)

    def run(spoil=None, precision="fp32", batch=4, reference=None, artifact=artifact, standing=()):
        candidate = Spoiled(artifact, x, spoil, 0, *standing)
        expected = Expected(artifact.folder, ROWS, [x @ WEIGHT], reference and [reference(x @ WEIGHT)])
        return verify(candidate, expected, precision, batch)

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "int8_dynamic"])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_right_answers_pass(check, precision, batch):
    found = check(precision=precision, batch=batch)
    assert (found.status, found.failure) == ("verified on runtime", "")
    sizes = sorted({1, batch, ROWS})
    names = [one.name for one in found.checks]
    assert [name for name in names if name.startswith("form")] == [f"form at batch {n}" for n in sizes]


@pytest.mark.parametrize("word", ["verified by reference", "rule-checked"])
def test_status_words_are_not_merged(check, word):
    standing = ("it runs elsewhere only", word)
    found = check(standing=standing)
    assert (found.status, found.stands_in) == (word, "it runs elsewhere only")
    found = check(spoil=lambda answer, *_: 0 * answer, standing=standing)
    assert found.status == "failed" and "close to the original" in found.failure


def garbage_from(size):
    """Like a kernel that fills the second half of every batch of ``size`` rows or more with garbage."""

    def spoil(answer, batch, call):
        if batch >= size:
            answer[len(answer) // 2 :] = np.random.default_rng(3).standard_normal(
                answer[len(answer) // 2 :].shape
            )
        return answer

    return spoil


SPOILED = {
    "NaN": (lambda y, b, c: y * np.nan, "fp32", "NaN or infinite"),
    "infinite once": (
        lambda y, b, c: np.where(np.arange(len(y))[:, None] == 3, np.inf, y),
        "fp32",
        "NaN or infinite",
    ),
    "one output too many": (lambda y, b, c: [y, y], "fp32", "2 outputs instead of 1"),
    "another shape": (lambda y, b, c: y[:, :2], "fp32", "shape (2,) instead of (3,)"),
    "another kind": (lambda y, b, c: y.astype(np.int64), "fp32", "int64 instead of float32"),
    "slightly off": (lambda y, b, c: y + 0.01 * np.abs(y).max(), "fp32", "close to the original"),
    "columns swapped": (lambda y, b, c: y[:, ::-1], "int8", "close to the original"),
    "rows swapped": (lambda y, b, c: y[::-1], "int8", "close to the original"),
    "zeros": (lambda y, b, c: y * 0, "int8", "close to the original"),
    "another answer each time": (lambda y, b, c: y + 1e-6 * c, "fp32", "the second answer differs"),
    "garbage in the largest batch": (garbage_from(64), "fp32", "at batch 64"),
    "garbage in the largest batch, INT8": (garbage_from(64), "int8", "at batch 64"),
    "garbage in the deployment batch": (garbage_from(4), "int8", "at batch 4"),
    "only the first row is right": (
        lambda y, b, c: y if b == 1 else np.repeat(y[:1], len(y), 0),
        "int8_dynamic",
        "at batch 4",
    ),
}


@pytest.mark.gate
@pytest.mark.parametrize("kind", SPOILED)
def test_wrong_answers_are_found(check, kind):
    spoil, precision, words = SPOILED[kind]
    found = check(spoil, precision)
    assert found.status == "failed"
    assert any(words in f"{one.name}: {one.detail}" for one in found.checks if not one.ok), found


def test_a_few_garbage_rows_show_against_the_fake_quant_reference(check):
    def spoil(answer, batch, call):
        answer[: len(answer) // 8] *= -1
        return answer

    found = check(spoil, "int8", reference=lambda y: y)
    assert "close to the fake-quant reference" in [one.name for one in found.checks if not one.ok]
    noisy = check(lambda y, b, c: y + 0.02 * np.roll(y, 1), "int8", reference=lambda y: y)
    assert noisy.failure == ""


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1, 1))
def test_fp32_is_judged_relative_to_the_scale(scale, shift):
    from karui.bench.verify import distance

    wanted = np.linspace(-1, 1, 50).reshape(10, 5) * scale
    assert distance(wanted + shift * 1e-4 * scale, wanted) == pytest.approx(
        abs(shift) * 1e-4, rel=1e-3, abs=1e-9
    )


def test_running_must_not_change_the_files(tmp_path, check):
    made = make_artifact(tmp_path / "artifact")

    def spoil(answer, batch, call):
        (made.folder / "model.onnx").write_bytes(b"written into")
        return answer

    found = check(spoil, artifact=made)
    assert found.failure == "artifact unchanged by running: model.onnx was changed"


def test_a_fixed_batch_is_only_asked_at_that_batch(check, artifact):
    fixed = replace(artifact, signature=replace(artifact.signature, dynamic_batch=False, batch=4))
    found = check(artifact=fixed)
    assert [one.name for one in found.checks if one.name.startswith("form")] == ["form at batch 4"]
    assert found.status == "verified on runtime"


@given(count=st.integers(1, 300), batch=st.integers(1, 80))
def test_rows_are_valid_spread_and_all_in_the_largest(count, batch):
    batches = sorted({1, batch, count})
    for size in batches:
        rows = rows_for(size, count, batches)
        assert set(rows) <= set(range(count))
        assert rows == sorted(rows)
        assert rows[0] == 0
        assert rows[-1] == count - 1
    assert rows_for(batches[-1], count, batches) == list(range(count))
