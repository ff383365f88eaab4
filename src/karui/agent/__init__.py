"""The timed side on another machine: keeps files, starts measuring processes, relays what they say.

It is started by the user's SSH (or any command that gives a pipe), speaks over its standard input and
output, and ends with them. It runs ``karui.bench.worker`` and nothing else, in a folder of its own that goes
with it, and listens on no port. One request is answered before the next is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from karui import host
from karui.agent.forms import AGENT, WORKER, checked
from karui.agent.store import Store
from karui.errors import KaruiError, MeasureFailed, Unreachable, UsageError, foreign
from karui.process import Child, Limits, private_stdout, told
from karui.units import Bytes, Seconds
from karui.wire import PROTOCOL, Wire

PREFIX, LOCK = "karui-agent-", "lock"
IDLE_S: Seconds = 86_400.0  # a driver that says nothing for so long is gone
YOUNG_S = 60.0
MOST_WORKERS = 64
LOG_BYTES = 1 << 16  # of what a worker printed, sent with its next answer


def serve(most: Bytes) -> None:
    """Answer on standard input and output until they close; keep at most ``most`` bytes of files."""
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, leave)
    sweep()
    with private_stdout() as out, own_folder() as folder:
        wire = Wire(0, out.fileno())
        with contextlib.suppress(Unreachable), Agent(folder, wire, most) as agent:
            while (message := wire.hear(IDLE_S)) is not None:
                reply = agent.reply(message)
                wire.say(reply.words, reply.files)
                if agent.over:
                    return


def leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A new folder that only this user can read; it goes in the end, with what runtimes leave lying about."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    os.environ["TMPDIR"] = str(folder / "tmp")
    try:
        (folder / "tmp").mkdir()
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove the folders of agents of this user that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            seen = folder.lstat()
            if seen.st_uid == os.getuid() and time.time() - seen.st_mtime > YOUNG_S:
                with (folder / LOCK).open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)


@dataclass(frozen=True)
class Reply:
    """``files`` are sent behind the words, which tell their names and sizes."""

    words: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


@final
class Agent:
    """A context manager; on leaving, every worker is ended."""

    def __init__(self, folder: Path, wire: Wire, most: Bytes) -> None:
        self.wire, self.home, self.store = wire, folder, Store(folder / "store", most)
        self.workers: dict[int, Worker] = {}
        self.greeted = self.over = False

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *reason: object) -> None:
        for worker in self.workers.values():
            worker.child.kill()

    def reply(self, message: Mapping[str, Any]) -> Reply:
        """What a message gets for an answer; one that is refused changes nothing."""
        try:
            given = checked(message, AGENT)
            if not self.greeted and message["do"] != "hello":
                raise UsageError("the agent was not greeted", fix="say hello first")
            with foreign(MeasureFailed, "the agent could not do it"):
                return self.do(message["do"], given)
        except Unreachable:
            raise
        except KaruiError as error:
            return Reply(told(error))

    def do(self, verb: str, given: Mapping[str, Any]) -> Reply:
        verbs = {
            "hello": self.hello,
            "facts": self.facts,
            "runtimes": self.runtimes,
            "missing": self.missing,
            "put": self.put,
            "check": self.check,
            "open": self.open,
        }
        if verb in verbs:
            return verbs[verb](given)
        if given["worker"] not in self.workers:
            raise UsageError("the agent has no such worker", why=str(given["worker"]))
        worker = self.workers[given["worker"]]
        if verb == "close":
            del self.workers[given["worker"]]
        return worker.do(verb, given)

    def hello(self, given: Mapping[str, Any]) -> Reply:
        mine = host.versions().get("karui", "")
        if given["protocol"] != PROTOCOL:
            self.over = True
            raise UsageError(
                "the agent speaks another version of the protocol",
                why=f"{PROTOCOL} (karui {mine}), but called in {given['protocol']} (karui {given['karui']})",
                fix="install the same karui on both machines",
            )
        self.greeted = True
        return Reply({"agent": PROTOCOL, "karui": mine, **self.facts({}).words})

    def facts(self, given: Mapping[str, Any]) -> Reply:
        return Reply({"host": host.facts(), "flags": sorted(host.flags()), "cpus": host.cpus()})

    def runtimes(self, given: Mapping[str, Any]) -> Reply:
        child = Child("karui.agent.presence", [], self.home / "presence.log", 1, Limits())
        try:
            child.post({"names": given["names"]})
            return Reply(child.answer(look=self.wire.still_there))
        finally:
            child.kill()

    def missing(self, given: Mapping[str, Any]) -> Reply:
        return Reply({"missing": self.store.missing(dict(given["files"]))})

    def put(self, given: Mapping[str, Any]) -> Reply:
        pieces = self.wire.take(given["bytes"])
        try:
            self.store.put(given["sha256"], given["bytes"], pieces)
        finally:
            for _ in pieces:  # a file that is refused is read to its end, so that the next message is found
                pass
        return Reply()

    def check(self, given: Mapping[str, Any]) -> Reply:
        self.store.check(given["files"])
        return Reply()

    def open(self, given: Mapping[str, Any]) -> Reply:
        number = given["worker"]
        if number in self.workers or len(self.workers) >= MOST_WORKERS:
            raise UsageError("the agent opens no more workers", why=f"{len(self.workers)} are open")
        artifact = self.store.folder(given["artifact"])
        timing = self.store.folder({f"timing/{name}": one for name, one in given["timing"].items()})
        home = self.home / f"worker-{number}"
        arguments = [str(artifact), str(timing), str(given["batch"]), str(given["threads"])]
        limits = Limits(given["seconds"], given["bytes"])
        child = Child("karui.bench.worker", arguments, home / "worker.log", given["threads"], limits)
        self.workers[number] = Worker(child, home, self.store, self.wire)
        return Reply()


@final
class Worker:
    """One measuring process: what it may be told, and what it answers."""

    def __init__(self, child: Child, home: Path, store: Store, wire: Wire) -> None:
        self.child, self.home, self.store, self.wire = child, home, store, wire
        self.told = 0  # bytes of its log that were sent

    def do(self, verb: str, given: Mapping[str, Any]) -> Reply:
        if verb == "memory":
            return Reply({"bytes": self.child.memory_bytes(given["field"])})
        if verb in ("post", "ask"):
            self.child.post(self.order(given["message"]))
        if verb in ("answer", "ask"):
            return self.answer()
        if verb == "pin":
            self.child.pin(given["cpus"])
        elif verb == "hang_up":
            self.child.hang_up()
        elif verb == "close":
            self.close()
        return Reply()

    def order(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message as the worker gets it: every path in it is the agent's own."""
        given = checked(message, WORKER)
        shutil.rmtree(self.out, ignore_errors=True)
        if message["do"] == "outputs":
            given |= {"rows": str(self.store.folder(given["rows"])), "out": str(self.out)}
        return {"do": message["do"], **given}

    @property
    def out(self) -> Path:
        return self.home / "answers"

    def answer(self) -> Reply:
        try:
            answer = self.child.answer(look=self.wire.still_there)
        except Unreachable:
            raise
        except KaruiError as error:
            return Reply({**told(error), "log": self.log(), "alive": self.child.alive})
        files = tuple(sorted(self.out.glob("*.npy")))
        sizes = [[file.name, file.stat().st_size] for file in files]
        return Reply({"answer": answer, "log": self.log(), "files": sizes, "alive": True}, files)

    def log(self) -> str:
        """What the worker has printed since the last answer, or the end of it."""
        printed = self.child.log.read_bytes()[self.told :]
        self.told += len(printed)
        return printed[-LOG_BYTES:].decode(errors="replace")

    def close(self) -> None:
        self.child.close()
        shutil.rmtree(self.home, ignore_errors=True)
