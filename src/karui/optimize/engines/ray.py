"""Hands that are actors on a Ray cluster that the user named."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import, which reads them
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.exceptions

from karui.errors import KaruiError, UsageError, foreign
from karui.optimize.engines import Engine, Finished, Work
from karui.optimize.hand import Hand, host_id
from karui.optimize.made import read_made
from karui.process import error_told, told

HIRED_S = 180.0  # for the first hand to come
FAILURES = 3
LEAVE_S = 10.0
KNOCK_S = 10.0
LOST = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError)


class Remote:
    """The actor: a hand, with answers that carry their archives."""

    def __init__(self, sealed: bytes, threads: int) -> None:
        self.sealed, self.threads = sealed, threads
        self.folder = tempfile.TemporaryDirectory(prefix="karui-")
        self.hands: list[Hand] = []

    def ready(self) -> dict[str, Any]:
        """Where it is, or why it cannot build."""
        try:
            self.hands.append(Hand(self.sealed, Path(self.folder.name), self.threads))
        except KaruiError as error:
            return told(error)
        return {"host": host_id()}

    def make(self, recipes: Sequence[str]) -> list[tuple[dict[str, Any], bytes | None]]:
        answers = []
        for found in self.hands[0].make(recipes):
            archive = Path(found["archive"]) if "archive" in found else None
            answers.append((found, archive.read_bytes() if archive else None))
            if archive:
                archive.unlink()
        return answers

    def leave(self) -> None:
        """Remove what was written."""
        for hand in self.hands:
            hand.close()
        self.folder.cleanup()


@final
class Ray(Engine):
    """At most ``most`` hands, 0 for as many as the cluster has room for. times_here: whether artifacts are
    timed on this machine. Raises UsageError where there is no cluster, or none of its nodes can build.
    """

    def __init__(self, work: Work, address: str, most: int, *, times_here: bool) -> None:
        self.work, self.times_here = work, times_here
        self.cpus = work.share.cpus or 1
        self.near, self.hands, self.coming = False, set[int](), set[int]()
        self.number, self.failures = 0, 0
        self.actors: dict[int, Any] = {}
        self.awaited: dict[Any, int] = {}  # answers, and the hands that owe them
        connect(address)
        room = self.room()
        self.size = min(room, most) if most else room
        if not self.size:
            self.close()
            why = f"no node has {self.cpus} CPUs" + (" and that memory" if work.share.memory_bytes else "")
            raise UsageError(f"the cluster {address} has no room for a builder", why=why)
        self.sealed = ray.put(work.sealed)
        for _ in range(self.size):
            self.hire()
        self.first()

    def room(self) -> int:
        """Hands for which the living nodes have room."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(node.get("CPU", 0) // self.cpus) for node in nodes if self.fits(node))

    def fits(self, resources: dict[str, float]) -> bool:
        return resources.get("memory", 0) >= self.work.share.memory_bytes

    def hire(self) -> None:
        kind: Any = ray.remote(Remote)
        share = {"num_cpus": self.cpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        if self.work.share.memory_bytes:
            share["memory"] = self.work.share.memory_bytes
        actor = kind.options(**share).remote(self.sealed, self.cpus)
        self.actors[self.number] = actor
        self.coming.add(self.number)
        self.awaited[actor.ready.remote()] = self.number
        self.number += 1

    def first(self) -> None:
        """Wait for a hand, so that a cluster that cannot build is told at once."""
        reason = f"none came in {HIRED_S:.0f} s"
        while self.coming and not self.hands:
            lost = self.finished()
            reason = lost.reason if lost else reason
        if not self.hands:
            self.close()
            raise UsageError("no builder runs on the cluster", why=reason)

    def start(self, hand: int, recipes: Sequence[str]) -> None:
        self.awaited[self.actors[hand].make.remote(list(recipes))] = hand

    def finished(self) -> Finished | None:
        builds = any(hand in self.hands for hand in self.awaited.values())
        found = ray.wait(list(self.awaited), timeout=None if builds else HIRED_S)[0]
        if not found:
            self.dismiss()
            return None
        hand = self.awaited.pop(ready := found[0])
        try:
            answer = ray.get(ready)
        except LOST as error:
            return self.lost(hand, str(error).strip().splitlines()[0])
        except ray.exceptions.RayTaskError as error:
            return self.lost(hand, str(error.cause or error).strip().splitlines()[0])
        if hand in self.coming:
            return self.arrived(hand, answer)
        return Finished(hand, [read_made(found, self.kept(found, data)) for found, data in answer])

    def dismiss(self) -> None:
        """The cluster has no room for those that do not come: others use it."""
        for hand in self.coming:
            ray.kill(self.actors.pop(hand))
        self.awaited = {}
        self.coming = set()

    def arrived(self, hand: int, answer: dict[str, Any]) -> Finished | None:
        if error := error_told(answer):
            return self.lost(hand, error.line)
        self.failures = 0
        self.coming.remove(hand)
        self.hands.add(hand)
        self.near |= self.times_here and answer["host"] == host_id()
        return None

    def lost(self, hand: int, reason: str) -> Finished:
        """Another is hired where there is room, unless those that come keep failing."""
        self.failures += hand in self.coming
        self.coming.discard(hand)
        self.hands.discard(hand)
        ray.kill(self.actors.pop(hand))
        if len(self.actors) < min(self.size, self.room()) and self.failures < FAILURES:
            self.hire()
        return Finished(hand, None, reason)

    def kept(self, found: dict[str, Any], data: bytes | None) -> Path | None:
        if data is None:
            return None
        path = self.work.folder / Path(found["archive"]).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def close(self) -> None:
        leaving = [self.actors[hand].leave.remote() for hand in self.hands]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_S)
        ray.shutdown()


def connect(address: str) -> None:
    """Join the cluster that the user named as a driver; nothing is started."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not (address == "auto" or (colon and host and port.isdigit())):
        raise UsageError(f"cannot use the address {address!r}", fix="give --ray HOST:PORT, or --ray auto")
    fix = "start one with: ray start --head --disable-usage-stats"
    with foreign(UsageError, f"there is no Ray cluster at {address}", fix=fix):
        if colon:
            asyncio.run(knock(host, int(port)))  # Ray itself tries for minutes
        ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)


async def knock(host: str, port: int) -> None:
    """Raises OSError or TimeoutError where nothing listens."""
    _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), KNOCK_S)
    writer.close()
    await writer.wait_closed()
