"""A search in a space of recipes: what it tries next, what it need not try, and what it finds."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from karui import presets
from karui.budget import Budget
from karui.errors import UsageError
from karui.measurement import Measurement, Quality, Ratio, Timing, Trial, Verification
from karui.recipe import parse_recipe
from karui.search.enumerate import Aim
from karui.search.harsher import pointless
from karui.search.sample import propose
from karui.space import Axis, Space

MACS = ("", *(f"prune_channels:macs={share}" for share in ("0.75", "0.5", "0.25")))
SPACE = Space(
    (Axis("channels", MACS, ordered=True), Axis("recovery", ("", "finetune:steps=600"))),
    ("fp32", "int8", "bf16"),
    ("torch_eager", "onnxruntime", "openvino", "torchscript"),
)
ALLOWED = {point: str(SPACE.recipe(point)) for point in SPACE.points()}


def trial(recipe: str, speed: float = 1.0, drop: float = 0.0, allowed: float = 0.01) -> Trial:
    kept = drop <= allowed
    measured = Measurement(
        1000,
        900,
        Verification("verified on runtime"),
        Quality(0.9 - drop, drop, drop, drop, "within" if kept else "over", 1000),
        Timing((1.0 / speed,), (1.0 / speed,), 0.1, 0.1, 1000),
        Ratio(speed, speed, speed, "faster", "torch_eager-fp32"),
    )
    status = "kept" if kept else "rejected"
    return Trial(recipe, recipe, "onnxruntime", "fp32", status, "", measurement=measured)


def landscape(seed: int) -> dict[str, tuple[float, float]]:
    """Speed and drop of each recipe: factors of runtime, precision and width, and noise on all."""
    chance = random.Random(seed)
    of_runtime = {name: chance.uniform(1, 6) for name in SPACE.runtimes} | {"torch_eager": 1.0}
    of_precision = {"fp32": (1.0, 0.0), "int8": (chance.uniform(0.8, 2.5), 0.002), "bf16": (0.5, 0.0002)}
    hurts = chance.uniform(0.3, 3)
    found = {}
    for (width, recovered, precision, runtime), recipe in ALLOWED.items():
        speed, drop = of_precision[SPACE.precisions[precision]]
        speed *= of_runtime[SPACE.runtimes[runtime]] * (1, 1.2, 1.6, 2.4)[width]
        drop += hurts * (0, 0.002, 0.01, 0.06)[width] * (0.3 if recovered else 1)
        found[recipe] = speed * math.exp(chance.gauss(0, 0.05)), drop
    return found


@pytest.mark.gate
@pytest.mark.parametrize(("seed", "at_once"), [(0, 1), (1, 1), (2, 1), (1, 4)])
def test_the_best_of_a_space_is_found_in_a_quarter_of_its_trials(seed, at_once):
    truth = landscape(seed)
    best = max(speed for speed, drop in truth.values() if drop <= 0.01)
    first = [f"fp32@{name}" for name in SPACE.runtimes] + ["int8@onnxruntime", "int8@openvino"]
    trials = [trial(recipe, *truth[recipe]) for recipe in first]
    while len(trials) < len(truth) // 4:
        worth = {p: text for p, text in ALLOWED.items() if not pointless(SPACE.recipe(p), trials)}
        points = []
        for _ in range(min(at_once, len(truth) // 4 - len(trials))):
            points.append(propose(SPACE, worth, trials, Aim(0.01), points))
        assert len(set(points)) == len(points)
        assert not {ALLOWED[point] for point in points} & {one.recipe for one in trials}
        trials += [trial(ALLOWED[point], *truth[ALLOWED[point]]) for point in points]
    reached = max(one.measurement.speedup.ratio for one in trials if one.kept)
    assert reached >= 0.97 * best


def test_the_same_trials_and_seed_give_the_same_recipe_and_a_tried_one_is_not_proposed():
    trials = [trial("fp32@torch_eager"), trial("fp32@onnxruntime", 2.0)]
    assert propose(SPACE, ALLOWED, trials, Aim(0.01)) == propose(SPACE, ALLOWED, trials, Aim(0.01))
    three = dict(itertools.islice(ALLOWED.items(), 3))
    tried = [trial(text) for text in three.values()]
    assert propose(SPACE, three, tried[:2], Aim(0.01)) == list(three)[2]
    assert propose(SPACE, three, tried, Aim(0.01)) is None


def test_a_failed_trial_teaches_too():
    failed = Trial("x", ALLOWED[0, 0, 1, 0], "torch_eager", "int8", "failed", "no kernel")
    assert propose(SPACE, ALLOWED, [trial("fp32@torch_eager"), failed], Aim(0.01)) is not None


@pytest.mark.gate
def test_what_goes_farther_than_what_lost_too_much_is_left_out():
    over = [trial("prune_channels:macs=0.5 + fp32@onnxruntime", 2.0, 0.05)]

    def left_out(text: str) -> bool:
        return bool(pointless(parse_recipe(text), over))

    assert left_out("prune_channels:macs=0.25 + fp32@onnxruntime")
    assert left_out("prune_channels:macs=0.5 + int8@openvino")
    assert left_out("prune_channels:macs=0.4 + prune_weights:sparsity=0.8 + int8@openvino")
    assert not left_out("prune_channels:macs=0.5 + fp32@onnxruntime")  # itself
    assert not left_out("prune_channels:macs=0.75 + int8@openvino")
    assert not left_out("prune_channels:macs=0.25 + finetune:steps=600 + fp32@onnxruntime")
    assert not left_out("prune_channels:macs=0.25,importance=random + fp32@onnxruntime")
    assert not left_out("prune_channels:ratio=0.9 + fp32@onnxruntime")  # not known to be farther
    over = [trial("int8@onnxruntime", 2.0, 0.05)]
    assert left_out("prune_channels:macs=0.5 + int8@onnxruntime")
    assert not left_out("int8@openvino") and not left_out("round_weights + int8@onnxruntime")
    over = [trial("int8@onnxruntime", 2.0, 0.0)]
    assert not left_out("prune_channels:macs=0.5 + int8@onnxruntime")


def test_each_target_has_a_space_whose_recipes_can_be_read():
    for target in presets.names():
        for trains in (False, True):
            space = presets.space(target, Budget(objective="size"), trains=trains)
            points = list(space.points())
            assert len({str(space.recipe(point)) for point in points}) == len(points) > 20
            assert [axis.name for axis in space.axes].count("recovery") == trains
    only = presets.space("cpu", Budget()).on(("onnxruntime",))
    assert only.runtimes == ("onnxruntime",)


def test_an_axis_needs_different_choices():
    with pytest.raises(UsageError):
        Axis("channels", ("", ""))
    with pytest.raises(UsageError, match="objective"):
        Budget(objective="beauty")
