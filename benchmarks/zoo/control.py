"""The peer, Torch-Pruning 1.6.1, on the zoo: used as its documentation asks, judged like karui.

pip install --no-deps --target peer torch-pruning==1.6.1; PYTHONPATH=peer:src:. python -m benchmarks.zoo.sweep

Which numbers it removed is read off the result: while it prunes, every stored number is its own position.
The masked model then has zeros in the places that are missing. A worker process does the cases; one that
takes longer than ``LIMIT_S`` is ended and counts as hung.
"""

from __future__ import annotations

import copy
import json
import select
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping

import torch
from benchmarks.zoo import CASES, built
from benchmarks.zoo.case import Case
from benchmarks.zoo.exact import Outcome, Prepared, cut_at_random, prepare, tensors
from torch import Tensor, nn

LIMIT_S = 60.0
TOLERANCE = 1e-3  # of the largest answer, a hundred times what karui allows itself
LARGEST_EXACT = 1 << 24  # whole numbers that float32 holds
HEADS = ("num_heads", "heads")
PROJECTIONS = ("qkv", "c_attn", "query", "key", "value", "q_proj", "k_proj", "v_proj", "q", "k", "v", "kv")


def judged(names: list[str], ratio: float, seed: int) -> Iterator[tuple[str, str, str]]:
    """(name, verdict, detail) of each case.

    Verdicts: right, inexact (by nature, see ``Case.exact``), WRONG, crash, hang, ties (broken), leaves
    (layers that karui narrows) and untouched.
    """
    left = list(names)
    while left:
        worker = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.zoo.control", str(ratio), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        while left:
            name = left.pop(0)
            worker.stdin.write(f"{name}\n")
            if not select.select([worker.stdout], [], [], LIMIT_S)[0]:
                yield name, "hang", f"more than {LIMIT_S:.0f} s"
                break
            line = worker.stdout.readline()
            if not line:
                yield name, "crash", "the process ended"
                break
            yield (name, *json.loads(line))
        worker.kill()
        worker.wait()


