"""The clients of a run: who holds what, who scores what, who took part."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ....core.records import EvalRecord, RoundRecord
from ....core.units import count
from .. import svg, tables
from ..figures import WIDTH, Figure
from ..results import ComparisonResults, RunFiles
from ..tables import Column, Table, megabytes, number, score, words
from .alone import alone_beside
from .section import Section, run_and_files

_DRAWN = 40
"""Clients that a figure has room for."""
_ROW, _ABOVE, _BOTTOM, _RIGHT, _LETTER, _LONGEST = 15, 6, 38, 12, 7.2, 20


@dataclass(frozen=True)
class Client:
    """What is known of one; None or NaN where that is not recorded.

    Attributes:
        train, test: numbers of examples.
        score, majority: of its own model on its own test examples, and of its most frequent class.
        rounds: in which its answer was used for training.
        size: bytes of its messages both ways.
        loss: of the last round that it took part in.
    """

    name: str
    train: int | None
    test: int | None
    score: float | None
    majority: float | None
    alone: float | None
    rounds: int
    size: int
    loss: float


def clients(comparison: ComparisonResults) -> Section:
    """Table and figure, the clients that gain least first."""
    _, files = run_and_files(comparison)
    of, found = comparison.scores, held(comparison)
    scored = [one for one in found if one.score is not None]
    lines = _spread(comparison, scored) + _out(files)
    drawn = [_drawing(comparison, scored)] if 1 < len(scored) <= _DRAWN else []
    note = f"Dot = the client's own model; bar = always its own most frequent class. Sorted by {of.metric.title} above that."
    return Section("clients", "Clients", tuple(lines), (_table(comparison, found),) if found else (), tuple(drawn), note if drawn else "")


def held(comparison: ComparisonResults) -> list[Client]:
    """Every client, the one that gains least over its most frequent class first, those without a score last."""
    _, files = run_and_files(comparison)
    sign, alone = comparison.scores.sign, alone_beside(files)
    rounds = [one for one in files.records if isinstance(one, RoundRecord)]
    partition = files.header.get("partition") or {}
    took = dict.fromkeys(partition, 0)
    size: dict[str, int] = {}
    loss: dict[str, float] = {}
    for one in rounds:
        for name, steps in one.steps.items():
            took[name] = took.get(name, 0) + (steps > 0)
            if one.examples.get(name):
                loss[name] = one.loss.get(name, math.nan)
        for way in (one.bytes_down, one.bytes_up):
            for name, number_ in way.items():
                size[name] = size.get(name, 0) + number_
    scored = files.summary.get("clients", {})
    found = []
    for name in sorted({*took, *scored}):
        parts, own = partition.get(name), scored.get(name, {})
        if parts is not None and not any(map(sum, parts.values())):
            parts = None  # of a machine, whose data were never here
        found.append(
            Client(
                name=name,
                train=None if parts is None else sum(parts["train"]),
                test=own.get("test_examples") if parts is None else sum(parts["test"]),
                score=own.get("score"),
                majority=own.get("majority"),
                alone=None if alone is None else alone.clients.get(name),
                rounds=took.get(name, 0),
                size=size.get(name, 0),
                loss=loss.get(name, math.nan),
            )
        )

    def order(one: Client) -> tuple[bool, float, str]:
        return one.score is None, sign * ((one.score or 0.0) - (one.majority or 0.0)), one.name

    return sorted(found, key=order)


def _table(comparison: ComparisonResults, found: list[Client]) -> Table:
    of = comparison.scores

    def gain(one: Client, simple: float | None) -> float | None:
        return None if one.score is None or simple is None else of.sign * (one.score - simple)

    columns = [
        Column("client", lambda one: words(one.name)),
        Column(of.head("score"), lambda one: score(one.score, of)),
        Column(of.head("own majority"), lambda one: score(one.majority, of)),
        Column(f"above it,{of.step}".rstrip(","), lambda one: score(gain(one, one.majority), of)),
        Column(of.head("alone"), lambda one: score(one.alone, of)),
        Column("test examples", lambda one: number(one.test, 0)),
        Column("training examples", lambda one: number(one.train, 0)),
        Column("rounds", lambda one: number(one.rounds, 0)),
        Column("last loss, nat", lambda one: number(one.loss, 3)),
        Column("MB", lambda one: megabytes(one.size)),
    ]
    alone = "Alone: trained without the others. " if any(one.alone is not None for one in found) else ""
    own = "Own majority: always its most frequent class. " if any(one.majority is not None for one in found) else ""
    note = (
        f"Score: each client's own model on its own test examples. {own}{alone}Rounds: in which its answer was used for training. MB: of "
        f"its messages, both ways. The clients {'that gain least' if own else 'with the worst scores'} come first."
    )
    made = tables.table("clients", "Scores of the clients", note, columns, found)
    empty = [name for place, name in enumerate(made.header) if place and all(row[place].text == "-" for row in made.rows)]
    return tables.without(made, empty)


def _spread(comparison: ComparisonResults, scored: list[Client]) -> list[str]:
    if len(scored) < 2:
        return []
    of = comparison.scores
    ordered = sorted((one.score or 0.0 for one in scored), reverse=of.sign < 0)
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return [f"{count(len(scored), 'client')} with test examples: from {of.text(low)} to {of.text(high)}, median {of.text(middle)}."]


def _out(files: RunFiles) -> list[str]:
    """Whose answers were not used, and who was not scored."""
    rounds = [one for one in files.records if isinstance(one, RoundRecord)]
    failed: dict[str, int] = {}
    for one in rounds:
        for attempt in (one, *one.attempts):
            for name in attempt.failures:
                failed[name] = failed.get(name, 0) + 1
    excluded = sorted({name for one in rounds for name in one.excluded})
    last = next((one for one in reversed(files.records) if isinstance(one, EvalRecord)), None)
    lines = []
    if failed:
        most = sorted(failed, key=lambda name: (-failed[name], name))[:5]
        listed = ", ".join(f"{name} ({failed[name]})" for name in most)
        more = f" and {len(failed) - len(most)} more" if len(failed) > len(most) else ""
        lines.append(f"Answers that were not used, by client: {listed}{more}.")
    if excluded:
        lines.append(f"Excluded after too many rejected answers: {', '.join(excluded)}.")
    if last is not None and last.failures:
        lines.append(f"Not scored in the last evaluation: {', '.join(sorted(last.failures))}.")
    return lines


def _drawing(comparison: ComparisonResults, found: list[Client]) -> Figure:
    of = comparison.scores
    left = 14 + min(_LONGEST, max(len(one.name) for one in found)) * _LETTER
    bottom = _ABOVE + _ROW * len(found)
    values = [of.factor * value for one in found for value in (one.score, one.majority, one.alone) if value is not None]
    plot = svg.Plot(svg.linear(values, left, WIDTH - _RIGHT), svg.Scale(0, 1, bottom, _ABOVE), WIDTH, bottom + _BOTTOM)
    parts = plot.axes(of.head(of.metric.title) + of.lower, "", lambda v: f"{v:g}", None)
    for place, one in enumerate(found):
        y, at = _ABOVE + _ROW * (place + 0.5), plot.x(of.factor * (one.score or 0.0))
        marks = [svg.text(left - 8, y + 3.5, _short(one.name), "name end")]
        tip = f"{one.name}: {of.text(one.score or 0.0)}"
        worse = False
        if one.majority is not None:
            simple = plot.x(of.factor * one.majority)
            worse = of.metric.better(one.majority, one.score or 0.0)
            tip += f", own majority {of.text(one.majority)}"
            marks += [svg.line(simple, y, at, y, "span"), svg.line(simple, y - 5, simple, y + 5, "tickmark")]
        if one.alone is not None:
            tip += f", alone {of.text(one.alone)}"
        marks.append(svg.circle(at, y, 4, "dot"))
        parts.append(svg.group(one.name, 1 if worse else 0, tip, marks))
    return Figure(
        f"{of.metric.title[0].upper()}{of.metric.title[1:]} of each client", (plot.svg(parts, "Score of each client; the table has them"),)
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
