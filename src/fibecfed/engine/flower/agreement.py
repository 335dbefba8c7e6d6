"""What server and client must agree on: a table of the configuration's keys and values that each makes for itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(table: Mapping[str, Any]) -> str:
    """SHA-256 of a table of JSON values; equal for equal tables."""
    return hashlib.sha256(json.dumps(table, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def disagreements(server: Mapping[str, Any], client: Mapping[str, Any]) -> str:
    """The keys whose values differ, each with both values, as one line; "" where there are none."""
    absent = object()
    names = sorted(name for name in server.keys() | client.keys() if server.get(name, absent) != client.get(name, absent))
    values = {name: (shown(client.get(name)), shown(server.get(name))) for name in names}
    return "; ".join(f"{name[:80]} is {own} on the client and {other} on the server" for name, (own, other) in values.items())


def shown(value: Any) -> str:
    """A value of a table in a sentence, at most 80 characters."""
    try:
        text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    except RecursionError:  # nested so deeply that it can just be read
        return "a deeply nested value"
    return text if len(text) <= 80 else f"{text[:77]}..."


def table_of(text: str) -> dict[str, Any]:
    """A table that the other side sent as JSON; empty for anything else."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}
