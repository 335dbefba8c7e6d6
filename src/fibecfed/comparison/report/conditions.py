"""Under which conditions the runs of a comparison were made: what is common to all, and what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.clock import CLOCKS, VIRTUAL, clock_in_words
from ...core.files import TUNING
from ...core.units import count, duration
from .results import ComparisonResults, Run

_NAMES = {
    "model": "Model",
    "federation": "Federation",
    "training": "Training",
    "data": "Data",
    "machine": "Machine",
    "versions": "Versions",
    "commit": "Commit",
}
_SETTINGS = ("model", "federation", "training", "data")  # compared as these texts where a run's single settings are not known
_MOST, _FEW = 6, 3  # names in a list, and where two lists stand beside each other
_COUNTED = "counted work: tokens through each transformer block, forward and backward"


def conditions(comparison: ComparisonResults) -> list[tuple[str, str]]:
    """Names and texts; a condition in which runs differ has all its values, with the tasks, methods or seeds whose runs have each."""
    lines = [(name, _values(comparison, key)) for key, name in _NAMES.items()]
    lines.append(("Seeds", ", ".join(map(str, comparison.seeds))))
    lines += [("Trained beforehand", text)] if (text := _sources(comparison)) else []
    timed = [run.conditions.get("clock") == VIRTUAL for run in comparison.runs]
    counted = comparison.network.tokens_per_s is not None and not any(timed)
    return [
        *lines,
        ("Tuning", _tuning(comparison)),
        ("Seconds of clients", _COUNTED if counted else _values(comparison, "clock")),
        ("Network for modelled time", _network(comparison, any(timed), all(timed))),
    ]


def _network(comparison: ComparisonResults, some: bool, every: bool) -> str:
    """Runs with virtual time have links of their own."""
    own = "the link of each client (federation.links)"
    return own if some and every else comparison.network.describe() + (f"; of runs with virtual time {own}" if some else "")


def _values(comparison: ComparisonResults, key: str) -> str:
    values: dict[str, list[Run]] = {}
    for run in comparison.runs:
        value = str(run.conditions.get(key) or (CLOCKS[0] if key == "clock" else "unknown"))  # version 0.1 says nothing of the clock
        values.setdefault(clock_in_words(value) if key == "clock" else _commit(value) if key == "commit" else value, []).append(run)
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value}: {_whose(runs, comparison)}" for value, runs in sorted(values.items(), key=lambda item: -len(item[1])))


def _commit(value: str) -> str:
    return f"{value[:12]}{'+' * value.endswith('+')}"


def _whose(runs: Sequence[Run], comparison: ComparisonResults) -> str:
    """As in "boolq, qnli (4 runs)": the tasks that no other run is on, else the methods, else the seeds, else methods and tasks."""
    here = {id(run) for run in runs}
    rest = [run for run in comparison.runs if id(run) not in here]
    for of in (lambda run: run.task, lambda run: run.method, lambda run: f"seed {run.seed}"):
        if not (names := {of(run) for run in runs}) & {of(run) for run in rest}:
            return f"{short(sorted(names))} ({count(len(runs), 'run')})"
    methods, tasks = sorted({run.method for run in runs}), sorted({run.task for run in runs})
    return f"{short(methods, _FEW)} on {short(tasks, _FEW)} ({count(len(runs), 'run')})"


def short(names: Sequence[str], most: int = _MOST) -> str:
    """Names as a list, of many the first.

    >>> short(["a", "b", "c", "d"], 3), short(["a", "b", "c"], 3)
    ('a, b and 2 more', 'a, b, c')
    """
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"


def unlike(comparison: ComparisonResults) -> list[str]:
    """A warning where ranked methods ran one task with different settings: what differs, where, and who had what.

    Nothing is said of a learning rate, its schedule and a method's own keys, which are expected to differ.
    """
    tasks: dict[tuple[str, str], list[str]] = {}  # (key, who had what) -> tasks
    for task in comparison.tasks:
        runs = [run for method in comparison.methods for run in comparison.of(task, method)]
        for name, values in _differing(runs).items():
            who = "; ".join(f"{value}: {short(methods)}" for value, methods in values.items())
            tasks.setdefault((name, who), []).append(task)
    if not tasks:
        return []
    parts = [f"{name} on {short(on)} ({who})" for (name, who), on in tasks.items()]
    return [f"Not like with like: methods ran one task with different settings, {short(parts)}. Their scores and costs differ by that too."]


def _differing(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Key -> value -> methods, of the keys that not all runs share; a key that some run does not record is skipped."""
    settings = [_settings(run, all(run.conditions.get("settings") for run in runs)) for run in runs]
    found: dict[str, dict[str, list[str]]] = {}
    for name in settings[0] if settings else ():
        values: dict[str, list[str]] = {}
        for run, one in zip(runs, settings, strict=True):
            methods = values.setdefault(_shown(one[name]), []) if name in one else []
            methods += [run.method] if run.method not in methods else []
        if len(values) > 1:
            found[name] = dict(sorted(values.items(), key=lambda item: -len(item[1])))
    return found


def _settings(run: Run, single: bool) -> Mapping[str, Any]:
    return run.conditions["settings"] if single else {name: run.conditions[name] for name in _SETTINGS if name in run.conditions}


def _shown(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)


def _sources(comparison: ComparisonResults) -> str:
    """Which methods had source prompts from other tasks, and at what cost per run."""
    parts = []
    for method in sorted({run.method for run in comparison.runs if run.source_examples}):
        runs = [run for run in comparison.runs if run.method == method]
        seconds, examples = (sum(values) / len(runs) for values in zip(*((r.source_s, r.source_examples) for r in runs), strict=True))
        cost = f"{duration(seconds)} and {examples:,.0f} examples per run, not in its bytes and times"
        parts.append(f"{method}: source prompts on other tasks' data, {cost}")
    return "; ".join(parts)


def _tuning(comparison: ComparisonResults) -> str:
    """How many rates were tried, as recorded, and for whom none were."""
    unknown = [name for name, row in comparison.tuning.items() if row is None]
    numbers = {name: len(row.tried) for name, row in comparison.tuning.items() if row and row.tried}
    parts = []
    if numbers:
        low, high = min(numbers.values()), max(numbers.values())
        rates = count(high, "rate") if low == high else f"{low} to {high} rates"
        parts.append(f"{rates} tried for each of {count(len(numbers), 'method')}; see the table")
    if unknown:
        parts.append(f"not known of {short(unknown)}: see what is missing from this report")
    if not parts:
        return "none recorded: every method ran at the rate of its configuration"
    known = {name.partition(" (")[0] for name in (*numbers, *unknown)}
    own = {name for name, row in comparison.tuning.items() if name not in numbers and name not in unknown}
    without = sorted({run.method for run in comparison.runs if run.method in own or not {run.method, run.kind} & known})
    if without and TUNING not in unknown:
        parts.append(f"none recorded of {short(without)}, at the rate of their configuration")
    return "; ".join(parts)
