"""Dataclass fields are the only schema: the one class of a file, made from named text options."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from types import ModuleType, UnionType
from typing import Any, TypeVar

from karui.errors import UsageError
from karui.recipe import Named

Base = TypeVar("Base")
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "none",
}


def only_class(module: ModuleType, base: type[Base]) -> type[Base]:
    """The single subclass of ``base`` that ``module`` defines."""
    mine = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(mine) != 1:
        why = f"it defines {len(mine)} subclasses of {base.__name__}, and must define one"
        raise UsageError(f"{module.__name__} cannot be used", why=why)
    return mine[0]


def construct(cls: type[Base], named: Named) -> Base:
    """``cls`` with the options of ``named``; unknown names and wrong types are refused."""
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in named.options:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"options: {', '.join(known) or 'none'}"
            raise UsageError(f"{named.name} has no option {key!r}", fix=fix)
        if not fits(value, known[key]):
            listed = isinstance(value, str) and fits((value,), known[key])
            raise UsageError(
                f"{named.name}:{key} cannot be {value!r}",
                why="it takes a list" if listed else f"it takes {said(known[key])}",
                fix=f'{key}=["{value}"]' if listed else "",
            )
    return cls(**dict(named.options))


def fits(value: Any, kind: Any) -> bool:
    """Whether a parsed option value is of an annotated type (int serves as float)."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, args[0]) for item in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if kind is type(None) else isinstance(value, kind)


def said(kind: Any) -> str:
    """A type in the words of one who writes options."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " or ".join(map(str, args))
    if origin in (typing.Union, UnionType):
        return " or ".join(map(said, args))
    return WORDS.get(kind) or getattr(kind, "__name__", None) or str(kind)


def options_of(step: Any) -> tuple[tuple[str, Any], ...]:
    """The options of a dataclass instance that differ from its defaults."""
    return tuple(
        (f.name, getattr(step, f.name))
        for f in dataclasses.fields(step)
        if getattr(step, f.name) != f.default
    )
