"""A configuration: TOML and `key=value` pairs in, one frozen and checked `Config` out, and back to TOML."""

from __future__ import annotations

from .common import common
from .model import Config, config_hash, differences, federation_toml, flat, keys, leaves, own_data_toml, to_toml
from .read import Loaded, from_table, load
from .text import Setting

__all__ = [
    "Config",
    "Loaded",
    "Setting",
    "common",
    "config_hash",
    "differences",
    "federation_toml",
    "flat",
    "from_table",
    "keys",
    "leaves",
    "load",
    "own_data_toml",
    "to_toml",
]
