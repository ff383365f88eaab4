"""Verification of a saved artifact: a converter's success proves nothing.

The artifact, open in a fresh process, is asked at batch 1, at the deployment batch and at the
largest batch; twice in a row; and its answers are compared with the original model and, for INT8,
with the same quantized graph computed literally (fake-quant). The task score decides afterwards. Where the
runtime cannot run, a reference interpreter may stand in for it; the status says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from karui.bench.candidate import Candidate
from karui.errors import Tampered
from karui.measurement import Check, Verification

if TYPE_CHECKING:
    from karui.data import Array

# Largest difference from the original, as a share of the output's scale. FP32 kernels reorder sums;
# half precisions keep 8 or 11 bits. INT8 is judged by the score, so only garbage is refused here.
CLOSE = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.2}
COSINE_TO_ORIGINAL = 0.7
COSINE_TO_REFERENCE = 0.99
COSINE_ACROSS_BATCHES = {"fp32": 0.9999, "int8_dynamic": 0.98}
FEW = 8


@dataclass(frozen=True)
class Expected:
    """What the original gave on the probe rows, and the fake-quant reference where there is one."""

    rows: Path
    count: int
    original: Sequence[Array]
    reference: Sequence[Array] | None = None


def verify(candidate: Candidate, expected: Expected, precision: str, batch: int) -> Verification:
    """All checks in order; later ones are left out once the answers have the wrong form."""
    signature = candidate.artifact.signature
    batches = sorted({1, batch, expected.count}) if signature.dynamic_batch else [signature.batch]
    chosen = {size: rows_for(size, expected.count, batches) for size in batches}
    answers, again = ask(candidate, expected.rows, chosen, batches[:2])
    wanted = {size: [output[chosen[size]] for output in expected.original] for size in batches}
    checks = [check_form(answers[size], wanted[size], size) for size in batches]
    if all(check.ok for check in checks):
        checks += [check_twice(again[size], answers[size], size) for size in again]
        checks += [check_original(answers[size], wanted[size], precision, size) for size in batches]
        checks += [
            check_batches(answers[batches[0]], answers[size], chosen, precision, size) for size in batches[1:]
        ]
        checks += check_reference(answers[batches[-1]], expected.reference, chosen[batches[-1]])
        checks.append(check_unchanged(candidate))
    status = candidate.verified_as if all(check.ok for check in checks) else "failed"
    return Verification(status, tuple(checks), candidate.stands_in)


def ask(
    candidate: Candidate, rows: Path, chosen: dict[int, list[int]], repeated: Sequence[int]
) -> tuple[dict[int, list[Array]], dict[int, list[Array]]]:
    """Answers for each batch size, and those of a second call straight after the first.

    Straight after: a just-in-time runtime may serve a size by another program, which rounds
    differently, once it has seen further sizes.
    """
    first, again = {}, {}
    for size, index in chosen.items():
        first[size] = candidate.outputs(rows, size, index)
        if size in repeated:
            again[size] = candidate.outputs(rows, size, index)
    return first, again


def rows_for(size: int, count: int, batches: Sequence[int]) -> list[int]:
    """The largest batch answers all rows; smaller ones a few, spread over all of them."""
    few = max(FEW, size)
    if size == batches[-1] or few >= count:
        return list(range(count))
    return [round(i * (count - 1) / (few - 1)) for i in range(few)]


def check_form(answers: Sequence[Array], wanted: Sequence[Array], size: int) -> Check:
    import numpy as np

    name = f"form at batch {size}"
    if len(answers) != len(wanted):
        return Check(name, False, f"{len(answers)} outputs instead of {len(wanted)}")
    for mine, theirs in zip(answers, wanted):
        if mine.shape[1:] != theirs.shape[1:]:
            return Check(name, False, f"shape {mine.shape[1:]} instead of {theirs.shape[1:]}")
        if mine.dtype.kind != theirs.dtype.kind:
            return Check(name, False, f"{mine.dtype} instead of {theirs.dtype}")
        if mine.dtype.kind == "f" and not np.isfinite(mine).all():
            return Check(name, False, "the outputs hold NaN or infinite values")
    return Check(name, True, "outputs, shapes and dtypes as the original's, all finite")


def check_twice(again: Sequence[Array], first: Sequence[Array], size: int) -> Check:
    import numpy as np

    same = all(np.array_equal(a, b) for a, b in zip(again, first))
    return Check(f"two calls at batch {size}", same, "bit-equal" if same else "the second answer differs")


def check_original(answers: Sequence[Array], wanted: Sequence[Array], precision: str, size: int) -> Check:
    name = f"close to the original at batch {size}"
    worst = max(distance(mine, theirs) for mine, theirs in zip(answers, wanted))
    least = min(cosine(mine, theirs) for mine, theirs in zip(answers, wanted))
    detail = f"largest difference {worst:.2g} of the scale, cosine {least:.5f}"
    if precision in CLOSE:
        return Check(name, worst <= CLOSE[precision], f"{detail} (limit {CLOSE[precision]:g})")
    return Check(name, least >= COSINE_TO_ORIGINAL, f"{detail} (limit {COSINE_TO_ORIGINAL})")


def check_batches(
    few: Sequence[Array], many: Sequence[Array], chosen: dict[int, list[int]], precision: str, size: int
) -> Check:
    """The same rows must give the same answers in small and in large company."""
    smallest = min(chosen)
    common = sorted({*chosen[smallest]} & {*chosen[size]})
    mine = [chosen[size].index(row) for row in common]
    theirs = [chosen[smallest].index(row) for row in common]
    limit = COSINE_ACROSS_BATCHES.get(precision, 0.995)
    least = min(cosine(a[mine], b[theirs]) for a, b in zip(many, few)) if common else 1.0
    detail = f"cosine {least:.5f} on {len(common)} rows (limit {limit})"
    return Check(f"batch {size} agrees with batch {smallest}", least >= limit, detail)


def check_reference(
    answers: Sequence[Array], reference: Sequence[Array] | None, rows: Sequence[int]
) -> list[Check]:
    if reference is None:
        return []
    least = min(row_cosine(mine, theirs[list(rows)]) for mine, theirs in zip(answers, reference))
    detail = f"5th percentile of the rows' cosine {least:.5f} (limit {COSINE_TO_REFERENCE})"
    return [Check("close to the fake-quant reference", least >= COSINE_TO_REFERENCE, detail)]


def check_unchanged(candidate: Candidate) -> Check:
    """Running must not write into the artifact (a kernel once accumulated into a parameter)."""
    try:
        candidate.check_files()
    except Tampered as error:
        return Check("artifact unchanged by running", False, error.why)
    return Check("artifact unchanged by running", True, "every file has its recorded SHA-256")


def distance(mine: Array, theirs: Array) -> float:
    """Largest absolute difference over the largest absolute value."""
    import numpy as np

    if not theirs.size:
        return 0.0
    gap = np.abs(mine.astype(np.float64) - theirs.astype(np.float64)).max()
    return float(gap / max(float(np.abs(theirs).max()), 1e-12))


def cosine(mine: Array, theirs: Array) -> float:
    """Cosine between the two arrays as flat vectors; 1 for two zero arrays."""
    import numpy as np

    a, b = mine.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float(not (a.any() or b.any()))


def row_cosine(mine: Array, theirs: Array) -> float:
    """5th percentile over samples of the cosine of each: a block of garbage rows shows here."""
    import numpy as np

    return float(np.percentile([cosine(one, other) for one, other in zip(mine, theirs)], 5))
