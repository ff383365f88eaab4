"""A pruned model is saved, opened by the user's own class, replayed on other weights, and trained further."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.exact import difference, tensors, zeroed
from torch import nn

import karui
from karui.errors import Tampered, Unsupported, UsageError
from karui.graph.cut import Cut

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
BY_NAME = {case.name: case for case in CASES}
PART = CASES[1::12]
KINDS = ("vgg", "resnet", "fused_qkv", "lstm", "literal_view")  # the last needs its graph
AT_RANDOM = "prune_channels:ratio=0.5,importance=random,compensate=false"


def prune(case, seed=0, how=AT_RANDOM):
    given = case.inputs(8)
    return karui.prune(karui.Task(built(case, seed), inputs=given if len(given) > 1 else given[0]), how)


@torch.no_grad()
def answers(model, case, rows=5):
    return tensors(model.eval()(*case.inputs(rows)))


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PART, ids=lambda case: case.name)
def test_saved_and_opened_again_or_refused(case, tmp_path):
    try:
        pruned = prune(case)
    except Unsupported as error:  # test_cut.py shows that this is rare
        assert "found nothing to remove" in error.what
        return
    pruned.save(tmp_path / "it")
    found = karui.load_pruned(tmp_path / "it", built(case, 1))
    assert type(found.model) is type(pruned.model)
    assert same(answers(found.model, case), answers(pruned.model, case))
    assert found.manifest == pruned.manifest
    assert found.manifest.positions


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PART[::2], ids=lambda case: case.name)
def test_replayed_on_another_checkpoint_or_refused(case):
    try:
        pruned = prune(case)
    except Unsupported as error:
        assert "found nothing to remove" in error.what
        return
    other = built(case, 3)
    before = copy.deepcopy(other.state_dict())
    found = pruned.replay(other)
    made = Cut(found.model, "", 0.0, frozenset(), pruned.manifest.positions)
    assert difference(other, made, case) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


class Normed(nn.Module):
    """(n, 8) -> (n, 3), with a layer norm over the hidden units."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.norm(torch.relu(self.first(x))))


