"""Whether an object follows `core.method.Method`, told in one sentence where it does not."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from ..core.method import Phase

_CALLED = ("init", "init_client", "personalise", "server_params", "summary", "load", "outlook", "shortest")
_HELD = ("phases", "server_state", "client_state", "is_personal")


def lacks(method: Any) -> str | None:
    """What of the contract an object lacks, as a sentence; None where it has everything that can be seen without running it."""
    name = type(method).__name__
    if isinstance(method, type):
        return f"got the class {method.__name__}, expected an object of it; call it first"
    missing = [part for part in (*_HELD, *_CALLED) if not hasattr(method, part)]
    if missing:
        return f"{name} has no {', '.join(missing)}; see fibecfed.core.method.Method, and inherit `fibecfed.Defaults` for what is optional"
    if wrong := [part for part in _CALLED if not callable(getattr(method, part))]:
        return f"{name}.{wrong[0]} is {type(getattr(method, wrong[0])).__name__}, expected a function"
    phases = method.phases
    if not isinstance(phases, tuple) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        return f"{name}.phases is {type(phases).__name__}, expected a tuple of at least one `fibecfed.Phase`"
    if len({phase.name for phase in phases}) < len(phases):
        return f"{name}.phases has two phases of one name; rename one"
    messages = {
        "server_state": method.server_state,
        "client_state": method.client_state,
        **{f"phase {phase.name!r}, down": phase.down for phase in phases},
        **{f"phase {phase.name!r}, up": phase.up for phase in phases},
    }
    for where, found in messages.items():
        if not isinstance(found, type) or not hasattr(found, "__wire_fields__"):
            return f"{name}: {where} is {found!r}, expected a message class; put `@fibecfed.message` before it"
    if not is_dataclass(method):
        return f"{name} is no dataclass, expected a frozen one: methods are compared, printed and sent to other processes"
    return None
