"""report.html of a comparison: one file that needs no network. Its text is in page.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import figures
from .conditions import conditions
from .curves import curves
from .results import OURS
from .selection_figures import selections
from .standing import Standings
from .tables import Table, without
from .templates import filled
from .verdict import defeats, verdict, what

_FOLDED = {"methods-all", "losses", "targets", "scores-global", "to-target-bytes", "to-target-rounds", "bytes", "steps", "values", "runs"}
"""Tables that open on a click."""
_DECIDING = ("mean rank", "personalised", "global", "first to target", "relative time to target", "MB per run", "steps per run")
"""Columns of the table of methods by which one is chosen, as their names begin: the page opens with them, and all columns are folded."""


_CALLED = {"methods": {"name": "methods-all", "title": "Methods, all columns"}, "losses": {"title": "By task"}}
"""What tables are called on the page, where a heading above says the rest."""


def to_html(standings: Standings, shown: Sequence[Table]) -> str:
    """The page.

    Args:
        shown: its tables.
    """
    comparison, several, one_task = standings.comparison, len(standings.ranks) > 1, len(standings.comparison.tasks) == 1
    deciding = [_deciding(table) for table in shown if table.name == "methods"]
    tables = [replace(one, **_CALLED.get(one.name, {})) for one in shown]
    drawn = [figure for task in comparison.tasks if (figure := curves(standings, task))]
    return filled(
        "page.html",
        title=comparison.title,
        lead=what(comparison),
        conditions=conditions(comparison),
        cards=_cards(standings),
        verdict=verdict(standings),
        defeats=defeats(standings),
        problems=comparison.problems,
        tables=tables,
        deciding=deciding,
        one_task=one_task,
        folded=_FOLDED,
        methods=list(standings.ranks) if several else [],
        slots=figures.slots(standings),
        most_slots=figures.SLOTS,
        overview=[figures.ranks(standings), figures.trade(standings)] if several else [],
        curves=drawn,
        both=any("of-global" in drawing for figure in drawn for drawing in figure.drawings),
        several_seeds=len(comparison.seeds) > 1,
        clients=[figure for task in comparison.tasks if (figure := figures.clients(standings, task))],
        ablations=figures.ablations(standings),
        selections=_selections(standings),
        reading=[line.format(of=comparison.scores) for line in _READING],
    )


def _deciding(table: Table) -> Table:
    """The table of methods with the columns that decide."""
    note = (
        "Means over tasks; rank in the personalised score, 1 = best. First to target: on how many counted tasks, in modelled time; time "
        f"relative to {OURS}'s over targets that both reach. All columns, and what they are, are among the tables below."
    )
    return replace(without(table, [name for name in table.header[1:] if not name.startswith(_DECIDING)]), note=note)


def _selections(standings: Standings) -> list[tuple[str, list[figures.Figure]]]:
    """What was selected; of one task all of it side by side, each figure under its own heading."""
    found = selections(standings)
    if len(standings.comparison.tasks) > 1:
        return found
    beside = [replace(figure, title=title) for title, drawn in found for figure in drawn]
    return [("", beside)] if beside else []


def _cards(standings: Standings) -> list[tuple[str, str]]:
    """FibecFed's four numbers; nothing for a comparison without it or with it alone."""
    standings = standings.of_ours
    ranks, races = standings.ranks, standings.counted
    if OURS not in ranks or len(ranks) < 2:
        return []
    ours = ranks[OURS]
    first = sum(OURS in standings.first(one.task) for one in races)
    return [
        (f"{ours.mean:.2f}", f"mean rank of {len(ranks)} methods (95 %: {ours.low:.1f} to {ours.high:.1f})"),
        (standings.comparison.scores.text(standings.mean(OURS, "personalised")), "personalised score, mean over tasks"),
        (f"{first} of {len(races)}", "counted targets reached first, in modelled time"),
        (f"{standings.mean(OURS, 'bytes') / 1e6:,.1f} MB", "sent in a run, both ways, mean over tasks"),
    ]


_READING = (
    "Personalised score: each client predicts its own part of the test set with its own model, and the predictions are pooled. Global "
    "score: the server's model on the whole test set. {of.both} after the last round; the last, not the best, counts.",
    "Target of a task: {of.base} + 0.8 (best method's final score - {of.base}), from the same runs. It says how fast a method "
    "comes most of the way, not how good it is in the end; look at both.",
    "Modelled time is computed from recorded bytes and compute seconds for the network named above: the clients of a round work in "
    "parallel, the slowest counts, the server's link is never the bottleneck. Seconds in which other processes had the CPU are left "
    "out. Of runs with virtual time (federation.schedule, speeds and links) it is that.",
    "Targets are seen at evaluations only: a method that reaches one between two evaluations counts at the second.",
    "The interval of a rank is a bootstrap over tasks and seeds. With one seed it shows only how much the choice of tasks matters.",
    "Numbers in bold are the best of their column, where a method can be better than another in it; methods that do not federate are no "
    "measure of few bytes. Click a heading to sort by it, or move to it with the tab key and press enter.",
)
