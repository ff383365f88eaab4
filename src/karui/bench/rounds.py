"""Interleaved rounds: each times every candidate once, in a fresh random order.

What the machine does at a moment then hits all alike, and the ratio within a round holds where the
times themselves do not. All blocks last equally long and count by their mean: a busy machine takes
its share from each alike, where the median of many short calls would hide it and that of a few
long ones would not. Rounds go on until every asked-for ratio is known well enough.

Two CPUs of one machine are not equally fast at a moment (another guest may share the one's core), so all
candidates of an opening run on the same ones. Where a process happens to lie in memory shifts all of its
rounds alike. A session therefore opens its candidates several times, each time on other CPUs, and the
spread between openings is a part of the interval.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from karui.bench.candidate import Candidate
from karui.bench.stats import settled, speed_ratio
from karui.errors import KaruiError, Unreachable
from karui.measurement import Ratio
from karui.units import Seconds

LEAST_BLOCK_S, MOST_BLOCK_S = 5e-3, 0.2
LEAST_AN_OPENING = 6  # rounds; fewer have no steady median
LOOK_EVERY = 5  # rounds between two looks at the intervals
LOST_AT_MOST = 2  # openings that a session makes again because the connection to their machine ended


@dataclass(frozen=True)
class Pace:
    """How long to go on: at least ``least`` rounds, at most ``most`` or ``seconds``, in all openings.

    openings: how often a session opens its candidates, and at most ``most_openings`` times while a ratio
    is not known to ``half_width`` and time is left (opening itself does not count as time).
    """

    least: int = 15
    most: int = 120
    seconds: Seconds = 12.0
    half_width: float = 0.02
    openings: int = 1
    most_openings: int = 1

    @property
    def share(self) -> Pace:
        """What one opening gets."""
        parts = self.openings
        least = max(LEAST_AN_OPENING, -(-self.least // parts)) if parts > 1 else self.least
        most = max(least, -(-self.most // parts))
        return dataclasses.replace(self, least=least, most=most, seconds=self.seconds / parts)


@dataclass
class Rounds:
    """Per candidate: each opening's list of round means, and kept samples, in seconds per call; failures.

    kept: how many of the samples are of each round.
    """

    blocks_s: dict[str, list[list[Seconds]]] = field(default_factory=dict)
    samples_s: dict[str, list[Seconds]] = field(default_factory=dict)
    failed: dict[str, KaruiError] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)

    def calls_s(self, name: str) -> list[list[Seconds]]:
        """The kept samples of each round."""
        ends = list(itertools.accumulate(self.kept.get(name, [])))
        return [self.samples_s[name][start:end] for start, end in zip([0, *ends], ends)]

    def ratio(self, base: str, name: str, seed: int) -> Ratio:
        """How much faster ``name`` is than ``base``."""
        return speed_ratio(self.blocks_s[base], self.blocks_s[name], seed=seed, against=base)

    def add(self, other: Rounds) -> None:
        """Take in a further opening."""
        for name, blocks in other.blocks_s.items():
            self.blocks_s.setdefault(name, []).extend(blocks)
            self.samples_s.setdefault(name, []).extend(other.samples_s[name])
            self.kept.setdefault(name, []).extend(other.kept.get(name, []))
        self.failed |= other.failed


def session(
    open_all: Callable[[], tuple[Mapping[str, Candidate], Mapping[str, KaruiError]]],
    pairs: Sequence[tuple[str, str]],
    pace: Pace,
    seed: int,
) -> Rounds:
    """Several openings of the same candidates, each timed in interleaved rounds.

    ``open_all`` gives them in fresh processes, and why others would not open. One that fails is left
    out from then on. A lost connection says nothing about a candidate: that opening is made again.
    """
    rounds, left, done, lost = Rounds(), pace.seconds, 0, 0
    while done < max(pace.openings, pace.most_openings):
        candidates, failed = open_all()
        alive = {name: one for name, one in candidates.items() if name not in rounds.failed}
        start = time.monotonic()
        opening = interleave(alive, pairs, pace.share, seed + done)
        opening.failed |= failed
        if is_lost(opening) and lost < LOST_AT_MOST:
            lost += 1
            continue
        rounds.add(opening)
        done, left = done + 1, left - (time.monotonic() - start)
        if done >= pace.openings and (left < 0 or all_settled(rounds, pairs, pace, seed)):
            break
    return rounds


def is_lost(opening: Rounds) -> bool:
    return any(isinstance(error, Unreachable) for error in opening.failed.values())


def interleave(
    candidates: Mapping[str, Candidate],
    pairs: Sequence[tuple[str, str]],
    pace: Pace,
    seed: int,
) -> Rounds:
    """One opening: time all until every (baseline, candidate) pair is settled or the pace ends.

    A candidate whose process fails is left out from then on; its error is in ``failed``.
    """
    rounds = Rounds({name: [[]] for name in candidates}, {name: [] for name in candidates})
    stay_together(list(candidates.values()), seed)
    alive = [name for name in candidates if attempt(candidates[name].warm, name, rounds)]
    block_s = block_length(candidates[name] for name in alive)
    order, until = random.Random(seed), time.monotonic() + pace.seconds
    for done in range(1, pace.most + 1):
        order.shuffle(alive)
        alive = [name for name in alive if one_block(candidates[name], name, rounds, block_s)]
        if done >= pace.least and time.monotonic() > until:
            break
        if done >= pace.least and done % LOOK_EVERY == 0 and all_settled(rounds, pairs, pace, seed):
            break
    return rounds


def stay_together(candidates: Sequence[Candidate], seed: int) -> None:
    """Keep all on the same CPUs, as many as they have threads; which ones, turns with the seed."""
    cpus = candidates[0].cpus if candidates else []
    threads = max((candidate.threads for candidate in candidates), default=1)
    if threads < len(cpus):
        chosen = [cpus[(seed + i) % len(cpus)] for i in range(threads)]
        for candidate in candidates:
            candidate.pin(chosen)


def block_length(candidates: Iterable[Candidate]) -> Seconds:
    """Long enough for three calls of the slowest, within bounds."""
    slowest = max((candidate.call_s for candidate in candidates), default=0.0)
    return min(max(3 * slowest, LEAST_BLOCK_S), MOST_BLOCK_S)


def one_block(candidate: Candidate, name: str, rounds: Rounds, block_s: Seconds) -> bool:
    def block() -> None:
        answer = candidate.time(block_s)
        rounds.blocks_s[name][-1].append(answer["mean_s"])
        rounds.samples_s[name] += answer["samples_s"]
        rounds.kept.setdefault(name, []).append(len(answer["samples_s"]))

    return attempt(block, name, rounds)


def attempt(action: Callable[[], None], name: str, rounds: Rounds) -> bool:
    try:
        action()
    except KaruiError as error:
        rounds.failed[name] = error
        return False
    return True


def all_settled(rounds: Rounds, pairs: Sequence[tuple[str, str]], pace: Pace, seed: int) -> bool:
    timed = rounds.blocks_s.keys() - rounds.failed.keys()
    known = [pair for pair in pairs if timed.issuperset(pair)]
    return all(settled(rounds.ratio(base, name, seed), pace.half_width) for base, name in known)
