"""Another machine, on which an agent runs and times artifacts.

A connection that has ended is made anew for the next worker; what was open on it has failed. Files travel
once a connection: the agent keeps them by their hashes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, final

from karui import host
from karui.artifact import MANIFEST, Artifact
from karui.bench.address import command_of
from karui.bench.connection import SLOW_S, Connection, hashed
from karui.bench.machine import HERE, Conditions, Machine, Worker
from karui.errors import KaruiError, Unreachable, foreign
from karui.process import raise_told
from karui.units import Bytes, Seconds

GRACE_S = 30.0  # the agent itself gives a worker up; this much later we give the agent up
NOTHING: Mapping[str, Any] = {}
AGAIN_S = 60.0  # a machine that did not answer is left alone for so long


def machine_at(address: str) -> Machine:
    """This machine for an empty address, else the one that it leads to; raises Unreachable or UsageError."""
    return Remote(address) if address else HERE


@final
class Remote(Machine):
    """See ``karui.bench.address`` for the form of ``address``."""

    def __init__(self, address: str) -> None:
        self.address, self.command = address, command_of(address)
        self.hashes: dict[tuple[str, int, int], str] = {}
        self.numbers = itertools.count()
        self.absent: dict[str, str] = {}
        self.refused: tuple[Seconds, KaruiError] | None = None
        self.connection = Connection(address, self.command)
        self.first = self.connection.there

    def connected(self) -> Connection:
        """The connection; a new one when the old one has ended, which has to lead to the same machine."""
        if not self.connection.over:
            return self.connection
        if self.refused and time.monotonic() - self.refused[0] < AGAIN_S:
            raise self.refused[1]
        self.connection.close()
        try:
            fresh = Connection(self.address, self.command)
        except KaruiError as error:
            self.refused = time.monotonic(), error
            raise
        if portrait(fresh.there) != portrait(self.first):
            fresh.close()
            raise Unreachable(f"{self.address}: another machine answers now", why=str(portrait(fresh.there)))
        self.connection = fresh
        return fresh

    def start(self, artifact: Artifact, data: Path, log: Path, conditions: Conditions) -> Worker:
        connection, number = self.connected(), next(self.numbers)
        message = {
            "do": "open",
            "worker": number,
            "artifact": self.sent(connection, artifact),
            "timing": self.sent_arrays(connection, data / "timing"),
            "batch": conditions.batch,
            "threads": conditions.threads,
            "seconds": conditions.limits.seconds,
            "bytes": conditions.limits.bytes,
        }
        connection.ask(message)
        log.parent.mkdir(parents=True, exist_ok=True)
        return RemoteWorker(self, connection, number, log, conditions.limits.seconds)

    def sent(self, connection: Connection, artifact: Artifact) -> dict[str, str]:
        """The files of an artifact, by name with their hashes, now that they are there."""
        manifest = hashed(artifact.folder, self.hashes, MANIFEST)
        names = {**artifact.files, **manifest}
        connection.send({digest: artifact.folder / name for name, digest in names.items()})
        return names

    def sent_arrays(self, connection: Connection, folder: Path) -> dict[str, str]:
        names = hashed(folder, self.hashes)
        connection.send({digest: folder / name for name, digest in names.items()})
        return names

    def check(self, artifact: Artifact) -> None:
        connection = self.connected()
        message = {"do": "check", "files": self.sent(connection, artifact)}
        connection.ask(message, timeout_s=SLOW_S)

    def lacks(self, runtime: str) -> str:
        if runtime not in self.absent:
            message = {"do": "runtimes", "names": [runtime]}
            found = self.connected().ask(message, timeout_s=SLOW_S)["lacks"]
            self.absent |= {str(name): str(why) for name, why in found.items()}
        why = self.absent[runtime]
        return f"not on {self.address}: {why}" if why else ""

    def notes(self) -> list[str]:
        """Packages that are of another version there than here, where artifacts are built."""
        here, there = host.versions(), dict(self.first["host"]["versions"])
        other = [f"{p} {v} ({here[p]} here)" for p, v in there.items() if here.get(p, v) != v]
        return [f"{self.address} runs other versions: {', '.join(other)}"] if other else []

    def facts(self) -> dict[str, Any]:
        """As they are now, or as they were first told when the connection has ended."""
        try:
            return dict(self.connection.ask({"do": "facts"})["host"])
        except KaruiError:
            return dict(self.first["host"])

    def identity(self) -> dict[str, Any]:
        there = self.first["host"]
        return {"cpu": there["cpu"], "versions": {"built": host.versions(), "run": there["versions"]}}

    def flags(self) -> frozenset[str]:
        return frozenset(self.first["flags"])

    def cpus(self) -> list[int]:
        return list(self.first["cpus"])

    def close(self) -> None:
        self.connection.close()


@final
class RemoteWorker:
    """A measuring process on the other machine; ``log`` gets what it prints."""

    def __init__(
        self, machine: Remote, connection: Connection, number: int, log: Path, patience_s: Seconds
    ) -> None:
        self.machine, self.connection, self.number, self.log = machine, connection, number, log
        self.patience_s = patience_s + GRACE_S
        log.touch()
        self.gone = False
        self.out = Path()

    @property
    def alive(self) -> bool:
        return not (self.gone or self.connection.over)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return self.heard(self.told("ask", {"message": self.order(message)}))

    def post(self, message: Mapping[str, Any]) -> None:
        self.told("post", {"message": self.order(message)})

    def answer(self) -> dict[str, Any]:
        return self.heard(self.told("answer"))

    def order(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message in the agent's words: rows by their hashes, and no place to write to."""
        if message["do"] != "outputs":
            return dict(message)
        self.out = Path(message["out"])
        rows = self.machine.sent_arrays(self.connection, Path(message["rows"]))
        return {key: value for key, value in message.items() if key != "out"} | {"rows": rows}

    def heard(self, reply: Mapping[str, Any]) -> dict[str, Any]:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(str(reply["log"]))
        self.gone = not reply["alive"]
        raise_told(reply)
        if reply["files"]:
            self.connection.fetch(reply["files"], self.out)
        return dict(reply["answer"])

    def told(self, verb: str, fields: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
        message = {"do": verb, "worker": self.number, **fields}
        return self.connection.ask(message, timeout_s=self.patience_s)

    def memory_bytes(self, field: str = "VmRSS") -> Bytes:
        """0 where that machine does not tell."""
        try:
            return int(self.told("memory", {"field": field})["bytes"])
        except KaruiError:
            return 0

    def pin(self, cpus: Collection[int]) -> None:
        self.quietly("pin", {"cpus": list(cpus)})

    def hang_up(self) -> None:
        self.quietly("hang_up")

    def close(self) -> None:
        self.gone = True
        self.quietly("close")

    def quietly(self, verb: str, fields: Mapping[str, Any] = NOTHING) -> None:
        """What ends a worker does not fail: one whose connection has ended has ended too."""
        try:
            self.told(verb, fields)
        except KaruiError:
            return


def portrait(there: Mapping[str, Any]) -> dict[str, Any]:
    """By what a machine is known again."""
    with foreign(Unreachable, "the agent tells nothing of its machine"):
        return {"cpu": there["host"]["cpu"], "cores": there["host"]["cores"], "flags": there["flags"]}
