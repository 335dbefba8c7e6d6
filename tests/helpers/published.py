"""FibecFed as published, for tests about its parts: its measuring, its curriculum, its masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def published(method: Mapping[str, Any]) -> dict[str, Any]:
    """A table [method], with the published method in place of the defaults where it is FibecFed's and its `preset` says nothing else."""
    return {"preset": "paper", **method} if method.get("kind", "fibecfed") == "fibecfed" else dict(method)
