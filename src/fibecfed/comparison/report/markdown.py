"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from . import tables
from .conditions import conditions
from .overview import all_tables
from .results import ComparisonResults
from .standing import Standings, standings
from .tables import Table
from .verdict import defeats, verdict, what


def to_markdown(found: Standings, shown: Sequence[Table]) -> str:
    """A file: title, what was compared, conditions, verdict, losses, what is missing, then the tables."""
    return "\n\n".join([f"# {found.comparison.title}", *_parts(found, shown, "## {}", "##")]) + "\n"


def section(comparison: ComparisonResults) -> str:
    """The same for docs/results-tables.md, without the title, the commit, and the tables of losses and of all runs."""
    found = standings(comparison)
    shown = [table for table in all_tables(found) if table.name not in ("runs", "losses")]
    return "\n\n".join(_parts(found, shown, "**{}**", "###", without=("Commit",)))


def _parts(found: Standings, shown: Sequence[Table], title: str, heading: str, without: tuple[str, ...] = ()) -> list[str]:
    comparison = found.comparison
    parts = [what(comparison), _list([f"{name}: {text}" for name, text in conditions(comparison) if name not in without])]
    for name, lines in (
        ("Verdict", verdict(found)),
        ("Where FibecFed loses", defeats(found)),
        ("Missing from this report", comparison.problems),
    ):
        parts += [title.format(name), _list(lines)] if lines else []
    return [*parts, *(tables.to_markdown(table, heading) for table in shown)]


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)
