"""The model in training: what its two graphs compute, and that what it learned reaches the runtime."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import karui
from karui import host, runtimes
from karui.errors import Unsupported, UsageError
from karui.graph.call import signature_of
from karui.graph.capture import capture
from karui.graph.inspect import state_digest
from karui.graph.program import predictor
from karui.graph.quantize_aware import QuantAware, Rounding, aware_of
from karui.graph.ranges import profiles
from karui.graph.ranges.learn import Step
from karui.graph.ranges.program import quantized
from karui.graph.ranges.table import TINY, U8, Range, load_table, save_table
from karui.numerics import Numerics
from karui.recipe import parse_named
from karui.runtimes import Source

ROWS = 32


class Residual(nn.Module):
    """(n, 2, 6, 6) -> (n, 3): norms before a clamp, before a sum, after a linear layer; dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.hidden, self.norm3, self.drop = nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        first = functional.relu(self.norm1(self.conv1(image)))
        second = torch.relu(self.norm2(self.conv2(first)) + first)
        return self.head(self.drop(torch.relu(self.norm3(self.hidden(second.flatten(1))))))


class Several(nn.Module):
    """Two inputs by keyword, a dict of answers, and a head that only training has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.extra = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        both = torch.relu(self.one(left)) + self.other(right)
        return {"both": both, "extra": self.extra(both)} if self.training else {"both": both}


def residual() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, images = Residual(), torch.randn(ROWS, 2, 6, 6)
    for norm in (net.norm1, net.norm2, net.norm3):
        nn.init.uniform_(norm.weight, -1.5, 1.5)  # a negative factor turns the channel's grid over
        nn.init.normal_(norm.bias)
    for _ in range(3):
        net(images)
    return net.eval(), images


def aware_with(net: nn.Module, images: Tensor, rounding: Rounding) -> QuantAware:
    signature, example = signature_of(net, images, 1)
    return aware_of(copy.deepcopy(net), signature, example, example, rounding)


def loop(aware: QuantAware, images: Tensor, steps: int = 8, lr: float = 1e-2) -> list[float]:
    """The user's own."""
    torch.manual_seed(1)
    targets = torch.randint(0, 3, (len(images),))
    optimizer = torch.optim.Adam(aware.train().groups(lr, scale_lr=lr))
    losses = []
    for _ in range(steps):
        loss = functional.cross_entropy(aware(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, QuantAware, list[float]]:
    """The original, its inputs, and the module after a loop."""
    net, images = residual()
    aware = karui.quantize_aware(net, images[:4], [(images,)])
    losses = loop(aware, images, steps=20)
    return net, images, aware.eval(), losses


def test_without_rounding_both_graphs_compute_what_the_model_does():
    net, images = residual()
    aware = aware_with(net, images, Rounding(protect=("*",)))
    assert not aware.steps and len(aware.left) == 4
    assert torch.equal(aware.eval()(images), net(images))
    torch.manual_seed(3)
    wanted = net.train()(images)
    torch.manual_seed(3)
    assert torch.equal(aware.train()(images), wanted)
    assert state_digest(aware.model) == state_digest(net)  # the statistics of norms moved alike


def test_rounding_stands_behind_norms_and_is_near_the_float_model():
    net, images = residual()
    aware = karui.quantize_aware(net, images[:4], [(images,)])
    learned = set(aware.ranges())
    assert {"conv1.weight", "conv2.weight", "hidden.weight", "head.weight"} < learned
    assert {":relu", "conv2:conv2d", ":relu#1", ":relu#2"} < learned and "conv1:conv2d" not in learned
    with torch.no_grad():
        apart = (aware.eval()(images) - net(images)).abs().max()
        assert 0 < apart < 0.1 * net(images).abs().max()


def test_all_weights_and_grids_learn(trained):
    net, _, aware, losses = trained
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    still = dict(net.named_parameters())
    moved = [name for name, one in aware.model.named_parameters() if not torch.equal(one, still[name])]
    assert sorted(moved) == sorted(still)
    assert all((step.size != 1).any() for step in aware.grids())
    assert any((step.shift != 0).any() for step in aware.grids())
    assert isinstance(aware.model, Residual)


def test_the_users_model_is_never_touched():
    net, images = residual()
    before = state_digest(net.train())
    loop(karui.quantize_aware(net, images[:4], [(images,)]), images, steps=2)
    assert state_digest(net) == before and net.training
    assert all(one.grad is None for one in net.parameters())


def source_of(aware: QuantAware, images: Tensor, folder, batch: int = 1) -> Source:
    signature, example = signature_of(aware.model, images, batch)
    signature = capture(copy.deepcopy(aware.model), signature, example, folder)
    aware.save_ranges(folder)
    return Source(folder, signature, Numerics("int8"), example, example)


def test_what_was_learned_reaches_the_runtime(trained, tmp_path):
    """Fake-quant in training form = folded reference = ONNX Runtime, to two steps of the answer's range."""
    onnxruntime = pytest.importorskip("karui.runtimes.onnxruntime")
    _, images, aware, _ = trained
    source = source_of(aware, images, tmp_path)
    bits = Rounding().weight_bits()
    found = quantized(source, profiles.onnxruntime(saturates=bits < 8), "minmax")
    with torch.no_grad():
        wanted = aware(images).numpy()
    step = np.ptp(wanted) / 255
    np.testing.assert_allclose(found.reference[0], wanted, atol=1e-4 * step)
    (tmp_path / "built").mkdir()
    runtime = onnxruntime.OnnxRuntime()
    runtime.build(source, tmp_path / "built")
    (answer,) = runtime.load(tmp_path / "built", source.signature, 1)(dict(source.probe))
    assert np.abs(answer - wanted).max() <= 2 * step


@pytest.mark.gate
@pytest.mark.parametrize("name", ["openvino", "torch_compile"])
def test_other_runtimes_compute_what_was_trained_for_them(name, tmp_path):
    """Trained with the runtime's own places: its INT8 answers are within two steps of the trained ones."""
    runtime = runtimes.load(parse_named(name))
    asked = runtimes.Ask(Numerics("int8"), layers={"Linear": 2}, flags=tuple(host.flags()))
    if reason := runtime.refuses(asked):
        pytest.skip(reason)
    net, images = residual()
    aware = aware_with(net, images, Rounding(runtime=name))
    loop(aware, images)
    with torch.no_grad():
        wanted = aware.eval()(images).numpy()
    source, folder = source_of(aware, images, tmp_path / "captured", ROWS), tmp_path / "built"
    folder.mkdir()
    built = runtime.build(source, folder)
    assert built.executed["int8_macs"] == 1.0
    step = np.ptp(wanted) / 255
    np.testing.assert_allclose(built.reference[0], wanted, atol=1e-3 * step)
    (answer,) = runtime.load(folder, source.signature, 1)(dict(source.probe))
    assert np.abs(answer - wanted).max() <= 2 * step
    assert (answer.argmax(1) == wanted.argmax(1)).all()


def test_every_learned_range_is_on_the_grid_that_was_trained(trained, tmp_path):
    *_, aware, _ = trained
    save_table(aware.ranges(), tmp_path)
    table = load_table(tmp_path)
    for step in aware.grids():
        scale, zero = table[step.key].on(step.grid)
        torch.testing.assert_close(scale.reshape(-1), step.scale().detach(), rtol=3e-7, atol=0)
        assert torch.equal(zero.reshape(-1), step.zero_point().detach().round())
        assert table[step.key].learned


def test_frozen_norms_keep_their_statistics_and_dropout_goes_on():
    net, images = residual()
    aware = karui.quantize_aware(net, images[:4], [(images,)]).train()
    aware.freeze_norms()
    before = {key: value.clone() for key, value in aware.model.named_buffers()}
    one, two = aware(3 * images), aware(3 * images)
    assert not torch.equal(one, two)
    assert all(torch.equal(value, before[key]) for key, value in aware.model.named_buffers())
    aware.freeze_norms(False)
    aware(3 * images)
    assert not torch.equal(aware.model.norm1.running_mean, before["norm1.running_mean"])
    assert int(aware.model.norm1.num_batches_tracked) == int(before["norm1.num_batches_tracked"]) + 1


def test_answers_and_inputs_keep_their_form_and_a_head_of_training_stays_in_float():
    torch.manual_seed(0)
    net, rows = Several().eval(), {"left": torch.randn(ROWS, 4), "right": torch.randn(ROWS, 4)}
    aware = karui.quantize_aware(net, rows, [rows])
    assert set(aware.train()(**rows)) == {"both", "extra"}
    assert set(aware.eval()(rows["left"], right=rows["right"])) == {"both"}
    assert torch.equal(aware(rows)["both"], aware(**rows)["both"])
    assert {"one.weight", "other.weight"} < set(aware.ranges()) and "extra.weight" not in aware.ranges()
    with pytest.raises(UsageError, match="do not fit the model"):
        aware(rows["left"])


def test_what_is_computed_without_gradients_stays_so():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = nn.Linear(4, 6), nn.Linear(6, 2)
            self.shift = torch.arange(6.0)  # no buffer: the export keeps it as a constant

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                seen = torch.relu(self.below(x)) + self.shift
            return self.above(seen)

    x = torch.randn(ROWS, 4)
    net = Frozen().eval()
    aware = karui.quantize_aware(net, x, [x])
    aware.train()(x).sum().backward()
    assert aware.model.below.weight.grad is None and aware.model.above.weight.grad is not None
    torch.testing.assert_close(aware.eval()(x), net(x), atol=0.3, rtol=0.1)


def test_scales_stay_positive_and_zero_points_on_the_grid():
    net, images = residual()
    aware = karui.quantize_aware(net, images[:4], [(images,)]).train()
    for step in aware.grids():
        step.size.data.fill_(-5)
        step.shift.data.fill_(9)
    loss = sum(aware(part).square().mean() for part in images.split(16))  # two calls, one backward
    loss.backward()
    for step in aware.grids():
        assert (step.scale() > TINY).all()
        assert step.grid.low <= step.zero_point().min() and step.zero_point().max() <= step.grid.high


def test_a_copy_and_a_state_dict_carry_on_alone(trained):
    _, images, aware, _ = trained
    twin = copy.deepcopy(aware)
    with torch.no_grad():
        twin.model.head.bias += 1
        torch.testing.assert_close(twin(images), aware(images) + 1)
        twin.load_state_dict(aware.state_dict())
        assert torch.equal(twin(images), aware(images))


def test_a_fixed_batch_is_told():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.view(8, 4))

    x = torch.randn(8, 4)
    aware = karui.quantize_aware(Fixed().eval(), x, [(x,)])
    assert aware.rows == 8 and aware.train()(x).shape == (8, 4)


