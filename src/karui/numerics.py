"""Precision as data: a default, rules by torch module path, and facts learned by steps.

Text form: ``int8`` or, with rules, ``int8[head=fp32,block.0.*=bf16]``; the first match wins.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from karui.errors import UsageError

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8_dynamic", "int8_weights", "int4_weights")
MEANING = {
    "fp32": "32-bit float everywhere",
    "bf16": "bfloat16 arithmetic",
    "fp16": "half precision (weights, and arithmetic where the runtime has it)",
    "int8": "static INT8: weights and activations, ranges from calibration data",
    "int8_dynamic": "dynamic INT8: weights stored, activation ranges found at run time",
    "int8_weights": "weights stored in 8 bits or fewer, arithmetic in float",
    "int4_weights": "weights of linear layers stored in 4 bits, in groups of one scale, arithmetic in float",
}
WEIGHT_BITS = {"int8_weights": 8, "int4_weights": 4}  # precisions in which nothing but weights is rounded
Calibration = Literal["minmax", "moving_average", "percentile", "mse", "entropy"]  # how ranges are found


@dataclass(frozen=True)
class Numerics:
    """What precision each module shall run in.

    ``rules`` pairs a shell pattern over module paths with a precision. ``facts`` holds what a
    step knows (ranges, scales); a runtime that cannot honour a fact must refuse, not drop it.
    """

    default: str = "fp32"
    rules: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for precision in (self.default, *(precision for _, precision in self.rules)):
            if precision not in PRECISIONS:
                fix = f"one of: {', '.join(PRECISIONS)}"
                raise UsageError(f"no precision {precision!r}", fix=fix)

    def of(self, path: str) -> str:
        """The precision of the module at ``path``; the first matching rule wins."""
        matches = (p for pattern, p in self.rules if fnmatch.fnmatchcase(path, pattern))
        return next(matches, self.default)

    def __str__(self) -> str:
        rules = ",".join(f"{pattern}={precision}" for pattern, precision in self.rules)
        return f"{self.default}[{rules}]" if rules else self.default


def parse_numerics(text: str) -> Numerics:
    """The inverse of ``str(numerics)`` (facts are not part of the text)."""
    default, bracket, rest = text.strip().partition("[")
    if bracket and not rest.endswith("]"):
        raise UsageError(f"{text!r} misses its closing ']'", fix="int8[head=fp32]")
    rules = tuple(parse_rule(rule) for rule in rest[:-1].split(",") if rule.strip())
    return Numerics(default.strip(), rules)


def parse_rule(text: str) -> tuple[str, str]:
    pattern, equals, precision = text.strip().rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"{text!r} is not a rule", fix="write pattern=precision: head.*=fp32")
    return pattern.strip(), precision.strip()
