"""report.html: one file that needs no network. Text first, then tables and figures; style and script are page.css and page.js."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from . import figures
from .conditions import conditions
from .curves import curves
from .figures import Figure, slots
from .results import OURS
from .selection import selections
from .standing import Standings
from .tables import Cell, Table
from .verdict import defeats, verdict, what

_FOLDED = {"scores-global", "to-target-bytes", "to-target-rounds", "bytes", "steps", "values", "runs"}  # tables that open on a click
_LONG = 24  # characters of a cell that may take several lines on paper
_AXES = {"time": "modelled time", "bytes": "bytes", "rounds": "rounds"}
_SCORES = {"personalised": "personalised", "global": "global"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def to_html(standings: Standings, shown: Sequence[Table]) -> str:
    """The page.

    Args:
        shown: its tables.
    """
    comparison = standings.comparison
    lost = "".join(_table(table, heading=False) for table in shown if table.name == "losses")
    sections = [
        ("conditions", "What was compared, and how", _conditions(standings)),
        ("verdict", "Verdict", _cards(standings) + _list(verdict(standings))),
        ("losses", "Where FibecFed loses", _list(defeats(standings)) + lost),
        ("missing", "Missing from this report", _list(comparison.problems)),
        ("tables", "Tables", "".join(_table(table) for table in shown if table.name != "losses")),
        ("figures", "Figures", _figures(standings)),
        ("selection", "What FibecFed selected", _selection(standings)),
        ("reading", "How to read this", _list(_READING)),
    ]
    sections = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    bodies = "".join(f'<section id="{name}"><h2>{title}</h2>{body}</section>' for name, title, body in sections)
    title = escape(comparison.title)
    here = Path(__file__).parent
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{title} - fibecfed report</title><style>{(here / 'page.css').read_text(encoding='utf-8')}</style></head><body>"
        f'<a class="skip" href="#conditions">Skip to the content</a><header><p class="kicker">fibecfed report</p><h1>{title}</h1>'
        f'<p class="lead">{escape(what(comparison))}</p><nav aria-label="Sections">{links}</nav></header><main>{bodies}</main>'
        f"<script>{(here / 'page.js').read_text(encoding='utf-8')}</script></body></html>\n"
    )


def _conditions(standings: Standings) -> str:
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in conditions(standings.comparison))
    return f'<dl class="facts">{rows}</dl>'


def _cards(standings: Standings) -> str:
    """FibecFed's four numbers; nothing for a comparison without it or with it alone."""
    standings = standings.of_ours
    ranks, races = standings.ranks, standings.counted
    if OURS not in ranks or len(ranks) < 2:
        return ""
    ours = ranks[OURS]
    first = sum(OURS in standings.first(one.task) for one in races)
    cards = (
        (f"{ours.mean:.2f}", f"mean rank of {len(ranks)} methods (95 %: {ours.low:.1f} to {ours.high:.1f})"),
        (f"{100 * standings.mean(OURS, 'personalised'):.1f} %", "personalised score, mean over tasks"),
        (f"{first} of {len(races)}", "counted targets reached first, in modelled time"),
        (f"{standings.mean(OURS, 'bytes') / 1e6:,.1f} MB", "sent in a run, both ways, mean over tasks"),
    )
    return '<ul class="cards">' + "".join(f"<li><b>{value}</b><span>{escape(name)}</span></li>" for value, name in cards) + "</ul>"


