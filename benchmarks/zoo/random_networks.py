"""Random small networks: the same seed gives the same network. What a user would not write, but could."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from benchmarks.zoo.case import Case, normal
from torch import Tensor, nn
from torch.nn import functional

SIDE, STEPS = 8, 9


Operation = Callable[..., Tensor]  # of the network's layers and the sources: a copy runs its own layers


class RandomNetwork(nn.Module):
    """A straight program over a few live feature maps of shape (n, c, 8, 8), then a linear head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.chance = random.Random(seed)
        self.layers = nn.ModuleList()
        self.program: list[tuple[Operation, tuple[int, ...]]] = []
        self.widths = [3]
        self.put(self.conv(3, self.width()), 0)
        for _ in range(STEPS):
            self.step()
        self.live = list(range(max(1, len(self.widths) - 3), len(self.widths)))
        self.head = nn.Linear(sum(self.widths[i] for i in self.live), 5)

    def width(self) -> int:
        return self.chance.choice((6, 8, 12))

    def any(self) -> int:
        return self.chance.randrange(1, len(self.widths))

    def put(self, made: tuple[Operation, int], *sources: int) -> None:
        operation, width = made
        self.program.append((operation, sources))
        self.widths.append(width)

    def layer(self, module: nn.Module) -> int:
        self.layers.append(module)
        return len(self.layers) - 1

    def conv(self, inputs: int, outputs: int, groups: int = 1) -> tuple[Operation, int]:
        kernel, bias = self.chance.choice((1, 3)), self.chance.random() < 0.5
        conv = self.layer(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias))
        norm = self.layer(nn.BatchNorm2d(outputs) if self.chance.random() < 0.6 else nn.Identity())
        return lambda layers, x: functional.relu(layers[norm](layers[conv](x))), outputs

    def step(self) -> None:
        kinds = (
            self.plain, self.plain, self.added, self.joined, self.grouped, self.depthwise, self.shuffled,
            self.halves, self.sliced, self.padded, self.flipped, self.gated, self.scaled, self.attended,
        )  # fmt: skip
        self.chance.choice(kinds)()

    def plain(self) -> None:
        i = self.any()
        self.put(self.conv(self.widths[i], self.width()), i)

    def added(self) -> None:
        i, j = self.any(), self.any()
        if self.widths[i] != self.widths[j]:
            self.put(self.conv(self.widths[j], self.widths[i]), j)
            j = len(self.widths) - 1
        self.put((lambda layers, x, y: x + y, self.widths[i]), i, j)

    def joined(self) -> None:
        i, j = self.any(), self.any()
        width = self.widths[i] + self.widths[j]
        if width <= 24:
            self.put((lambda layers, x, y: torch.cat([x, y], 1), width), i, j)

    def grouped(self) -> None:
        i = self.any()
        groups = self.chance.choice([g for g in (2, 3) if self.widths[i] % g == 0] or [1])
        self.put(self.conv(self.widths[i], self.chance.choice((6, 12)), groups), i)

    def depthwise(self) -> None:
        i = self.any()
        self.put(self.conv(self.widths[i], self.widths[i], self.widths[i]), i)

    def shuffled(self) -> None:
        i = self.any()
        if self.widths[i] % 2 == 0:
            self.put((shuffle, self.widths[i]), i)

    def halves(self) -> None:
        i = self.any()
        if self.widths[i] % 2 == 0:
            self.put((lambda layers, x: functional.glu(x, 1), self.widths[i] // 2), i)

    def sliced(self) -> None:
        i = self.any()
        if self.widths[i] > 4:
            self.put((lambda layers, x: x[:, 2:], self.widths[i] - 2), i)

    def padded(self) -> None:
        i = self.any()
        if self.widths[i] <= 20:
            self.put((lambda layers, x: functional.pad(x, (0, 0, 0, 0, 1, 2)), self.widths[i] + 3), i)

    def flipped(self) -> None:
        i = self.any()
        self.put((lambda layers, x: x + x.flip(1), self.widths[i]), i)

    def gated(self) -> None:
        i = self.any()
        down, up = (self.layer(nn.Linear(*sizes)) for sizes in ((self.widths[i], 4), (4, self.widths[i])))

        def gate(layers: nn.ModuleList, x: Tensor) -> Tensor:
            weights = torch.sigmoid(layers[up](functional.relu(layers[down](x.mean((2, 3))))))
            return x * weights[:, :, None, None]

        self.put((gate, self.widths[i]), i)

    def scaled(self) -> None:
        i = self.any()
        scale = self.layer(nn.ParameterList([nn.Parameter(torch.ones(self.widths[i], 1, 1))]))
        self.put((lambda layers, x: x * layers[scale][0], self.widths[i]), i)

    def attended(self) -> None:
        """Attention between the pixels: channels are the width of queries, keys and values."""
        i = self.any()
        parts = [self.layer(nn.Conv2d(self.widths[i], 6, 1)) for _ in range(3)]

        def attend(layers: nn.ModuleList, x: Tensor) -> Tensor:
            q, k, v = (layers[part](x).flatten(2).transpose(1, 2) for part in parts)
            mixed = torch.softmax(q @ k.transpose(1, 2) * 0.4, -1) @ v
            return mixed.transpose(1, 2).unflatten(2, (SIDE, SIDE))

        self.put((attend, 6), i)

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for operation, sources in self.program:
            found.append(operation(self.layers, *(found[i] for i in sources)))
        return self.head(torch.cat([found[i].mean((2, 3)) for i in self.live], 1))


def shuffle(layers: nn.ModuleList, x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def random_case(seed: int) -> Case:
    return Case(f"random_{seed}", "random", lambda: RandomNetwork(seed), normal((3, SIDE, SIDE)))
