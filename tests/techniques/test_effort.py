"""A first look at a training: every technique that trains takes a share of its steps when it is asked to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from karui import techniques
from karui.errors import Unsupported
from karui.graph.call import signature_of
from karui.graph.inspect import private_copy
from karui.recipe import parse_named
from karui.techniques import Given

INPUTS = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
FORMS = {
    "finetune": ("finetune:steps=50", "finetune:epochs=5,batch=20"),
    "distill": ("distill:steps=50", "distill:epochs=5,batch=20"),
    "quantize_aware": ("quantize_aware:steps=50", "quantize_aware:epochs=5,batch=20"),
    "iterative": ('iterative:rounds=1,recover=["finetune:steps=50"]',),
}


def given(net: nn.Module, effort: float, seen: list) -> Given:
    signature, example = signature_of(net, INPUTS[:4], 1)
    arrays = {signature.inputs[0].name: INPUTS.numpy()}
    data = INPUTS, INPUTS[:, :3].argmax(1)
    return Given(example, arrays, signature, data, teacher=net, watch=seen.append, effort=effort)


def net_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def steps(text: str, effort: float) -> int:
    net, seen = net_of(), []
    techniques.load(parse_named(text)).apply(private_copy(net), given(net, effort, seen))
    assert all(progress.steps == len(seen) for progress in seen)
    return len(seen)


def every() -> Iterator[str]:
    return (name for name in techniques.names() if techniques.find(name).TRAINS)


def test_these_are_the_techniques_that_train():
    assert sorted(FORMS) == list(every())


@pytest.mark.parametrize("text", [text for forms in FORMS.values() for text in forms])
def test_a_tenth_of_the_steps_is_taken_and_one_at_least(text):
    pytest.importorskip("lightning_fabric")
    assert (steps(text, 0.1), steps(text, 1e-6)) == (5, 1)


def test_a_training_that_would_take_too_long_is_given_up_in_a_look_as_well():
    pytest.importorskip("lightning_fabric")
    assert steps("finetune:steps=2000,most_s=600", 0.01) == 20
    with pytest.raises(Unsupported, match="the training would take"):
        steps("finetune:steps=200000000,most_s=600", 1e-7)
