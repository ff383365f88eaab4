"""Whole attention heads go, exactly, in every spelling of attention; head dims go as before."""

from __future__ import annotations

import pytest
import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.attention import (
    ExpandedQuery,
    FusedChunk,
    FusedQkv,
    GroupedQuery,
    LiteralHeadDim,
    LiteralHeads,
    SeparateQkv,
    Wrapped,
)
from benchmarks.zoo.case import Case, normal
from benchmarks.zoo.exact import check, difference, prepare
from benchmarks.zoo.library_attention import SelfMha
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karui.graph.cut import cut
from karui.graph.cut.removal import Removal

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = {  # heads -> a module on vectors of 24 numbers
    "fused": lambda heads: FusedQkv(24, heads),
    "fused_split": lambda heads: FusedChunk(24, heads),
    "separate": lambda heads: SeparateQkv(24, heads, 10),
    "literal_heads": lambda heads: LiteralHeads(24, 4, 6),
    "literal_head_dim": lambda heads: LiteralHeadDim(24, heads, 6),
    "grouped_query": lambda heads: GroupedQuery(24, 2 * heads, heads, 6),
    "grouped_query_expanded": lambda heads: ExpandedQuery(24, 2 * heads, heads, 6),
    "rotary": lambda heads: GroupedQuery(24, 2 * heads, heads, 6, rotary=True),
    "multi_query": lambda heads: GroupedQuery(24, heads, 1, 6),
    "multi_query_expanded": lambda heads: ExpandedQuery(24, heads, 1, 6),
    "library": lambda heads: SelfMha(24, heads, False, batch_first=True),
    "library_weights": lambda heads: SelfMha(24, heads, True),
    "library_causal": lambda heads: SelfMha(24, heads, False, causal=True, add_bias_kv=True),
}

OUTPUTS = tuple(f"attention.{name}.weight" for name in ("out", "proj", "o_proj", "c_proj", "out_proj"))


def case_of(kind, heads):
    return Case(kind, "heads", lambda: Wrapped(KINDS[kind](heads)), normal((6, 8)))


@pytest.mark.gate
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from((2, 3, 4)), st.integers(0, 1000))
def test_one_head_goes_without_a_trace(kind, heads, seed):
    case = case_of(kind, heads)
    found = prepare(case, built(case, seed))
    (group,) = [group for group in found.groups.of if group.heads]
    assert len(group.units) == (4 if kind == "literal_heads" else heads)
    unit = group.units[seed % len(group.units)]
    gone = Removal(found.units.classes).closure({unit}, {}, set())
    assert gone == set(group.parts(unit))
    made = cut(found.network, found.units, [gone], found.arrays)
    assert made.removed == gone
    assert difference(found.network, made, case) < 1e-5
    (columns,) = [axes["1"] for path, axes in made.positions.items() if path.endswith(OUTPUTS)]
    whole = dict(found.network.named_parameters())
    (before,) = [tensor.shape[1] for path, tensor in whole.items() if path.endswith(OUTPUTS)]
    assert len(columns) * len(group.units) == before * (len(group.units) - 1)


ATTENTIVE = ("attention", "library_attention", "transformers")


@pytest.mark.gate
@pytest.mark.parametrize("case", [c for c in CASES if c.theme in ATTENTIVE], ids=lambda case: case.name)
def test_half_of_the_heads_go_without_a_trace(case):
    found = check(case, built(case, 1), 0.5, 1, "whole")
    assert found.verdict in ("exact", "nothing"), found
    if found.verdict == "nothing":
        assert found.why
