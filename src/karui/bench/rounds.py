"""Interleaved rounds: each times every candidate once, in a fresh random order.

What the machine does at a moment then hits all alike, and the ratio within a round holds where the
times themselves do not. All blocks last equally long and count by their mean: a busy machine takes
its share from each alike, where the median of many short calls would hide it and that of a few
long ones would not. Rounds go on until every asked-for ratio is known well enough.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from karui.bench.candidate import Candidate
from karui.bench.stats import settled, speed_ratio
from karui.errors import KaruiError
from karui.units import Seconds

LEAST_BLOCK_S, MOST_BLOCK_S = 5e-3, 0.2
LOOK_EVERY = 5  # rounds between two looks at the intervals


@dataclass(frozen=True)
class Pace:
    """How long to go on: at least ``least`` rounds, at most ``most`` or ``seconds``."""

    least: int = 15
    most: int = 120
    seconds: Seconds = 12.0
    half_width: float = 0.02


@dataclass
class Rounds:
    """Per candidate: each round's mean, and kept samples, in seconds per call; and failures."""

    blocks_s: dict[str, list[Seconds]] = field(default_factory=dict)
    samples_s: dict[str, list[Seconds]] = field(default_factory=dict)
    failed: dict[str, KaruiError] = field(default_factory=dict)


def interleave(
    candidates: Mapping[str, Candidate],
    pairs: Sequence[tuple[str, str]],
    pace: Pace,
    seed: int,
    on_round: Callable[[int], None] = lambda done: None,
) -> Rounds:
    """Time all candidates until every (baseline, candidate) pair is settled or the pace ends.

    A candidate whose process fails is left out from then on; its error is in ``failed``.
    """
    rounds = Rounds({name: [] for name in candidates}, {name: [] for name in candidates})
    alive = [name for name in candidates if attempt(candidates[name].warm, name, rounds)]
    block_s = block_length(candidates[name] for name in alive)
    order, until = random.Random(seed), time.monotonic() + pace.seconds
    for done in range(1, pace.most + 1):
        order.shuffle(alive)
        alive = [name for name in alive if one_block(candidates[name], name, rounds, block_s)]
        on_round(done)
        if done >= pace.least and time.monotonic() > until:
            break
        if done >= pace.least and done % LOOK_EVERY == 0 and all_settled(rounds, pairs, pace, seed):
            break
    return rounds


def block_length(candidates: Iterable[Candidate]) -> Seconds:
    """Long enough for three calls of the slowest, within bounds."""
    slowest = max((candidate.call_s for candidate in candidates), default=0.0)
    return min(max(3 * slowest, LEAST_BLOCK_S), MOST_BLOCK_S)


def one_block(candidate: Candidate, name: str, rounds: Rounds, block_s: Seconds) -> bool:
    def block() -> None:
        answer = candidate.time(block_s)
        rounds.blocks_s[name].append(answer["mean_s"])
        rounds.samples_s[name] += answer["samples_s"]

    return attempt(block, name, rounds)


def attempt(action: Callable[[], None], name: str, rounds: Rounds) -> bool:
    try:
        action()
    except KaruiError as error:
        rounds.failed[name] = error
        return False
    return True


def all_settled(rounds: Rounds, pairs: Sequence[tuple[str, str]], pace: Pace, seed: int) -> bool:
    known = [pair for pair in pairs if not {*pair} & {*rounds.failed}]
    return all(
        settled(speed_ratio(rounds.blocks_s[base], rounds.blocks_s[name], seed=seed), pace.half_width)
        for base, name in known
    )
