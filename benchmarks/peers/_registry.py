"""Which tools and ways there are, how many lines a user writes for each, and where each runs.

Lines: those with code in the body of a way's function and of the functions that it calls, in its own file or
in ``_user.py``, each once. Blank lines, comments, docstrings and the functions' own first lines do not count,
nor what serves the bench: the recipe that is returned, and functions whose names begin with an underscore.
"""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path

HERE = Path(__file__).parent
GIVEN = "Given"


def tools() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules([str(HERE)]) if not m.name.startswith("_"))


def ways(tool: str) -> list[str]:
    """Functions that take nothing but what is given and return a recipe, in the order of the file."""
    return [name for name, function in functions(tool).items() if is_way(function)]


def is_way(function: ast.FunctionDef) -> bool:
    kinds = [ast.unparse(one.annotation) for one in function.args.args if one.annotation]
    returned = ast.unparse(function.returns) if function.returns else ""
    return kinds == [GIVEN] and not function.args.kwonlyargs and returned in ("str", "dict[str, Path]")


def packages(tool: str, kind: str) -> tuple[str, ...]:
    """The file's constant BESIDE (put beside our own packages) or ALONE (an environment of its own)."""
    for node in tree_of(tool).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == kind:
            return tuple(ast.literal_eval(node.value))
    return ()


def lines(tool: str, way: str) -> int:
    known = functions("_user") | functions(tool)
    todo, seen = [way], set()
    while todo:
        name = todo.pop()
        if name in known and name not in seen and not name.startswith("_"):
            seen.add(name)
            todo += called(known[name])
    return sum(code_lines(known[name]) for name in seen)


def called(function: ast.FunctionDef) -> list[str]:
    found = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return [node.id for node in found if isinstance(node, ast.Name)]


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of the body on which something stands that Python reads, but for the recipe that goes to the
    bench.
    """
    bare = [node for node in function.body if not (is_text(node) or is_recipe(node))]
    numbers: set[int] = set()
    for part in bare:
        for node in ast.walk(part):
            if isinstance(node, (ast.stmt, ast.expr)):
                numbers |= {node.lineno, node.end_lineno or node.lineno}
    return len(numbers)


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_recipe(node: ast.stmt) -> bool:
    return isinstance(node, ast.Return) and isinstance(node.value, ast.Constant)


def functions(tool: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree_of(tool).body if isinstance(node, ast.FunctionDef)}


def tree_of(tool: str) -> ast.Module:
    return ast.parse((HERE / f"{tool}.py").read_text(encoding="utf-8"))
