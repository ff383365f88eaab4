"""Blocks of the YOLO family, unmodified: every convolution outside the head loses outputs, exactly."""

from __future__ import annotations

import pytest
import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.exact import cut_at_random, difference, prepare
from torch import nn

torch.set_num_threads(1)
NAMES = ("c2f", "c2f_split", "c3", "c3k2", "csp_stage", "elan", "sppf", "c2psa", "yolo_v8", "yolo_11")
HEAD = "detect."


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in CASES if case.name in NAMES], ids=lambda case: case.name)
def test_every_convolution_outside_the_head_is_pruned(case):
    found = prepare(case, built(case, 0))
    made, _ = cut_at_random(found, found.groups.offered("dims"), 0.5, 0)
    assert difference(found.network, made, case) < 1e-5
    convolutions = [name for name, module in found.network.named_modules() if isinstance(module, nn.Conv2d)]
    outside = [name for name in convolutions if not name.startswith(HEAD)]
    assert [name for name in outside if "0" not in made.positions.get(f"{name}.weight", {})] == []
    assert not made.dropped
    inner = [name for name in convolutions if name.startswith(HEAD) and name.endswith(".0.conv")]
    assert all("0" in made.positions[f"{name}.weight"] for name in inner)
