"""The report on a terminal."""

from __future__ import annotations

import math

from rich.console import Console

from ...core.errors import UserError
from . import by_task, overview, tables
from .classes import of_classes
from .one import report as one_run
from .results import OURS
from .standing import Standings
from .verdict import defeats, verdict, what

# columns of the widest tables that a terminal has no room for
_NOT_HERE = ("tasks", "bytes relative to the smallest", "parameters of adapter and head")
_NOT_HERE_OF_LOSSES = ("sooner at the target", "shortest time", f"{OURS}'s time", "target counts", "sending fewer")


def show(standings: Standings, console: Console) -> None:
    """What was compared, the verdict, where FibecFed loses, the main tables, and what is missing. The files hold the rest."""
    comparison = standings.comparison
    if comparison.files is not None:
        one_run.show(standings, console)
        return
    tables.prose(what(comparison), console, "bold")
    _sentences(console, "", verdict(standings))
    _sentences(console, "Where FibecFed loses", defeats(standings))
    for table in (
        tables.without(overview.methods(standings), _NOT_HERE),
        *(tables.with_second(by_task.scores(standings, which), "mean") for which in ("personalised", "global")),
        *of_classes(comparison),
        overview.targets(standings),
        tables.without(overview.losses(standings), (comparison.scores.head(f"{OURS} global"), *_NOT_HERE_OF_LOSSES)),
        overview.ablations(standings),
    ):
        if table.rows:
            tables.show(table, console)
    tables.prose("All columns and more tables: report.html, report.md and the report-*.csv files.", console, above=True)
    _sentences(console, "Missing from this report", comparison.problems)


def _sentences(console: Console, title: str, lines: list[str] | tuple[str, ...]) -> None:
    if lines:
        tables.prose(title, console, "bold", above=bool(title))
    for line in lines:
        tables.prose(f"- {line}", console)


def targets(pairs: list[str]) -> dict[str, float]:
    """`--target sst2=80` as {"sst2": 80}.

    Raises:
        UserError: no pair of a task and a score, or a task twice.
    """
    found = {}
    for pair in pairs:
        task, _, score = pair.partition("=")
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not task or not math.isfinite(value):
            raise UserError(f"--target: got {pair}, expected a task and a score as the report shows it, e.g. sst2=80 for 80 %")
        if task in found:
            raise UserError(f"--target: got {task} twice, expected one target per task; remove one of them")
        found[task] = value
    return found
