"""Chromium without a window, spoken to over its DevTools pipe: nothing listens, and it ends with its pipe.

The DevTools protocol is JSON, one message to a NUL byte, on the browser's descriptors 3 (in) and 4 (out).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from karui.errors import MeasureFailed, MissingRuntime
from karui.process import family, last_words
from karui.units import Seconds

WHERE = "KARUI_CHROMIUM"  # environment variable: the program to start
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
REMEDY = f"apt-get install chromium, or set {WHERE} to the program of a Chromium or Chrome"
START_S, END_S = 60.0, 5.0
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-domain-reliability",
    "--disable-default-apps",
    "--disable-dev-shm-usage",  # containers give it 64 MB
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no other machine is ever asked
    "--password-store=basic",
    "--use-mock-keychain",
)
# The pipe is the shell's own input and output; it removes the profile, also when we were killed.
PIPED = 'exec 3<&0 4>&1 </dev/null >&2; "$@"; rm -rf "$0"'


def find_chromium() -> str:
    """The program, or an empty string where there is none."""
    if named := os.environ.get(WHERE):
        return shutil.which(named) or ""
    found = (shutil.which(name) for name in (*NAMES, MAC))
    return next((path for path in found if path), "")


class Chromium:
    """A browser of its own, with a profile of its own; both are gone after ``close``.

    Raises MissingRuntime where there is none, MeasureFailed when it does not start, or ends.
    """

    def __init__(self, flags: Sequence[str] = ()) -> None:
        program = find_chromium()
        if not program:
            raise MissingRuntime("there is no Chromium on this machine", fix=REMEDY)
        self.home = Path(tempfile.mkdtemp(prefix="karui-chromium-"))
        self.log = self.home / "chromium.log"
        root = ("--no-sandbox",) if os.geteuid() == 0 else ()  # its sandbox cannot be set up by root
        command = [program, *FLAGS, *root, *flags, f"--user-data-dir={self.home / 'profile'}", "about:blank"]
        with self.log.open("wb") as said:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", PIPED, str(self.home), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
            )
        self.pipe = Pipe(self.process, self.log)
        self.close = weakref.finalize(self, end, self.process, self.pipe, self.home)
        self.version = str(self.pipe.ask("Browser.getVersion", {})["product"])

    def open(self, url: str) -> Tab:
        """A new page at ``url``, loaded."""
        made = self.pipe.ask("Target.createTarget", {"url": "about:blank"})
        found = self.pipe.ask("Target.attachToTarget", {"targetId": made["targetId"], "flatten": True})
        tab = Tab(self, found["sessionId"])
        tab.go(url)
        return tab


class Tab:
    """One page."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self.browser, self.session = browser, session

    def ask(self, method: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self.browser.pipe.ask(method, params or {}, session=self.session)

    def go(self, url: str) -> None:
        self.ask("Page.enable")
        self.browser.pipe.loaded.discard(self.session)
        if error := self.ask("Page.navigate", {"url": url}).get("errorText"):
            raise MeasureFailed("the browser could not open its page", why=error)
        while self.session not in self.browser.pipe.loaded:
            self.browser.pipe.hear(time.monotonic() + START_S)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited. Raises MeasureFailed when it throws."""
        wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
        found = self.browser.pipe.ask("Runtime.evaluate", wanted, session=self.session, timeout_s=None)
        if thrown := found.get("exceptionDetails"):
            told = thrown.get("exception", {}).get("description") or thrown["text"]
            raise MeasureFailed("the page in the browser failed", why=told.splitlines()[0][:400])
        return found["result"].get("value")


class Pipe:
    """Messages to the browser and back."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.to: IO[bytes] = process.stdin
        self.back: IO[bytes] = process.stdout
        self.log = log
        self.last, self.rest = 0, bytearray()
        self.answers: dict[int, dict[str, Any]] = {}
        self.loaded: set[str] = set()  # sessions whose page has loaded

    def ask(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        session: str = "",
        timeout_s: Seconds | None = START_S,
    ) -> dict[str, Any]:
        """Send a command and wait for its answer; with ``timeout_s`` None as long as the browser lives."""
        self.last += 1
        mine, until = self.last, time.monotonic() + timeout_s if timeout_s else None
        message = {"id": mine, "method": method, "params": params} | (
            {"sessionId": session} if session else {}
        )
        self.send(json.dumps(message).encode() + b"\0")
        while mine not in self.answers:
            self.hear(until)
        answer = self.answers.pop(mine)
        if error := answer.get("error"):
            raise MeasureFailed(f"the browser refused {method}", why=error["message"])
        found: dict[str, Any] = answer["result"]
        return found

    def send(self, message: bytes) -> None:
        try:
            while message:
                message = message[self.to.write(message) :]
        except (BrokenPipeError, ValueError) as cause:
            raise self.ended() from cause

    def hear(self, until: float | None) -> None:
        """Take in what the browser says next, before the moment ``until``."""
        left = None if until is None else max(0.0, until - time.monotonic())
        if self.back.closed:
            raise self.ended()
        if not select.select([self.back], [], [], left)[0]:
            raise MeasureFailed("the browser gave no answer in time", why=last_words(self.log))
        part = os.read(self.back.fileno(), 1 << 20)
        if not part:
            raise self.ended()
        self.rest += part
        if b"\0" in part:
            *whole, rest = self.rest.split(b"\0")
            self.rest = bytearray(rest)
            for message in whole:
                self.take(json.loads(message))

    def take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self.answers[message["id"]] = message
        elif message["method"] == "Page.loadEventFired":
            self.loaded.add(message["sessionId"])
        elif message["method"] in ("Inspector.targetCrashed", "Target.targetCrashed"):
            raise MeasureFailed("the page in the browser crashed", why="probably out of memory")

    def ended(self) -> MeasureFailed:
        why = last_words(self.log) if self.log.exists() else "it was closed"
        return MeasureFailed("the browser ended", why=why)


def end(process: subprocess.Popen[bytes], pipe: Pipe, home: Path) -> None:
    """Have the browser end, make sure it has, and remove its profile."""
    with contextlib.suppress(MeasureFailed):
        pipe.ask("Browser.close", {}, timeout_s=END_S)
    started = family(process.pid)
    for file in (pipe.to, pipe.back):  # without its pipe it ends by itself
        with contextlib.suppress(OSError):
            file.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait()
    shutil.rmtree(home, ignore_errors=True)
