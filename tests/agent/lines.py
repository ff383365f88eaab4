"""Talking to an agent without the driver, and environments for it to live in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import karui

SOURCES = Path(karui.__file__).parents[1]
AGENT = [sys.executable, "-m", "karui", "agent"]
HELLO = {"do": "hello", "protocol": 1, "karui": "test"}
BLOCKER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


class Raw:
    """An agent that is sent what the driver would never send."""

    def __init__(self, tmp: Path, *, greet: bool = True) -> None:
        env = os.environ | {"TMPDIR": str(tmp), "PYTHONPATH": os.pathsep.join([str(SOURCES), *sys.path])}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(AGENT, stdin=pipe, stdout=pipe, env=env, cwd=tmp)
        self.first = self.ask(HELLO) if greet else {}

    def ask(self, message: object, body: bytes = b"") -> dict:
        self.say(message, body)
        line = self.process.stdout.readline()
        assert line, "the agent ended"
        return json.loads(line)

    def say(self, message: object, body: bytes = b"") -> None:
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.process.stdin.write(line + b"\n" + body)
        self.process.stdin.flush()

    def end(self) -> int:
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(timeout=20)


def environment(folder: Path, absent: tuple[str, ...] = ()) -> Path:
    """The ``karui`` of a second environment with the same packages, but for those that are ``absent``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    lines = [str(SOURCES), sysconfig.get_path("purelib")]
    (packages / "same.pth").write_text("\n".join(lines) + "\n")
    (packages / "sitecustomize.py").write_text(BLOCKER.format(absent=absent))
    command = folder / "bin" / "karui"
    command.write_text(f'#!/bin/sh\nexec {folder}/bin/python -m karui "$@"\n')
    command.chmod(0o755)
    return command


def elsewhere(command: Path, home: Path) -> str:
    """``--on`` for that environment, with a home, a working folder and variables of its own."""
    home.mkdir(exist_ok=True)
    kept = f"PATH={os.environ['PATH']} HOME={home} TMPDIR={home}"
    return f"pipe:env -i -C {home} {kept} {command} agent"


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Whether no process has that number, or only one that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
