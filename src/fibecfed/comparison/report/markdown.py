"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from . import tables
from .conditions import conditions
from .standing import Standings
from .tables import Table
from .verdict import defeats, verdict, what


def to_markdown(standings: Standings, shown: Sequence[Table]) -> str:
    """What was compared, conditions, verdict, losses, what is missing, then the tables."""
    comparison = standings.comparison
    parts = [f"# {comparison.title}", what(comparison), _list([f"{name}: {text}" for name, text in conditions(comparison)])]
    for title, lines in (
        ("Verdict", verdict(standings)),
        ("Where FibecFed loses", defeats(standings)),
        ("Missing from this report", comparison.problems),
    ):
        if lines:
            parts += [f"## {title}", _list(lines)]
    parts += [tables.to_markdown(table) for table in shown]
    return "\n\n".join(parts) + "\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)