def test_what_cannot_be_is_said():
    net, images = residual()
    for bits in (0, 9):
        with pytest.raises(UsageError, match=f"{bits} bits"):
            karui.quantize_aware(net, images, [(images,)], bits=bits)
    with pytest.raises(Unsupported, match="no layer can be rounded"):
        karui.quantize_aware(net, images, [(images,)], protect=("*",))
    with pytest.raises(UsageError, match="calibration set is empty"):
        karui.quantize_aware(net, images, [])
    with pytest.raises(UsageError, match="no observer"):
        karui.quantize_aware(net, images, [(images,)], observer="best")
    with pytest.raises(UsageError, match="no places are known"):
        aware_with(net, images, Rounding(runtime="abacus"))


def test_the_forms_share_one_set_of_tensors():
    net, images = residual()
    aware = karui.quantize_aware(net, images[:4], [(images,)], bits=4)
    names = [name for name, _ in aware.named_parameters()]
    assert len(names) == len(set(names)) and all(name.startswith(("model.", "steps.")) for name in names)
    assert {one.bits for one in aware.ranges().values() if one.role == "weight"} == {4}
    assert predictor(aware.eval(), signature_of(net, images, 1)[0])({"image": images.numpy()})[0].shape


@pytest.mark.parametrize(("low", "learns"), [(0.0, False), (-0.5, True)])
def test_only_tensors_that_go_below_zero_learn_where_zero_lies(low, learns):
    """Else the ReLU before the grid could not be joined with its layer, which would stay in float."""
    step = Step("relu", Range(torch.tensor(low), torch.tensor(2.0)), U8)
    assert step.shift.requires_grad is learns and step.size.requires_grad
