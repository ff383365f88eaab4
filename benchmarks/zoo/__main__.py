"""List the cases and check each: it runs, its outputs tell, it exports.

python -m benchmarks.zoo
"""

from __future__ import annotations

import warnings
from itertools import groupby

import torch
from benchmarks.zoo import CASES, Case, built
from torch import nn
from torch.utils import _pytree

PARAMETERS = 60_000
SPREAD = 1e-4


def main() -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "LSTM with projections")  # torch says that it takes a slower path
    bad, unexported = [], []
    for theme, cases in groupby(CASES, key=lambda case: case.theme):
        print(f"\n{theme}")
        for case in cases:
            model = built(case, seed=0)
            bad += [f"{case.name}: {problem}" for problem in problems(case, model)]
            refusal = export_refusal(case, model)
            unexported += [f"{case.name}{' (frozen)' * case.frozen}: {refusal}"] if refusal else []
            marks = ["inexact"] * (not case.exact) + ["frozen"] * case.frozen
            print(f"  {case.name:30} {size(model):6} {' '.join(marks)}".rstrip(), flush=True)
    names = [case.name for case in CASES]
    bad += [f"{name}: the name is taken" for name in sorted(set(names)) if names.count(name) > 1]
    print_totals(bad, unexported)
    return 1 if bad else 0


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def problems(case: Case, model: nn.Module) -> list[str]:
    """What is wrong with the case, in words."""
    found = [] if size(model) <= PARAMETERS else ["too many parameters"]
    weights = [p for p in model.parameters() if p.dim() > 1]
    found += [] if len(weights) > 1 else ["fewer than two weight layers"]
    for rows in (2, 3):
        outputs, again = outputs_of(model, case, rows), outputs_of(model, case, rows)
        if not all(torch.equal(a, b) for a, b in zip(outputs, again)):
            found.append(f"not deterministic at {rows} rows")
        for output in outputs:
            if not output.isfinite().all():
                found.append(f"not finite at {rows} rows")
            elif output.std() <= SPREAD or (output - output[:1]).abs().max() <= SPREAD:
                found.append(f"constant at {rows} rows, or over them")
    return found


def outputs_of(model: nn.Module, case: Case, rows: int) -> list[torch.Tensor]:
    leaves = _pytree.tree_leaves(model(*case.inputs(rows)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def export_refusal(case: Case, model: nn.Module) -> str | None:
    """The first line of why ``torch.export`` refuses. It warns of what it does with the weights of RNNs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.export(model, case.inputs(2), strict=False)
    except Exception as error:  # noqa: BLE001 - any error is the answer
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def print_totals(bad: list[str], unexported: list[str]) -> None:
    exact = [case for case in CASES if case.exact and not case.frozen]
    frozen = [case for case in CASES if case.frozen]
    inexact = len(CASES) - len(exact) - len(frozen)
    print(f"\n{len(CASES)} cases: {len(exact)} exact, {inexact} inexact by nature, {len(frozen)} frozen")
    for title, lines in (("wrong", bad), ("torch.export refuses", unexported)):
        print(f"{title}: {len(lines)}", *lines, sep="\n  ")


if __name__ == "__main__":
    raise SystemExit(main())
