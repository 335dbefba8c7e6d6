"""JSON as every language reads it: numbers that are not finite, which it has no words for, are written as null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

_NUMBERS = ("float", "Mapping[str, float]")


def to_json(value: Any, **layout: Any) -> str:
    """The text of a value.

    Args:
        layout: as for `json.dumps`.

    >>> to_json({"loss": math.nan, "at": (1.5, math.inf)})
    '{"loss": null, "at": [1.5, null]}'
    """
    return json.dumps(_finite(value), allow_nan=False, **layout)


def from_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none; UnicodeDecodeError and JSONDecodeError are such.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def with_nan(cls: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass as read from JSON, with NaN for null where the class has a number or numbers by name."""
    found = dict(table)
    for item in fields(cls):
        if item.type in _NUMBERS and item.name in found:
            value = found[item.name]
            found[item.name] = _nan(value) if item.type == "float" else {name: _nan(number) for name, number in value.items()}
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast("list[Any]", value)]
    return value


def _nan(value: Any) -> Any:
    return math.nan if value is None else value
