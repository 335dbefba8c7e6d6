"""Defaults of a run that hang on other keys: the learning rate on its method, and of FibecFed some parts on others."""

from __future__ import annotations

from typing import Any

from .catalogue import CATALOGUE
from .presets import PARTS, follow_parts

RATE = "training.learning_rate"
FOLLOWING = (RATE, *PARTS)
"""Keys whose defaults hang on others (`follow`)."""


def follow(table: dict[str, Any]) -> dict[str, str]:
    """Sets in the table of a run the defaults that hang on other keys, after `presets.fill`.

    Args:
        table: nested; what is no table where one belongs, and a method that does not exist, are left for the checks to report.

    Returns:
        Dotted key -> why it has not its usual default.
    """
    method, training = table.get("method", {}), table.setdefault("training", {})
    kind = method.get("kind", "fibecfed") if isinstance(method, dict) else None
    row = CATALOGUE.get(kind) if isinstance(kind, str) else None
    found: dict[str, str] = {}
    if row is not None and isinstance(training, dict) and "learning_rate" not in training:
        training["learning_rate"], found[RATE] = row.learning_rate, f"method.kind is {kind}"
    return {**found, **follow_parts(table)}
