"""What the page is served: named files and nothing else, on 127.0.0.1, under a path that cannot be guessed.

The two headers make the page cross-origin isolated: threads, and a clock of 5 microseconds.
"""

from __future__ import annotations

import functools
import secrets
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
KINDS = {".html": "text/html; charset=utf-8", ".mjs": "text/javascript", ".wasm": "application/wasm"}
INPUT, OUTPUT = "input", "output"  # what the page fetches to run on, and what it sends back


@dataclass
class Shelf:
    """What is served: ``files`` by name, and ``sent`` as input. ``got``: what the page sent last."""

    files: Mapping[str, Path]
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    sent: bytes = b""
    got: bytes = b""

    def content(self, name: str) -> bytes | None:
        if name == INPUT:
            return self.sent
        return self.files[name].read_bytes() if name in self.files else None


class Server:
    """A server of one shelf, running until ``close``."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.shelf = Shelf(files)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, self.shelf))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/{self.shelf.secret}/"
        self.close = weakref.finalize(self, end, self.http)
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


def end(http: ThreadingHTTPServer) -> None:
    http.shutdown()
    http.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def __init__(self, shelf: Shelf, *args: Any) -> None:
        self.shelf = shelf
        BaseHTTPRequestHandler.__init__(self, *args)

    def do_GET(self) -> None:
        name = self.asked()
        content = self.shelf.content(name) if name else None
        if content is None:
            self.send_error(404)
        else:
            self.reply(content, KINDS.get(PurePosixPath(name).suffix, "application/octet-stream"))

    def do_POST(self) -> None:
        if self.asked() != OUTPUT:
            self.send_error(404)
            return
        self.shelf.got = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(b"", "text/plain")

    def asked(self) -> str:
        """The name that was asked for; empty for those who do not know the secret."""
        _, secret, name = (*self.path.split("/", 2), "", "")[:3]
        return name if secrets.compare_digest(secret.encode(), self.shelf.secret.encode()) else ""

    def reply(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        for name, value in (headers | ISOLATED).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is told of single requests."""