def main() -> None:
    """The worker: names in, one JSON line each out."""
    ratio, seed = float(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # the peer prints
    cases = {case.name: case for case in CASES}
    for name in sys.stdin:
        print(json.dumps(verdict_of(cases[name.strip()], ratio, seed)), file=answers, flush=True)


def verdict_of(case: Case, ratio: float, seed: int) -> tuple[str, str]:
    network = built(case, seed)
    known = prepare(case, network)
    try:
        made = copy.deepcopy(network)
        kept = prune(made, case, ratio, known)
        found = against_masked(case, network, made, kept)
        if found or not kept:
            return found or ("untouched", "")
        return unpruned(network, kept, known, ratio, seed)
    except Exception as error:  # noqa: BLE001 - whatever it raises is a crash
        return "crash", f"{type(error).__name__}: {str(error).strip()[:80]}"


def prune(model: nn.Module, case: Case, ratio: float, known: Prepared | Outcome) -> dict[str, Tensor]:
    """Prune in place, at random, with heads' numbers given and updated as in the peer's examples.

    Gives what stayed of each tensor that lost something, as positions in the old one.
    """
    import torch_pruning as tp

    torch.manual_seed(0)
    numbers = heads_of(model)
    pruner = tp.pruner.BasePruner(
        model, case.inputs(2), importance=tp.importance.RandomImportance(), pruning_ratio=ratio,
        ignored_layers=outputs_of(model, known), num_heads=dict(numbers), prune_head_dims=True,
        prune_num_heads=False,
    )  # fmt: skip
    values = tagged(model)
    pruner.step()
    kept = untagged(model, values)
    for module in model.modules():
        for layer in module.children():
            if layer in numbers and isinstance(layer, nn.Linear):
                update_heads(module, layer, pruner.num_heads[layer])
    model.eval()
    return {name: ids for name, ids in kept.items() if ids.numel() < values[name].numel()}


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """The layers that give queries, keys and values, and their numbers of heads."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module] = module.num_heads
            continue
        count = next((vars(module)[name] for name in HEADS if isinstance(vars(module).get(name), int)), None)
        for name, layer in module.named_children():
            if count is not None and name in PROJECTIONS and isinstance(layer, nn.Linear):
                shared = vars(module).get("kv_heads") if name in ("k_proj", "v_proj") else None
                found[layer] = shared or count
    return found


def update_heads(module: nn.Module, layer: nn.Linear, heads: int) -> None:
    """As the peer's examples do after pruning; the width of a fused layer is that of three."""
    width = layer.out_features // (heads * layer_parts(module, layer))
    for name in ("head_dim", "head_size"):
        if isinstance(vars(module).get(name), int):
            setattr(module, name, width)


def layer_parts(module: nn.Module, layer: nn.Module) -> int:
    names = [name for name, child in module.named_children() if child is layer]
    return {"qkv": 3, "c_attn": 3, "kv": 2}.get(names[0], 1)


def outputs_of(model: nn.Module, known: Prepared | Outcome) -> list[nn.Module]:
    """The layers whose outputs are the model's: the peer has to be told."""
    if not isinstance(known, Prepared):
        return [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    ends = [name for name, why in known.groups.stays.items() if why == "the model's output"]
    paths = {name.partition("[")[0].removesuffix(".weight") for name in ends}
    return [module for path, module in model.named_modules() if path in paths]


def stored(model: nn.Module) -> dict[str, Tensor]:
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor for name, tensor in named if tensor.is_floating_point() and tensor.numel()}


@torch.no_grad()
def tagged(model: nn.Module) -> dict[str, Tensor]:
    """Replace every stored number by its position in its tensor; gives the numbers."""
    values = {name: tensor.detach().clone() for name, tensor in stored(model).items()}
    for name, tensor in stored(model).items():
        assert values[name].numel() < LARGEST_EXACT
        tensor.data.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    return values


@torch.no_grad()
def untagged(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the numbers back where their positions now are, and give the positions."""
    kept: dict[str, Tensor] = {}
    done: set[int] = set()
    for name, tensor in stored(model).items():
        if id(tensor) not in done:
            kept[name] = tensor.detach().long().clone()
            tensor.data.copy_(values[name].reshape(-1)[kept[name].reshape(-1)].reshape(tensor.shape))
            done.add(id(tensor))
    return kept


@torch.no_grad()
def against_masked(
    case: Case, network: nn.Module, made: nn.Module, kept: Mapping[str, Tensor]
) -> tuple[str, str] | None:
    """What is wrong with the pruned model, if anything."""
    masked = copy.deepcopy(network)
    for name, tensor in stored(masked).items():
        if name in kept:
            mask = torch.zeros(tensor.numel(), dtype=torch.bool)
            mask[kept[name].reshape(-1)] = True
            tensor.data.mul_(mask.reshape(tensor.shape))
    error = worst_error(masked, made, case)
    if not error <= TOLERANCE:
        return ("WRONG" if case.exact else "inexact"), f"{error:.1e}"
    return ("ties", "") if tied(network) > tied(made) else None


def unpruned(
    network: nn.Module, kept: Mapping[str, Tensor], known: Prepared | Outcome, ratio: float, seed: int
) -> tuple[str, str]:
    """Weights that karui narrows at the same ratio, and the peer does not."""
    if isinstance(known, Outcome):
        return "right", ""
    could = cut_at_random(known, known.groups.offered("dims"), ratio, seed)[0].positions.keys()
    weights = {name for name, tensor in stored(network).items() if tensor.ndim > 1}
    left = sorted((could & weights) - kept.keys())
    return ("leaves" if left else "right"), ", ".join(left)


def worst_error(masked: nn.Module, made: nn.Module, case: Case) -> float:
    given, worst = case.inputs(5), 0.0
    for mine, theirs in zip(tensors(made(*given)), tensors(masked(*given)), strict=True):
        if mine.shape != theirs.shape:
            return float("inf")
        worst = max(worst, float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)))
    return worst


def tied(model: nn.Module) -> int:
    """How many names share a tensor with an earlier one."""
    every = [id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False)]
    return len(every) - len(set(every))


if __name__ == "__main__":
    main()