def test_what_was_pruned_inexactly_is_opened_again_and_says_so(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(60, 8)
    pruned = karui.prune(karui.Task(Normed().eval(), inputs=x, calibrate=[x]), "prune_channels:inexact=true")
    assert "layer_norm" in pruned.facts["inexact"][0]
    pruned.save(tmp_path / "it")
    found = karui.load_pruned(tmp_path / "it", Normed())
    assert torch.equal(found.model(x), pruned.model(x))
    assert found.model.norm.normalized_shape == (8,)


OPEN = """
import sys, warnings
import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.exact import tensors
import karui
warnings.simplefilter("ignore")
torch.set_num_threads(1)
for name in sys.argv[2:]:
    case = next(case for case in CASES if case.name == name)
    found = karui.load_pruned(f"{sys.argv[1]}/{name}", built(case, 7))
    with torch.no_grad():
        torch.save(tensors(found.model(*case.inputs(5))), f"{sys.argv[1]}/{name}.pt")
"""


@pytest.mark.gate
@pytest.mark.filterwarnings("ignore")
def test_opened_in_a_fresh_process_it_answers_bit_for_bit(tmp_path):
    forms = {}
    for name in KINDS:
        pruned = prune(BY_NAME[name])
        pruned.save(tmp_path / name)
        forms[name] = pruned.facts["form"], answers(pruned.model, BY_NAME[name])
    subprocess.run([sys.executable, "-c", OPEN, tmp_path, *KINDS], check=True, cwd=ROOT)
    for name, (_, wanted) in forms.items():
        assert same(torch.load(tmp_path / f"{name}.pt", weights_only=True), wanted)
    assert {form for form, _ in forms.values()} == {"module", "graph"}


class Net(nn.Module):
    """A convolution with batch norm, a residual sum, tied linear layers."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Linear(width, 20)
        self.outer = nn.Linear(20, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(x + self.outer(torch.tanh(self.inner(x))))


def net(seed=0, width=12):
    torch.manual_seed(seed)
    made = Net(width)
    made.norm.running_var.uniform_(0.5, 2)
    return made.eval()


X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pruned():
    return karui.prune(karui.Task(net(), inputs=X), "prune_channels:ratio=0.5,importance=ln,compensate=false")


@pytest.fixture
def folder(pruned, tmp_path):
    return pruned.save(tmp_path / "pruned")


@pytest.mark.gate
def test_the_folder_holds_positions_and_weights_and_no_code(pruned, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "pruned.json"]
    facts = json.loads((folder / "pruned.json").read_text())
    assert facts["schema"] == "karui.pruned/1"
    assert facts["recipe"] == "prune_channels:ratio=0.5,importance=ln,compensate=false"
    assert facts["shapes"]["conv.weight"] == [12, 3, 3, 3]
    kept = facts["parts"][""]["positions"]["conv.weight"]["0"]
    whole, cut = net().conv.weight, pruned.model.conv.weight
    assert torch.equal(cut, whole[kept]) and len(kept) == 6
    with pytest.raises(UsageError, match="there already"):
        pruned.save(folder)


def test_modes_stay_those_of_the_model_that_is_given(folder):
    found = karui.load_pruned(folder, net().train())
    assert found.model.training and found.model.norm.training
    assert not karui.load_pruned(folder, net()).model.norm.training


@pytest.mark.gate
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("model.safetensors", lambda data: data[: len(data) // 2]),
        ("pruned.json", lambda data: data[:-20]),
        ("pruned.json", lambda data: data.replace(b'"files"', b'"other"')),
        ("pruned.json", lambda data: data.replace(b'"0": [', b'"0": [999, ', 1)),
        ("pruned.json", lambda data: data.replace(b'"0": [', b'"7": [', 1)),
        ("pruned.json", lambda data: b"[]"),
    ],
)
def test_changed_files_are_refused(folder, name, change):
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(Tampered):
        karui.load_pruned(folder, net())


def test_a_file_that_leads_elsewhere_is_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Tampered, match="leads out"):
        karui.load_pruned(folder, net())


def test_positions_that_are_no_units_are_refused(folder):
    facts = json.loads((folder / "pruned.json").read_text())
    positions = facts["parts"][""]["positions"]
    kept = positions["conv.bias"]["0"]
    positions["conv.bias"]["0"] = sorted({*kept[1:], next(i for i in range(12) if i not in kept)})
    (folder / "pruned.json").write_text(json.dumps(facts))
    with pytest.raises(Unsupported, match="units"):
        karui.load_pruned(folder, net())


@pytest.mark.gate
def test_another_architecture_is_refused(pruned, folder, tmp_path):
    for call in (lambda: karui.load_pruned(folder, net(width=16)), lambda: pruned.replay(net(width=16))):
        with pytest.raises(UsageError, match="not the architecture") as error:
            call()
        assert "conv.weight is (16, 3, 3, 3), and was (12, 3, 3, 3) before the cut" in error.value.why
    with pytest.raises(UsageError, match="no pruned model"):
        karui.load_pruned(tmp_path, net())


def test_code_that_changed_since_is_refused(folder, monkeypatch):
    monkeypatch.setattr(
        Net, "forward", lambda self, x: self.head(torch.relu(self.conv(x)).mean((2, 3)).cumsum(1))
    )
    with pytest.raises(Unsupported, match="cannot be cut"):
        karui.load_pruned(folder, net())


# training goes on

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, amsgrad=True),
}


def step(model, optimizer, seed):
    target = torch.randint(4, (16,), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), target).backward()
    optimizer.step()


@pytest.mark.gate
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_with_the_state_remapped_is_the_masked_models_step(kind):
    """On the kept positions; the masked model's removed ones are zero and get no gradient of importance."""
    model = net()
    before = OPTIMIZERS[kind](model.parameters())
    for seed in range(3):
        step(model, before, seed)
    pruned = karui.prune(karui.Task(model, inputs=X), AT_RANDOM)
    narrow, masked = pruned.model, zeroed(model, pruned.manifest.positions)
    optimizers = [OPTIMIZERS[kind](m.parameters()) for m in (narrow, masked)]
    optimizers[0].load_state_dict(pruned.optimizer_state(before.state_dict()))
    optimizers[1].load_state_dict(before.state_dict())
    for m, optimizer in zip((narrow, masked), optimizers):
        step(m, optimizer, 5)
    for (name, mine), theirs in zip(narrow.named_parameters(), masked.parameters()):
        assert torch.allclose(mine, pruned.manifest.sliced(name, theirs), rtol=1e-5, atol=1e-7), name
    again = optimizers[0].state_dict()["state"]
    assert all(int(entry["step"]) == 4 for entry in again.values() if "step" in entry)


def trained(parameters, kind="adamw"):
    model = net()
    optimizer = OPTIMIZERS[kind](parameters(model))
    step(model, optimizer, 0)
    return model, optimizer


def test_groups_need_names(pruned):
    def groups(model):
        biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
        others = [p for name, p in model.named_parameters() if not name.endswith("bias")]
        return [{"params": biases, "weight_decay": 0.0}, {"params": others}]

    model, optimizer = trained(groups)
    with pytest.raises(UsageError, match="which parameter is which"):
        pruned.optimizer_state(optimizer.state_dict())
    names = [name for name, _ in model.named_parameters()]
    order = [n for n in names if n.endswith("bias")] + [n for n in names if not n.endswith("bias")]
    found = pruned.optimizer_state(optimizer.state_dict(), order)
    assert [len(group["params"]) for group in found["param_groups"]] == [5, 5]
    assert found["state"][order.index("inner.weight")]["exp_avg"].shape == pruned.model.inner.weight.shape
    with pytest.raises(UsageError, match="10 parameters, and 3"):
        pruned.optimizer_state(optimizer.state_dict(), order[:3])
    with pytest.raises(UsageError, match="no parameter 'nose'"):
        pruned.optimizer_state(optimizer.state_dict(), ["nose", *order[1:]])


def test_names_that_the_optimizer_keeps_are_used(pruned):
    _, optimizer = trained(lambda model: list(model.named_parameters())[::-1])
    found = pruned.optimizer_state(optimizer.state_dict())
    assert found["state"][0]["exp_avg"].shape == pruned.model.head.bias.shape
    assert found["state"][5]["exp_avg"].shape == pruned.model.inner.weight.shape


def test_states_of_other_shapes_are_refused(pruned):
    _, optimizer = trained(lambda model: model.parameters())
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.zeros(7)
    with pytest.raises(Unsupported, match="exp_avg of conv.weight"):
        pruned.optimizer_state(state)


@pytest.mark.gate
def test_zeros_take_no_room_in_the_folder(tmp_path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).eval(), torch.randn(200, 64)
    task = karui.Task(net, x[:4], calibrate=[x])
    found = karui.prune(task, "prune_weights:sparsity=0.95")
    found.save(tmp_path / "sparse")
    dense = sum(p.numel() * 4 for p in net.parameters())
    assert (tmp_path / "sparse" / "model.safetensors").stat().st_size < 0.2 * dense
    again = karui.load_pruned(tmp_path / "sparse", net).model
    for name, weight in found.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
