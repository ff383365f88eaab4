"""Hands that are processes of this machine."""

from __future__ import annotations

import os
import select
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from karui.errors import KaruiError
from karui.optimize.engines import Engine, Finished, Work
from karui.optimize.made import read_made
from karui.process import LOOK_S, Child, Limits

FOREVER_S = 1e9  # a training may take long; a build inside has a limit of its own


@final
class Pool(Engine):
    """``size`` processes; one that dies is started anew with its next order."""

    def __init__(self, work: Work, size: int) -> None:
        self.work, self.size, self.near = work, size, True
        self.hands, self.coming = set(range(size)), set[int]()
        self.threads = work.share.cpus or max(1, (os.cpu_count() or 1) // size)
        self.limits = Limits(FOREVER_S, work.share.memory_bytes)
        self.children: dict[int, Child] = {}
        self.busy: set[int] = set()
        self.private = tempfile.TemporaryDirectory(prefix="karui-")  # of mode 0700
        self.sealed = Path(self.private.name) / "job"
        self.sealed.write_bytes(work.sealed)

    def start(self, hand: int, recipes: Sequence[str]) -> None:
        child = self.children.get(hand)
        if child is None or not child.alive:
            folder = self.work.folder / str(hand)
            arguments = [str(self.sealed), str(folder), str(self.threads)]
            child = Child("karui.optimize.hand", arguments, folder / "log", self.threads, self.limits)
            self.children[hand] = child
        child.post({"make": list(recipes)})
        self.busy.add(hand)

    def finished(self) -> Finished | None:
        pipes: dict[Any, int] = {self.children[hand].process.stdout: hand for hand in self.busy}
        while not (ready := select.select(list(pipes), [], [], LOOK_S)[0]):
            for hand in self.busy:
                if (child := self.children[hand]).memory_bytes() > child.memory_limit:
                    return self.lost(hand, child.over_limit())
        hand = pipes[ready[0]]
        try:
            answer = self.children[hand].answer()
        except KaruiError as error:
            return self.lost(hand, error)
        self.busy.remove(hand)
        made = [read_made(one, Path(one["archive"]) if "archive" in one else None) for one in answer["made"]]
        return Finished(hand, made)

    def lost(self, hand: int, error: KaruiError) -> Finished:
        self.busy.remove(hand)
        self.children.pop(hand).kill()
        return Finished(hand, None, error.line)

    def close(self) -> None:
        for child in self.children.values():
            child.kill()
        self.private.cleanup()
