"""States of a method with further tensors, for what is put around it: the last training (`finetune`), the mean of rounds (`averaged`)."""

from __future__ import annotations

from dataclasses import MISSING, field, fields
from functools import lru_cache
from typing import Any

from ..core.wire import Tensors, message


@lru_cache
def extended(state: type[Any], *names: str) -> type[Any]:
    """The message class of `state` with further fields of tensors, empty unless given; it reads the bytes of `state` as well."""
    body: dict[str, Any] = {"__annotations__": {**state.__wire_fields__, **dict.fromkeys(names, Tensors)}, "__doc__": state.__doc__}
    body |= {one.name: one.default for one in fields(state) if one.default is not MISSING}
    body |= {one.name: field(default_factory=one.default_factory) for one in fields(state) if one.default_factory is not MISSING}
    return message(type(state.__name__, (), {**body, **{name: field(default_factory=dict) for name in names}}))


def values_of(state: Any, kind: type[Any] | None = None) -> dict[str, Any]:
    """A state's fields, or those of `kind`, by name."""
    return {one.name: getattr(state, one.name) for one in fields(kind or state)}
