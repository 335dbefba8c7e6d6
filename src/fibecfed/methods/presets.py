"""`method.preset`: keys of FibecFed that go together, under one name. A preset fills in what the user did not set.

A preset names every key in which it differs from another one or from the defaults, which are those of "best"; but for how many blocks
are trained, which follows from the rule for layers where a preset says nothing of it (`follow_parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "method.preset"
LAYERS = "method.layers.rule"
DEPTH = 0.83
"""[C] The part of the blocks, the upper ones, that is trained with the agreement rule: five of six."""
DEPTH_KEYS = ("method.depth", "method.depth_rule")
PARTS = ("method.head", "method.finetune", *DEPTH_KEYS)
"""Keys of FibecFed whose defaults hang on others (`follow_parts`)."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method.finetune": False,
        "method.head": "shared",
        "method.curriculum.order": "fisher",
        "method.curriculum.pace": "linear",
        "method.curriculum.scoring": "pass",
        "method.layers.rule": "share",
        "method.layers.importance_round": "separate",
        "method.neurons.rule": "share",
    },
    "fast": {
        "method.finetune": False,
        "method.head": "shared",
        "method.depth": 0.5,
        "method.depth_rule": "last",
        "method.curriculum.pace": "linear",
        "method.curriculum.beta": 0.4,
        "method.curriculum.scoring": "training",
        "method.layers.rule": "last",
        "method.layers.value": 0.67,
        "method.neurons.rule": "all",
        "resources.activation_cache_mb": 512,
    },
    "best": {
        "method.finetune": "validated",
        "method.head": "agreement",
        "method.curriculum.pace": "none",
        "method.layers.rule": "agreement",
        "method.neurons.rule": "all",
    },
}
"""Name -> dotted key -> value. docs/methods/fibecfed.md says what each is for, docs/results.md what it brings."""


def fill(table: dict[str, Any]) -> dict[str, Any]:
    """Sets in the table of a run what its preset stands for, where it is not set.

    Args:
        table: nested; what is no table where one belongs, and a preset that does not exist, are left for the checks to report.

    Returns:
        Dotted key -> value of what was set.
    """
    method = table.get("method")
    preset = method.get("preset") if isinstance(method, dict) and method.get("kind", "fibecfed") == "fibecfed" else None
    found: dict[str, Any] = {}
    for name, value in PRESETS.get(preset, {}).items() if isinstance(preset, str) else ():
        *above, leaf = name.split(".")
        inner: Any = table
        for part in above:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and leaf not in inner:
            inner[leaf] = found[name] = value
    return found


def follow_parts(table: dict[str, Any]) -> dict[str, str]:
    """Sets in the table of a run of FibecFed the defaults that hang on other keys, after `fill`.

    Args:
        table: as of `fill`.

    Returns:
        Dotted key -> why it has not its usual default.
    """
    method = table.get("method")
    if not isinstance(method, dict) or method.get("kind", "fibecfed") != "fibecfed":
        return {}
    layers, model, data = (
        inner if isinstance(inner, dict) else {} for inner in (method.get("layers"), table.get("model"), table.get("data"))
    )
    found: dict[str, str] = {}
    other = layers.get("rule", "agreement") != "agreement"  # a file of an earlier version names the rule, and not all of these keys
    named, blocks = "depth" in method or "depth_rule" in method, model.get("layers_to_transform") is not None
    for name, value, holds, why in (
        ("depth", None, blocks, "model.layers_to_transform says which blocks"),
        ("depth", DEPTH, not (other or named), f"{LAYERS} is agreement"),
        ("depth_rule", "last", not (other or blocks) and method.get("depth", DEPTH) is not None, f"{LAYERS} is agreement"),
        ("head", "shared", other, f"{LAYERS} is not agreement"),
        ("head", "shared", model.get("head") == "label-words", "label words need no new head"),
        ("finetune", False, other, f"{LAYERS} is not agreement"),
        ("finetune", False, data.get("validation_fraction") == 0, "data.validation_fraction = 0 leaves nothing to choose by"),
    ):
        if holds and name not in method:
            method[name] = value
            found[f"method.{name}"] = why
    return found


def filled_options(method: Mapping[str, Any]) -> dict[str, Any]:
    """The table [method] alone with what its preset stands for."""
    table: dict[str, Any] = {"method": copied(method)}
    fill(table)
    follow_parts(table)
    return table["method"]


def in_force(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The preset of a configuration, for records: its name, the values it stands for, and those that were set beside it.

    Args:
        values: dotted key -> value, of a whole configuration. None where it names no preset.
    """
    preset = values.get(KEY)
    if preset is None:
        return None
    known = {name: (value, values[name]) for name, value in PRESETS[preset].items() if name in values}
    stands = {name: value for name, (value, now) in known.items() if now == value}
    return {"name": preset, "values": stands, "beside": {name: now for name, (value, now) in known.items() if now != value}}


def copied(value: Any) -> Any:
    """A nested table that may be written to."""
    return {name: copied(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value
