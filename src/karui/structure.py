"""Nested answers (tuples, lists, dicts) as a flat list of leaves and a JSON tree, and back.

A tree is ``0`` (the number of a leaf), ``None``, ``["tuple", [...]]``, ``["list", [...]]`` or
``["dict", {...}]``. A dict subclass becomes a dict, a named tuple a tuple.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Tree = Any


def flatten(value: Any) -> tuple[list[Any], Tree]:
    """The leaves of ``value`` in reading order and the tree that puts them back."""
    leaves: list[Any] = []
    return leaves, walk(value, leaves)


def walk(value: Any, leaves: list[Any]) -> Tree:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return ["dict", {str(key): walk(item, leaves) for key, item in value.items()}]
    if isinstance(value, tuple):
        return ["tuple", [walk(item, leaves) for item in value]]
    if isinstance(value, list):
        return ["list", [walk(item, leaves) for item in value]]
    leaves.append(value)
    return len(leaves) - 1


def unflatten(leaves: Sequence[Any], tree: Tree) -> Any:
    """The inverse of ``flatten``."""
    if tree is None:
        return None
    if isinstance(tree, int):
        return leaves[tree]
    kind, items = tree
    if kind == "dict":
        return {key: unflatten(leaves, item) for key, item in items.items()}
    parts = [unflatten(leaves, item) for item in items]
    return tuple(parts) if kind == "tuple" else parts


def names(tree: Tree, prefix: str = "output") -> list[str]:
    """A name for each leaf: its dict key, its position, or just ``output``."""
    if tree is None:
        return []
    if isinstance(tree, int):
        return [prefix]
    kind, items = tree
    if kind == "dict":
        start = "" if prefix == "output" else f"{prefix}_"
        return [name for key, item in items.items() for name in names(item, f"{start}{key}")]
    return [name for i, item in enumerate(items) for name in names(item, f"{prefix}_{i}")]
