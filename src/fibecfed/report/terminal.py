"""The report on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from . import by_task, overview, tables
from .standing import Standings
from .verdict import defeats, verdict, what

_NOT_HERE = ("tasks", "bytes, x fewest", "values of adapter and head")  # columns of the widest table that a terminal has no room for


def show(standings: Standings, console: Console) -> None:
    """What was compared, the verdict, where FibecFed loses, the main tables, and what is missing. The files hold the rest."""
    comparison = standings.comparison
    console.print(Text(what(comparison), style="bold"))
    _sentences(console, "", verdict(standings))
    _sentences(console, "Where FibecFed loses", defeats(standings))
    for table in (
        tables.without(overview.methods(standings), _NOT_HERE),
        by_task.scores(standings, "personalised"),
        by_task.scores(standings, "global"),
        overview.targets(standings),
        overview.losses(standings),
        overview.ablations(standings),
    ):
        if table.rows:
            tables.show(table, console)
    _sentences(console, "Missing from this report", comparison.problems)


def _sentences(console: Console, title: str, lines: list[str] | tuple[str, ...]) -> None:
    if lines:
        console.print(Text(f"\n{title}".rstrip(), style="bold"))
    for line in lines:
        console.print(Text(f"- {line}"), soft_wrap=True)
