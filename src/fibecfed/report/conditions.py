"""Under which conditions the runs of a comparison were made: what is common to all, and what differs."""

from __future__ import annotations

from .results import Comparison
from .units import duration

_NAMES = {
    "model": "Model",
    "federation": "Federation",
    "training": "Training",
    "data": "Data",
    "machine": "Machine",
    "versions": "Versions",
    "commit": "Commit",
}


def conditions(comparison: Comparison) -> list[tuple[str, str]]:
    """Names and texts; a condition in which runs differ has all its values, with the number of runs of each."""
    lines = []
    for key, name in _NAMES.items():
        values: dict[str, int] = {}
        for run in comparison.runs:
            value = "unknown" if run.conditions.get(key) is None else str(run.conditions[key])
            value = f"{value[:12]}{'+' * value.endswith('+')}" if key == "commit" else value
            values[value] = values.get(value, 0) + 1
        if len(values) == 1:
            lines.append((name, next(iter(values))))
        else:
            lines.append((name, "; ".join(f"{value} ({number} runs)" for value, number in sorted(values.items(), key=lambda v: -v[1]))))
    lines.append(("Seeds", ", ".join(map(str, comparison.seeds))))
    lines += [("Trained beforehand", text)] if (text := _sources(comparison)) else []
    lines += [("Tuning", _tuning(comparison)), ("Network for modelled time", comparison.network.describe())]
    return lines


def _sources(comparison: Comparison) -> str:
    """Which methods had source prompts from other tasks, and at what cost a run."""
    parts = []
    for method in sorted({run.method for run in comparison.runs if run.source_examples}):
        runs = [run for run in comparison.runs if run.method == method]
        seconds, examples = (sum(values) / len(runs) for values in zip(*((r.source_s, r.source_examples) for r in runs), strict=True))
        cost = f"{duration(seconds)} and {examples:,.0f} examples a run, not in its bytes and times"
        parts.append(f"{method}: source prompts on other tasks' data, {cost}")
    return "; ".join(parts)


def _tuning(comparison: Comparison) -> str:
    """How many rates were tried, as recorded."""
    numbers = [len(row["tried"]) for row in comparison.tuning.values() if isinstance(row, dict) and isinstance(row.get("tried"), list)]
    if not any(numbers):
        return "none recorded: every method ran at the rate of its configuration"
    low, high = min(numbers), max(numbers)
    return f"{low if low == high else f'{low} to {high}'} rates tried for each of {len(numbers)} methods; see the table"
