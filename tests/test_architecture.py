"""The house rules that no linter knows: sizes, class depth, where exceptions are caught, public names."""

from __future__ import annotations

import ast
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import karui

SOURCE = Path(karui.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
FUNCTIONS = [
    (path, node)
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
]
PUBLIC = [
    "Budget", "KaruiError", "Numerics", "Recipe", "Result", "Score", "Target", "Task",
    "apply", "bench", "blank", "distill", "finetune", "load", "load_pruned", "optimize", "prune", "quantize",
    "quantize_aware", "size_bytes", "sparsity",
]  # fmt: skip


def lines(node: ast.AST) -> int:
    """Lines of a function without its docstring."""
    body = node.body
    first = body[0]
    is_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    doc = first.end_lineno - first.lineno + 1 if is_doc else 0
    return node.end_lineno - node.lineno + 1 - doc


def test_files_are_under_400_lines():
    assert [p.name for p in FILES if len(p.read_text().splitlines()) > 400] == []


def test_functions_are_under_40_lines_and_mostly_short():
    long = [f"{path.name}:{node.name}" for path, node in FUNCTIONS if lines(node) > 40]
    assert long == []
    assert statistics.median(lines(node) for _, node in FUNCTIONS) <= 10


def test_every_module_says_what_it_is():
    assert [p.name for p, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_exceptions_of_all_kinds_are_caught_in_one_function():
    catching = [
        f"{path.relative_to(SOURCE)}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") == "Exception")
    ]
    assert catching == ["errors.py"]


def test_no_kwargs_in_our_signatures_no_super_no_pickle():
    # a call wrapper passes on the user's own arguments, whatever their names
    passing_on = {"call", "forward"}
    loose = [f"{p.name}:{n.name}" for p, n in FUNCTIONS if n.args.kwarg and n.name not in passing_on]
    assert loose == []
    ours = [
        tree for path, tree in TREES.items() if path.parent.name != "demo"
    ]  # networks as users write them
    calls = {
        node.func.id
        for tree in ours
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"super", "hasattr", "eval", "exec"}
    imported = {
        alias.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not imported & {"pickle", "socket", "requests", "urllib"}
    pickling = [path.name for path in FILES if "cloudpickle" in path.read_text()]
    assert pickling == ["sealed.py"]


def test_no_room_is_called_utils():
    assert [p for p in FILES if p.stem in ("utils", "util", "common", "helpers", "misc")] == []


@pytest.mark.gate
def test_public_names():
    assert sorted(karui.__all__) == sorted(PUBLIC)
    assert all(getattr(karui, name) is not None for name in PUBLIC)


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.gate
def test_importing_karui_and_building_the_command_line_load_nothing_heavy():
    heavy = {"torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "matplotlib"}
    assert not imported_by("import karui") & heavy
    assert not imported_by("from karui.cli.main import parser; parser()") & heavy


def test_the_guard_can_fail():
    assert "numpy" in imported_by("import karui.bench.stats")


@pytest.mark.gate
def test_help_takes_less_than_300_ms():
    """Processor time, user and system: wall time would measure the neighbours."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(5):
        subprocess.run([sys.executable, "-m", "karui", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    assert spent / 5 < 0.3
