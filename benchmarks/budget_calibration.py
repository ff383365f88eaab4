"""How often "within" is declared when the true drop is exactly the budget: at most 5 % is allowed.

    python benchmarks/budget_calibration.py > benchmarks/results/budget_calibration.md

Paired outcomes of original and candidate are drawn 10,000 times for each combination of sample size,
budget and share of samples on which the two differ (from the least possible, all of them losses).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from karui.budget import paired_bound

DRAWS = 10_000
SIZES = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
BUDGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
TIMES = (1.0, 1.2, 2.0, 5.0, 20.0)
LARGEST_SHARE = 0.2


def cases() -> Iterator[tuple[int, float, float]]:
    """(samples, budget, share of samples that differ)."""
    for size in SIZES:
        for budget in BUDGETS:
            for times in TIMES:
                if budget * times <= LARGEST_SHARE:
                    yield size, budget, budget * times


def size_of_test(size: int, budget: float, share: float, bound=paired_bound, seed: int = 0) -> float:
    """Share of draws in which ``bound`` says "within" at a true drop of exactly ``budget``."""
    gains = (share - budget) / 2
    draws = np.random.default_rng(seed).multinomial(size, [gains + budget, gains, 1 - share], size=DRAWS)
    counts, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    within = [bound(int(lost), int(won), size, 1, 0.05) <= budget for lost, won in counts]
    return float(times[within].sum() / DRAWS)


def main() -> None:
    found = [(size_of_test(*case), *case) for case in cases()]
    worst = max(found)
    print('# "Within" at a drop of exactly the budget\n')
    print(f"{len(found)} combinations, {DRAWS:,} draws each. Worst: {worst[0]:.2%}; allowed: 5 %.\n")
    print("| samples | budget, points | differing samples | declared within |")
    print("|---|---|---|---|")
    for share_within, size, budget, share in found:
        print(f"| {size} | {budget * 100:.1f} | {share:.2%} | {share_within:.2%} |")


if __name__ == "__main__":
    main()
