"""The base of every table of options: frozen, strict, and with no unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """A frozen table of a configuration. Every field has a description; for a method's own options it begins with [S] (stated by the
    source) or [C] (our choice)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=False, validate_default=True)
