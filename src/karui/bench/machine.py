"""Where artifacts run and are timed: this machine, or another one (``karui.bench.remote``).

Whoever measures asks a machine for workers and knows nothing else of where they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

from karui import host, runtimes
from karui.artifact import Artifact, load_artifact
from karui.process import Child, Limits
from karui.units import Bytes


class Worker(Protocol):
    """A measuring process, wherever it is. What fails raises KaruiError."""

    @property
    def alive(self) -> bool: ...

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]: ...

    def post(self, message: Mapping[str, Any]) -> None: ...

    def answer(self) -> dict[str, Any]: ...

    def memory_bytes(self, field: str = "VmRSS") -> Bytes: ...

    def pin(self, cpus: Collection[int]) -> None: ...

    def hang_up(self) -> None: ...

    def close(self) -> None: ...


class Machine(ABC):
    """``address`` is empty for this machine. A context manager; on leaving, nothing of ours runs there."""

    address: str = ""

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    @abstractmethod
    def start(self, artifact: Artifact, data: Path, log: Path, conditions: Conditions) -> Worker:
        """Start a measuring process for ``artifact``, with the arrays ``timing`` of the folder ``data``."""

    @abstractmethod
    def check(self, artifact: Artifact) -> None:
        """Raises Tampered when running has changed the artifact's files."""

    @abstractmethod
    def lacks(self, runtime: str) -> str:
        """Why artifacts of that runtime cannot run there; empty where they can."""

    @abstractmethod
    def notes(self) -> list[str]:
        """What has to be said about measuring there."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What ``host.facts`` tells there, now."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What times taken there depend on: ``cpu`` and ``versions`` of packages."""

    def portrait(self) -> dict[str, Any]:
        """The CPU and its instruction sets, for a manifest."""
        return {"cpu": self.identity()["cpu"], "flags": host.telling(self.flags())}

    @abstractmethod
    def flags(self) -> frozenset[str]:
        """Instruction sets, as the kernel names them."""

    @abstractmethod
    def cpus(self) -> list[int]:
        """Those that a worker may use; empty where the system does not tell."""

    @abstractmethod
    def close(self) -> None:
        """End the connection, if there is one."""


@final
class Here(Machine):
    """The machine that karui runs on."""

    def start(self, artifact: Artifact, data: Path, log: Path, conditions: Conditions) -> Worker:
        threads = conditions.threads
        arguments = [str(artifact.folder), str(data), str(conditions.batch), str(threads)]
        return Child("karui.bench.worker", arguments, log, threads, conditions.limits)

    def check(self, artifact: Artifact) -> None:
        load_artifact(artifact.folder)

    def lacks(self, runtime: str) -> str:
        return runtimes.lacks(runtime)

    def notes(self) -> list[str]:
        return []

    def facts(self) -> dict[str, Any]:
        return host.facts()

    def identity(self) -> dict[str, Any]:
        return {"cpu": host.cpu_name(), "versions": host.versions()}

    def flags(self) -> frozenset[str]:
        return host.flags()

    def cpus(self) -> list[int]:
        return host.cpus()

    def close(self) -> None:
        return


HERE = Here()


@dataclass(frozen=True)
class Conditions:
    """How the candidates of a session are called, and where: alike for all."""

    batch: int = 1
    threads: int = 1
    limits: Limits = Limits()
    machine: Machine = HERE
