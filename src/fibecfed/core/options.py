"""The base of every table of options: frozen, strict, and with no unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A frozen table of a configuration. Every field has a description; for a method's own options it begins with [S] (stated by the
    source) or [C] (our choice)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=False, validate_default=True)


def entries_of(value: Any) -> Any:
    """A table as its entries "name = value", in its order; a list of entries as it is."""
    if isinstance(value, Mapping):
        return tuple(f"{name} = {entry}" for name, entry in cast("Mapping[Any, Any]", value).items())
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