def _list(lines: Sequence[str]) -> str:
    return '<ul class="points">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _table(table: Table, heading: bool = True) -> str:
    """A table whose headings sort it; its first columns of names stay in sight when it is scrolled sideways."""
    numeric = [any(row[i].value is not None for row in table.rows) for i in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{" class=n" if number else ""} aria-sort="none"><button type="button">{escape(name)}</button></th>'
        for name, number in zip(table.header, numeric, strict=True)
    )
    body = "".join(_row(row, numeric) for row in table.rows)
    title = escape(table.title)
    inner = (
        f'<p class="note">{escape(table.note)}</p><div class="scroll" role="region" tabindex="0" aria-label="{title}, table">'
        f'<table id="table-{table.name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
    if table.name in _FOLDED:
        absent = f'<span class="paper"> left out on paper; report-{table.name}.csv has it</span>' if table.name == "runs" else ""
        return f"<details><summary><h3>{title}</h3>{absent}</summary>{inner}</details>"
    return f"<h3>{title}</h3>{inner}" if heading else inner


def _row(row: Sequence[Cell], numeric: Sequence[bool]) -> str:
    cells = []
    for place, (cell, number) in enumerate(zip(row, numeric, strict=True)):
        value = "" if cell.value is None else f' data-v="{cell.value:.6g}"'
        text = escape(cell.text).replace("± ", "±&nbsp;")
        text = f"<b>{text}</b>" if cell.best else text
        text += f" <small>({escape(cell.more)})</small>" if cell.more else ""
        style = " class=n" if number else " class=long" if len(cell.text) > _LONG else ""
        cells.append(f'<th scope="row">{text}</th>' if place == 0 else f"<td{style}{value}>{text}</td>")
    ours = ' class="ours"' if any(cell.text == OURS for cell in row[:2]) else ""
    return f"<tr{ours}>{''.join(cells)}</tr>"


def _figures(standings: Standings) -> str:
    tasks = standings.comparison.tasks
    parts = []
    if len(standings.ranks) > 1:
        parts += [_legend(standings), _grid([figures.ranks(standings), figures.trade(standings)])]
    if drawn := [figure for task in tasks if (figure := curves(standings, task))]:
        both = any("of-global" in drawing for figure in drawn for drawing in figure.drawings)
        switches = _switch("axis", "over", _AXES) + (_switch("score", "score", _SCORES) if both else "")
        several = ", mean over seeds, with the lowest to the highest behind the methods that are highlighted"
        spread = several if len(standings.comparison.seeds) > 1 else ""
        note = f"Score at each evaluation{spread}. The target is one of the personalised score."
        parts.append(
            f'<h3>Score against modelled time, bytes and rounds</h3>{switches}<p class="note">{note}</p>'
            + _grid(drawn, "curves", 'data-axis="time" data-score="personalised"')
        )
    if drawn := [figure for task in tasks if (figure := figures.clients(standings, task))]:
        parts.append(
            '<h3>Scores of single clients</h3><p class="note">After the last round, each client\'s own model on its own test examples, all '
            "seeds together: dot = median, thick line = middle half, thin line = 10th to 90th percentile.</p>" + _grid(drawn)
        )
    if (ablation := figures.ablations(standings)) is not None:
        parts.append(
            '<h3>Parts of FibecFed</h3><p class="note">FibecFed with parts left out or exchanged: large dot = mean, small dots = seeds.</p>'
            + _grid([ablation])
        )
    return "".join(parts)


def _switch(name: str, title: str, choices: Mapping[str, str]) -> str:
    """A choice of what the curves show; the first is chosen at first."""
    first = next(iter(choices))
    inputs = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if value == first else ""}>{text}</label>'
        for value, text in choices.items()
    )
    return f'<fieldset class="axes"><legend>{title}</legend>{inputs}</fieldset>'


def _legend(standings: Standings) -> str:
    chosen = slots(standings)
    chips = []
    for method in standings.ranks:
        style = f' class="s{chosen[method]}"' if method in chosen else ""
        key = '<svg viewBox="0 0 22 8" aria-hidden="true"><path d="M1 4L21 4"/></svg>'
        pressed = "true" if method in chosen else "false"
        chips.append(f'<button type="button" data-chip="{escape(method)}" aria-pressed="{pressed}"{style}>{key}{escape(method)}</button>')
    note = f"Highlighted in all figures, up to {figures.SLOTS}:"
    inner = f'<p>{note}</p>{"".join(chips)}<p class="say" role="status"></p>'
    return f'<div class="legend" role="group" aria-label="Methods highlighted in the figures">{inner}</div>'


def _grid(drawn: Sequence[Figure], style: str = "", attributes: str = "") -> str:
    inner = "".join(f"<figure><figcaption>{escape(one.title)}</figcaption>{''.join(one.drawings)}</figure>" for one in drawn)
    return f'<div class="{f"grid {style}".strip()}" {attributes}>{inner}</div>'


def _selection(standings: Standings) -> str:
    parts = []
    for title, drawn in selections(standings):
        heading, inner = f"<h3>{escape(title)}</h3>", _grid(drawn, "small")
        parts.append(f"<details><summary>{heading}</summary>{inner}</details>" if parts else heading + inner)
    if not parts:
        return ""
    hatch = (
        '<svg class="defs" width="0" height="0" aria-hidden="true"><defs><pattern id="hatch" width="5" height="5" '
        'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path class="hatch" d="M0 0L0 5"/></pattern></defs></svg>'
    )
    return f'{hatch}<p class="note">One run of {OURS} on each task.</p>' + "".join(parts)


_READING = (
    "Personalised score: each client predicts its own part of the test set with its own model, and the predictions are pooled. Global "
    "score: the server's model on the whole test set. Both are accuracies after the last round; the last, not the best, counts.",
    "Target of a task: majority class + 0.8 (best method's final score - majority class), from the same runs. It says how fast a method "
    "comes most of the way, not how good it is in the end; look at both.",
    "Modelled time is computed from recorded bytes and compute seconds for the network named above: the clients of a round work in "
    "parallel, the slowest counts, the server's link is never the bottleneck. Seconds in which other processes had the CPU are left "
    "out.",
    "Targets are seen at evaluations only: a method that reaches one between two evaluations counts at the second.",
    "The interval of a rank is a bootstrap over tasks and seeds. With one seed it shows only how much the choice of tasks matters.",
    "Numbers in bold are the best of their column, where a method can be better than another in it; methods that do not federate are no "
    "measure of few bytes. Click a heading to sort by it, or move to it with the tab key and press enter.",
)
