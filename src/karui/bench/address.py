"""Where ``--on`` leads: the command that gives a pipe to an agent elsewhere. No shell is involved here."""

from __future__ import annotations

import os
import re
import shlex

from karui.errors import UsageError

FORMS = "ssh://[user@]host[:port][/path/to/karui] or 'pipe:COMMAND'"
CONFIG = "KARUI_SSH_CONFIG"  # a configuration file for ssh to read instead of the user's
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
SSH = re.compile(
    rf"ssh://(?:(?P<user>{NAME})@)?(?P<host>{NAME}|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?"
    r"(?P<program>/[A-Za-z0-9_./+-]+)?/?"
)
CAREFUL = (
    "-T",  # no terminal: bytes pass as they are
    "-oBatchMode=yes",  # never ask for a password
    "-oClearAllForwardings=yes",
    "-oForwardAgent=no",
    "-oPermitLocalCommand=no",
    "-oConnectTimeout=15",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=4",
)


def command_of(address: str) -> list[str]:
    """The words of the command; raises UsageError for an address of another form."""
    kind, _, rest = address.partition(":")
    if kind == "pipe":
        return pipe_command(rest)
    found = SSH.fullmatch(address)
    if not found:
        raise UsageError(f"{address!r} is no address of a machine", why=fault(address), fix=FORMS)
    config, port, user = os.environ.get(CONFIG), found["port"], found["user"]
    return [
        "ssh",
        *CAREFUL,
        *(["-F", config] if config else []),
        *(["-p", port] if port else []),
        *(["-l", user] if user else []),
        "--",
        found["host"].strip("[]"),
        f"{found['program'] or 'karui'} agent",
    ]


def pipe_command(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"the command {text!r} cannot be read", why=str(error)) from error
    if not words:
        raise UsageError("pipe: names no command", fix="--on 'pipe:docker exec -i board karui agent'")
    return words


def fault(address: str) -> str:
    host = address.partition("://")[2].rpartition("@")[2]
    return "a host's name does not begin with '-'" if host.startswith("-") else ""
