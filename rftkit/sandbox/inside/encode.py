"""One text for each Python literal, equal exactly where value and type are equal.

The child encodes what a call returned, the parent what it expected; the parent compares two
texts and never builds a value that hostile code described.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 100  # levels of nesting


def encode(value: Any, depth: int = MAX_DEPTH) -> str:
    """Canonical text of a literal. An instance of a subclass is not a literal.

    Raises TypeError for any other type, ValueError where it is nested deeper than MAX_DEPTH.
    """
    if depth < 0:
        raise ValueError(f"a value is nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or value is ... or kind is bool:
        return str(value)
    if kind is int:
        return f"i{value:x}"  # hexadecimal: no limit on digits, and linear in time
    if kind is float:
        return f"f{_float(value)}"
    if kind is complex:
        return f"c{_float(value.real)},{_float(value.imag)}"
    if kind is str:
        return json.dumps(value)
    if kind is bytes:
        return f"b{value.hex()}"
    return _container(value, depth - 1)


def _container(value: Any, depth: int) -> str:
    kind = type(value)
    if kind is list:
        return _join("[", (encode(item, depth) for item in value))
    if kind is tuple:
        return _join("(", (encode(item, depth) for item in value))
    if kind is set:
        return _join("<", sorted(encode(item, depth) for item in value))
    if kind is dict:
        pairs = [(encode(key, depth), encode(item, depth)) for key, item in value.items()]
        return _join("{", (f"{key}:{item}" for key, item in sorted(pairs)))
    raise TypeError(f"returned {kind.__name__}, which is not a Python literal")


def _join(opening: str, items: Iterable[str]) -> str:
    return f"{opening}{','.join(items)};"


def _float(value: float) -> str:
    return (value + 0.0).hex()  # -0.0 equals 0.0
