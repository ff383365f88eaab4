"""How often "within" is declared when the true drop is exactly the budget: at most 5 % is allowed.

    python benchmarks/budget_calibration.py > benchmarks/results/budget_calibration.md

Paired outcomes of original and candidate are drawn 10,000 times for each combination of sample size,
budget and share of samples on which the two differ (from the least possible, all of them losses).
Then the same for outcomes that are errors without bounds, for information: no judge can hold a
level for all of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from karui.budget import mean_bound, surely_below

Case = tuple[int, float, float]
DRAWS = 10_000
SIZES = (100, 150, 200, 300, 500, 850, 1000, 2000, 5000, 10_000, 20_000)
BUDGETS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05)
SHARES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
ALPHA = 0.05


def cases() -> Iterator[Case]:
    """(samples, budget, share of samples that differ); a share of the budget itself is all losses."""
    for size in SIZES:
        for budget in BUDGETS:
            for share in sorted({max(share, budget) for share in SHARES}):
                yield size, budget, share


def within(losses: Any, gains: Any, size: int, budget: float) -> Any:
    return surely_below(losses, gains, size, budget, ALPHA)


def over(losses: Any, gains: Any, size: int, budget: float) -> Any:
    return surely_below(gains, losses, size, -budget, ALPHA)


def size_of_test(case: Case, declared: Callable[..., Any] = within, seed: int = 0) -> float:
    """Share of draws in which ``declared(losses, gains, size, budget)`` at a true drop of the budget."""
    size, budget, share = case
    gains = (share - budget) / 2
    drawn = np.random.default_rng(seed).multinomial(size, [gains + budget, gains, 1 - share], size=DRAWS)
    return float(np.mean(declared(drawn[:, 0], drawn[:, 1], size, budget)))


def errors() -> Iterator[tuple[str, Callable[[np.random.Generator, int], np.ndarray], float]]:
    """(name, draws per-sample drops, their true mean)."""
    for spread in (0.5, 1.0, 1.5):
        mean = float(np.exp(spread**2 / 2))
        yield (
            f"log-normal losses, sigma {spread}",
            lambda rng, n, s=spread: rng.lognormal(0, s, n),
            mean,
        )
        yield (
            f"log-normal errors, sigma {spread}, changed by 5 % +- 30 %",
            lambda rng, n, s=spread: rng.lognormal(0, s, n) * rng.normal(0.05, 0.3, n),
            0.05 * mean,
        )
    yield "squares of normal errors", squares, 0.09
    for share in (0.01, 0.05):
        yield (
            f"nothing but noise in all but {share:.0%} of samples, log-normal losses there",
            lambda rng, n, p=share: (rng.random(n) < p) * rng.lognormal(0, 1, n) + rng.normal(0, 0.1, n),
            share * float(np.exp(0.5)),
        )


def squares(rng: np.random.Generator, n: int) -> np.ndarray:
    error = rng.standard_normal(n)
    return (error + 0.3 * rng.standard_normal(n)) ** 2 - error**2


def size_for_errors(draw: Callable[..., np.ndarray], mean: float, n: int, draws: int = 2000) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([mean_bound(draw(rng, n), 1.0, 1, ALPHA) <= mean for _ in range(draws)]))


def main() -> None:
    found = [(size_of_test(case), size_of_test(case, over), *case) for case in cases()]
    print('# "Within" at a drop of exactly the budget\n')
    print(f"{len(found)} combinations, {DRAWS:,} draws each; allowed: 5 %.")
    print(f'Worst: "within" {max(f[0] for f in found):.2%}, "over" {max(f[1] for f in found):.2%}.\n')
    print("| samples | budget, points | differing samples | declared within | declared over |")
    print("|---|---|---|---|---|")
    for low, high, size, budget, share in found:
        print(f"| {size} | {budget * 100:.1f} | {share:.2%} | {low:.2%} | {high:.2%} |")
    print("\n## Errors without bounds: declared within, 2,000 draws\n")
    print("| drop per sample | 200 samples | 500 | 1,000 |")
    print("|---|---|---|---|")
    for name, draw, mean in errors():
        cells = [f"{size_for_errors(draw, mean, n):.1%}" for n in (200, 500, 1000)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
