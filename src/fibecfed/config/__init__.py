"""A configuration: TOML and `key=value` pairs in, one frozen and checked `Config` out, and back to TOML."""

from __future__ import annotations

from .common import common
from .kinds import needing_classes
from .model import Config, config_hash, differences, federation_toml, flat, keys, leaves, own_data_toml, to_toml
from .places import PLACES, TRACKING, changed_settings, lost, places, reject_lasting, same_name
from .read import Loaded, from_table, load
from .text import ConfigKey, show

__all__ = [
    "PLACES",
    "TRACKING",
    "Config",
    "ConfigKey",
    "Loaded",
    "changed_settings",
    "common",
    "config_hash",
    "differences",
    "federation_toml",
    "flat",
    "from_table",
    "keys",
    "leaves",
    "load",
    "lost",
    "needing_classes",
    "own_data_toml",
    "places",
    "reject_lasting",
    "same_name",
    "show",
    "to_toml",
]
