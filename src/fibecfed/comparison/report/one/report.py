"""The report of one run: its parts in their order, as a page, as Markdown and on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ....core.units import count
from .. import tables
from ..answers import of_answers
from ..audited import audited
from ..classes import of_classes
from ..compact import without_folders
from ..results import ComparisonResults
from ..selection_figures import selections
from ..standing import Standings
from ..tables import Table
from ..templates import filled
from .clients import clients
from .converged import converged
from .examples import examples
from .learned import cards, learned
from .section import Section, run_and_files
from .sent import cost, sent, settings

_SHOWN = 20
"""Rows of a table on a terminal."""
_COLUMNS = 13  # of a table, on a terminal at most: a confusion matrix of more classes would fill screens


def parts(found: Standings) -> list[Section]:
    """All parts about which the run says something."""
    made = [one(found.comparison) for one in PARTS]
    if drawn := selections(found):
        figures = tuple(replace(figure, title=title) for title, figures in drawn for figure in figures[:1])
        made.insert(-1, Section("selection", "What the method selected", figures=figures, is_folded=True))
    if problems := found.comparison.problems:
        made.insert(1, Section("missing", "Missing from this report", problems))
    return [one for one in made if not one.is_empty]


def _classes(comparison: ComparisonResults) -> Section:
    return Section("classes", "Classes", tables=tuple(of_classes(comparison)))


def _answers(comparison: ComparisonResults) -> Section:
    return Section("answers", "What the models answer", tables=tuple(of_answers(comparison)), is_folded=True)


def _audit(comparison: ComparisonResults) -> Section:
    lines, tables = audited(Path(run_and_files(comparison)[1].folder))
    return Section("audit", "What its messages tell", lines, tables)


PARTS: Sequence[Callable[[ComparisonResults], Section]] = (
    learned,
    converged,
    clients,
    _classes,
    _answers,
    examples,
    _audit,
    sent,
    cost,
    settings,
)
"""Makers of parts, in the order of the report; a part about which a run says nothing is empty, and is not shown."""


def lead(comparison: ComparisonResults) -> str:
    """One sentence: what was trained on what."""
    run, files = run_and_files(comparison)
    number = len(files.header.get("partition") or {})
    on = f" on {count(number, 'client')}" if number else ""
    rounds = count(run.last.rounds, "round")
    state = rounds if files.is_finished else f"scored after {rounds}, not finished"
    return f"{run.method} for {run.task}{on}, {state}, seed {run.seed}."


def to_html(found: Standings, refresh_s: float | None = None) -> str:
    """The page.

    Args:
        refresh_s: seconds after which an open page reads itself again from the disk; None: never.
    """
    comparison = found.comparison
    shown = _handed_on(parts(found), comparison)
    return filled(
        "one_run.html", title=comparison.title, lead=lead(comparison), cards=cards(comparison), parts=shown, folded=(), refresh_s=refresh_s
    )


def to_markdown(found: Standings) -> str:
    """A file."""
    comparison = found.comparison
    lines = [f"# {comparison.title}", lead(comparison)]
    for part in _handed_on(parts(found), comparison):
        lines.append(f"## {part.title}")
        lines += [_list(part.lines)] if part.lines else []
        lines += [_list([f"{name}: {text}" for name, text in part.facts])] if part.facts else []
        lines += [tables.to_markdown(table, "###") for table in part.tables]
    return "\n\n".join(lines) + "\n"


def all_tables(found: Standings) -> list[Table]:
    """Of all parts."""
    return [table for part in parts(found) for table in part.tables]


def show(found: Standings, console: Console) -> None:
    """Sentences and tables on a terminal; the first rows of long ones."""
    tables.prose(lead(found.comparison), console, "bold")
    for part in parts(found):
        if part.is_folded:
            continue
        if part.lines or part.facts:
            tables.prose(part.title, console, "bold", above=True)
        for line in part.lines:
            tables.prose(f"- {line}", console)
        for name, text in part.facts:
            tables.prose(f"- {name}: {text}", console)
        for table in part.tables:
            if len(table.header) > _COLUMNS:
                elsewhere = f"{table.title}: {len(table.header) - 1} columns, in report.html and report-{table.name}.csv"
                tables.prose(elsewhere, console, above=True)
            else:
                tables.show(_first(table), console)
    tables.prose("Figures, settings and whole tables: report.html, report.md and the report-*.csv files.", console, above=True)


def _first(table: Table) -> Table:
    if len(table.rows) <= _SHOWN:
        return table
    note = f"{table.note} Shown: {_SHOWN} of {len(table.rows)} rows; report-{table.name}.csv has all."
    return replace(table, rows=table.rows[:_SHOWN], note=note)


def _handed_on(found: Sequence[Section], comparison: ComparisonResults) -> list[Section]:
    """Parts as others may read them: no sentence says where on this machine something lies."""
    folder = Path(run_and_files(comparison)[1].folder)
    return [replace(part, lines=without_folders(part.lines, folder)) for part in found]


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)
