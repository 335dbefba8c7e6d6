"""Whether an object follows `core.method.Method`, told in one sentence where it does not."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, get_args

from ..core.method import Phase
from ..core.task import Use

_CALLED = ("init", "init_client", "personalise", "server_params", "summary", "load", "outlook", "shortest")
_OPTIONAL = ("template", "address", "problem", "keep", "fold")
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
    if wrong := next((found for phase in phases if (found := _wrong_with(phase))), None):
        return f"{name}, phase {wrong}"
    if not isinstance(method.is_personal, bool):
        return f"{name}.is_personal is {method.is_personal!r}, expected True or False"
    if strange := sorted(set(map(str, getattr(method, "uses", ()))) - set(get_args(Use))):
        return f"{name}.uses has {strange[0]!r}, which is unknown, expected some of {', '.join(get_args(Use))}"
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


def _wrong_with(phase: Phase[Any, Any, Any, Any]) -> str | None:
    """Which value of a phase is none that it may have, beginning with the phase's name."""
    for part in ("broadcast", "client_update", "aggregate", *_OPTIONAL):
        found = getattr(phase, part)
        if not callable(found) and not (found is None and part in _OPTIONAL):
            return f"{phase.name!r}: {part} is {found!r}, expected a function"
    if isinstance(phase.num_rounds, bool) or not isinstance(phase.num_rounds, int) or phase.num_rounds < 0:
        return f"{phase.name!r}: num_rounds is {phase.num_rounds!r}, expected an integer of at least 0"
    cohort: Any = phase.cohort
    if cohort != "sampled" and (isinstance(cohort, bool) or not isinstance(cohort, int) or cohort < 1):
        return f'{phase.name!r}: cohort is {cohort!r}, expected "sampled" or a number of clients'
    return None
