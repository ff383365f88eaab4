"""Where zeros may lie in a weight: anywhere, n of every m kept, or in blocks that go as a whole.

    any           each weight by itself
    2:4           of every 4 consecutive input channels (at one place of the kernel) 2 stay at most
    4x1           blocks of 4 output and 1 input channels, at each place of the kernel
    kernel        the whole kernel of one input and one output channel
    row, column   one row or column of such a kernel

N:M in the layout of NVIDIA's sparse tensor cores: Mishra et al. 2021, arXiv:2104.08378; patterns within a
filter: Mao et al. 2017, arXiv:1705.08922.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from karui.errors import UsageError

N_OF_M = re.compile(r"(\d+):(\d+)")
BLOCK = re.compile(r"(\d+)x(\d+)")
IN_KERNEL = {"kernel": (), "row": (0,), "column": (-1,)}  # axes of the kernel that tell cells apart
FORMS = "any, 2:4 (n of every m stay), 4x1 (blocks of outputs x inputs), kernel, row or column"


@dataclass(frozen=True)
class Pattern:
    """n, m: of every m input channels n stay (m = 0: no such rule). block: outputs and inputs of a cell.

    kernel: which axes of the kernel tell cells apart; None for all of them.
    """

    text: str
    n: int = 0
    m: int = 0
    block: tuple[int, int] = (1, 1)
    kernel: tuple[int, ...] | None = None

    @property
    def zeros(self) -> float:
        """The share of zeros that the pattern itself asks for."""
        return 1 - self.n / self.m if self.m else 0.0


def parse_pattern(text: str) -> Pattern:
    """Raises UsageError for anything but the forms above."""
    if text == "any":
        return Pattern(text)
    if text in IN_KERNEL:
        return Pattern(text, kernel=IN_KERNEL[text])
    if (found := N_OF_M.fullmatch(text)) and 0 < int(found[1]) < int(found[2]):
        return Pattern(text, n=int(found[1]), m=int(found[2]))
    if (found := BLOCK.fullmatch(text)) and int(found[1]) and int(found[2]):
        return Pattern(text, block=(int(found[1]), int(found[2])))
    raise UsageError(f"no pattern of zeros {text!r}", fix=FORMS)


def misfit(shape: tuple[int, ...], axis: int, pattern: Pattern) -> str | None:
    """Why a weight cannot follow the pattern; None where it can. ``axis`` is that of the outputs."""
    inputs = shape[1 - axis]
    if pattern.kernel is not None and len(shape) == 2:
        return f"it has no kernel for zeros by {pattern.text}"
    if pattern.m and inputs % pattern.m:
        return f"{inputs} input channels are not in groups of {pattern.m}"
    return None


def kept(scores: Tensor, axis: int, pattern: Pattern, share: float) -> Tensor:
    """Which weights stay: bool, in the shape of ``scores``; those of the highest scores.

    share: of the weights that stay; N:M rules decide it themselves.
    """
    if pattern.m:
        return kept_of_each(scores, axis, pattern)
    numbers = cells(tuple(scores.shape), axis, pattern)
    values = of_cells(scores, numbers)
    stay = torch.zeros(len(values), dtype=torch.bool)
    stay[values.topk(round(share * len(values))).indices] = True
    return stay[numbers]


def kept_of_each(scores: Tensor, axis: int, pattern: Pattern) -> Tensor:
    last = scores.movedim(1 - axis, -1)
    best = groups_of(last, pattern.m).topk(pattern.n, -1).indices
    stay = torch.zeros_like(groups_of(last, pattern.m), dtype=torch.bool).scatter_(-1, best, True)
    return stay.reshape(last.shape).movedim(-1, 1 - axis)


def groups_of(last: Tensor, m: int) -> Tensor:
    """(..., n) as (..., n / m, m)."""
    return last.reshape(*last.shape[:-1], -1, m)


def cells(shape: tuple[int, ...], axis: int, pattern: Pattern) -> Tensor:
    """The number of the cell that each weight belongs to, from 0."""
    sizes = [1] * len(shape)
    sizes[axis], sizes[1 - axis] = pattern.block
    if pattern.kernel is not None:
        apart = {2 + place % (len(shape) - 2) for place in pattern.kernel}
        sizes[2:] = [1 if i in apart else shape[i] for i in range(2, len(shape))]
    counts = [-(-length // size) for length, size in zip(shape, sizes)]
    numbers = torch.arange(torch.Size(counts).numel()).reshape(counts)
    for i, (length, size) in enumerate(zip(shape, sizes)):
        numbers = numbers.repeat_interleave(size, i).narrow(i, 0, length)
    return numbers


def of_cells(scores: Tensor, numbers: Tensor) -> Tensor:
    """Mean score of each cell: cells at the edge may be smaller than the others."""
    flat = numbers.reshape(-1)
    sums = torch.zeros(int(flat.max()) + 1, dtype=scores.dtype).index_add_(0, flat, scores.reshape(-1))
    return sums / torch.bincount(flat)


def follows(weight: Tensor, axis: int, pattern: Pattern) -> bool:
    """Whether the zeros of a weight lie as the pattern wants them."""
    present = weight != 0
    if pattern.m:
        return bool((groups_of(present.movedim(1 - axis, -1), pattern.m).sum(-1) <= pattern.n).all())
    numbers = cells(tuple(weight.shape), axis, pattern)
    shares = of_cells(present.double(), numbers)
    return bool(functional.mse_loss(shares, (shares > 0).double()) == 0)
