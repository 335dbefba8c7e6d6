"""A run on other files, folders or hardware than it began with: which keys may change between its start and its resumption."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import expanded
from ..engine.options import ResourceOptions
from ..methods.defaults import follow
from ..methods.presets import copied
from .model import Config, flat, keys, leaves
from .read import read_pairs, read_toml
from .text import show

PLACES = ("model.name", "data.path", "data.test_path", "data.root")
"""Where files lie. The checksums in a run's records tell whether they are the same files."""
TRACKING = ("tracking", "tracking_by_client")
"""Where the values of a run are written beside its records."""
CHANGEABLE = (*PLACES, *TRACKING, "training.device", *(f"resources.{name}" for name in ResourceOptions.model_fields))
"""What a resumed run may change: none of it decides what is computed."""


def changed_settings(config: Config, recorded: Mapping[str, Any]) -> list[str]:
    """Sentences about the keys whose values are not those a run began with, `CHANGEABLE` ones apart.

    A key that the recorded configuration lacks is one of a later version: its default is what the run began with.

    Args:
        recorded: the tables of the configuration, after a round trip through JSON.
    """
    defaults = {key.name: key.default for key in keys(config.method.model_dump()["kind"])}
    began = copied(recorded)
    follow(began)
    now, then = _plain(flat(config)), _plain({**defaults, **dict(leaves(began))})
    names = [name for name in {**now, **then} if name not in CHANGEABLE and now.get(name) != then.get(name)]
    return [f"{name}: got {_shown(now.get(name))}, expected {_shown(then.get(name))}" for name in names]


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON holds them: lists for tuples; null for infinity, which JSON has no number for."""
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in table.items()}
    return json.loads(json.dumps(finite, default=str))


def _shown(value: Any) -> str:
    return "nothing" if value is None else show(value)


def reject_lasting(overrides: Sequence[str]) -> None:
    """A resumed run keeps what it computes.

    Raises:
        UserError: a pair for a key that is not `CHANGEABLE`, or something that is no pair.
    """
    pairs, mistakes = read_pairs(overrides)
    if mistakes:
        raise UserError("; ".join(mistakes.values()))
    if others := [name for name in pairs if name not in CHANGEABLE]:
        raise UserError(
            f"got {', '.join(others)}, but a resumed run keeps its configuration; expected only keys that say where files lie, what "
            f"the run computes on, or how it is tracked: {', '.join(CHANGEABLE)}"
        )


def lost(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Which keys of a configuration name a file or folder that is not there."""
    table = {**dict(leaves(read_toml(path))), **read_pairs(overrides)[0]}
    found = [name for name in PLACES if isinstance(table.get(name), str)]
    return [name for name in found if (name != "model.name" or table[name].startswith("/")) and not expanded(table[name]).exists()]


def places(config: Config) -> list[str]:
    """`key=value` of each place that a configuration names, and of how it is tracked."""
    table = flat(config)
    tracked = [f"tracking={','.join(config.tracking)}", f"tracking_by_client={str(config.tracking_by_client).lower()}"]
    return [*(f"{name}={table[name]}" for name in PLACES if table[name] is not None), *tracked]


def same_name(key: str, old: Any, new: Any) -> bool:
    """Whether a key names files that were moved, as far as their names tell."""
    if key not in PLACES or not isinstance(old, str) or not isinstance(new, str):
        return False
    return key == "data.root" or expanded(old).name == expanded(new).name
