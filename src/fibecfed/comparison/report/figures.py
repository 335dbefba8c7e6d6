"""The figures of a report: drawings of one size that fit two or three beside each other on a laptop and one under the other on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...core.units import compact
from . import svg
from .results import OURS
from .standing import Standings, spread

WIDTH, HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 24, 38
_ROW, _ABOVE = 15, 6
_LETTER = 8.6
SLOTS = 6
"""Methods that can be highlighted by colour and dash at the same time."""


def _beside(names: Iterable[str]) -> float:
    """Room for names left of a plot."""
    return 12 + min(24, max(map(len, names))) * _LETTER


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading; several drawings if they are views of the same, of which one is shown."""

    title: str
    drawings: tuple[str, ...]


def slots(standings: Standings) -> dict[str, int]:
    """The methods highlighted at first: FibecFed, plain FedAvg-LoRA, and the best of the others, four altogether."""
    names = [name for name in (OURS, "lora", *standings.ranks) if name in standings.ranks]
    return {name: slot for slot, name in enumerate(list(dict.fromkeys(names))[:4])}


def ordered(standings: Standings) -> list[str]:
    """Methods in the order of drawing: those that are highlighted last, FibecFed on top."""
    found = slots(standings)
    return sorted(standings.ranks, key=lambda method: -found.get(method, SLOTS))


def ranks(standings: Standings) -> Figure:
    """Mean rank of each method with its interval."""
    found, chosen = standings.ranks, slots(standings)
    top, bottom = _ABOVE, _ABOVE + _ROW * len(found)
    left = _beside(found)
    values = [1.0, *(value for rank in found.values() for value in (rank.low, rank.high))]
    plot = svg.Plot(svg.linear(values, left, WIDTH - _RIGHT), svg.Scale(0, 1, bottom, top), WIDTH, bottom + _BOTTOM)
    parts = plot.axes("mean rank, 1 = best", "", lambda v: f"{v:g}", None)
    for place, (method, rank) in enumerate(found.items()):
        y = top + _ROW * (place + 0.5)
        tip = f"{method}: mean rank {rank.mean:.2f}, 95 % interval {rank.low:.1f} to {rank.high:.1f}, {rank.tasks} tasks"
        marks = [
            svg.text(left - 8, y + 3.5, method, "name end"),
            svg.line(plot.x(rank.low), y, plot.x(rank.high), y, "span"),
            svg.circle(plot.x(rank.mean), y, 4, "dot"),
        ]
        parts.append(svg.group(method, chosen.get(method), tip, marks))
    return Figure("Mean rank over tasks, with its 95 % interval", (plot.svg(parts, "Mean rank of each method; the table has the numbers"),))


def trade(standings: Standings) -> Figure:
    """Score against bytes: one dot per method."""
    chosen, of = slots(standings), standings.comparison.scores
    size = {method: standings.mean(method, "bytes") / 1e6 for method in standings.ranks}
    score = {method: of.factor * standings.mean(method, "personalised") for method in standings.ranks}
    size = {method: value for method, value in size.items() if value > 0}
    height = max(HEIGHT, _ABOVE + _ROW * len(standings.ranks) + _BOTTOM)
    x = svg.logarithmic(list(size.values()), _LEFT, WIDTH - _RIGHT)
    plot = svg.Plot(x, svg.linear(list(score.values()), height - _BOTTOM, _TOP), WIDTH, height)
    parts = plot.axes(
        "MB per run, both ways, mean over tasks (logarithmic)", of.head("personalised") + of.lower, compact, lambda v: f"{v:g}"
    )
    at = {method: (plot.x(size[method]), plot.y(score[method])) for method in ordered(standings) if method in size}
    names = _names(dict(reversed(at.items())), svg.Box(x.start, plot.y.end, x.end, plot.y.start))
    for method, dot in at.items():
        marks = [*names[method], svg.circle(*dot, 5, "dot")]
        parts.append(
            svg.group(method, chosen.get(method), f"{method}: {score[method]:.{of.digits}f}{of.unit} with {size[method]:.1f} MB", marks)
        )
    return Figure("Score and bytes", (plot.svg(parts, "Personalised score against bytes, one dot per method"),))


def _names(dots: Mapping[str, tuple[float, float]], frame: svg.Box) -> dict[str, list[str]]:
    """A name beside each dot, the first ones nearest, off other names and dots as far as there is room; a line leads to one farther off."""
    taken = [svg.Box(x - 5, y - 5, x + 5, y + 5) for x, y in dots.values()]
    found: dict[str, list[str]] = {}
    for name, (x, y) in dots.items():
        wide = 6.8 * len(name)
        places = [
            (svg.Box(left, y + down - 6, left + wide, y + down + 6), down, style)
            for down in sorted((12 * step for step in range(-12, 13)), key=abs)
            for left, style in ((x + 8, "name only"), (x - 8 - wide, "name end only"))
            if frame.left <= left and left + wide <= frame.right and frame.top <= y + down - 6 and y + down + 6 <= frame.bottom
        ]
        if not places:  # a name that is wider than what is left on either side
            places = [(svg.Box(x + 8, y - 6, x + 8 + wide, y + 6), 0, "name only")]
        box, down, style = min(places, key=lambda place: sum(place[0].meets(other) for other in taken))
        taken.append(box)
        side = box.right if "end" in style else box.left
        found[name] = [svg.text(side, box.bottom - 2.5, name, style)]
        if down:
            found[name].insert(0, svg.line(x, y, side - 2 if side > x else side + 2, y + down, "lead only"))
    return found


def clients(standings: Standings, task: str) -> Figure | None:
    """How scores are spread over clients: 10th to 90th percentile, quartiles and median of each method, seeds together."""
    chosen, of = slots(standings), standings.comparison.scores
    rows = {}
    for method in standings.ranks:
        values = [value for run in standings.comparison.of(task, method) for value in run.clients]
        if len(values) > 1:
            rows[method] = [of.factor * value for value in np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9)).tolist()]
    if not rows:
        return None
    left, bottom = _beside(rows), _ABOVE + _ROW * len(rows)
    scale = svg.linear([value for row in rows.values() for value in row], left, WIDTH - _RIGHT)
    plot = svg.Plot(scale, svg.Scale(0, 1, bottom, _ABOVE), WIDTH, bottom + _BOTTOM)
    parts = plot.axes(f"{of.metric.title} of a client,{of.unit}".rstrip(",") + of.lower, "", lambda v: f"{v:g}", None)
    for place, (method, (low, first, middle, third, high)) in enumerate(rows.items()):
        y = _ABOVE + _ROW * (place + 0.5)
        marks = [
            svg.text(left - 8, y + 3.5, method, "name end"),
            svg.line(plot.x(low), y, plot.x(high), y, "span"),
            svg.line(plot.x(first), y, plot.x(third), y, "box"),
            svg.circle(plot.x(middle), y, 3.5, "dot ring"),
        ]
        middle_, first_, third_, *ends = (f"{value:.{of.digits - 1}f}" for value in (middle, first, third, low, high))
        worst, best = ends[:: of.sign]
        tip = f"{method}: median {middle_}{of.unit}, quartiles {first_} to {third_}{of.unit}"
        tip += f", worst decile {worst}{of.unit}, best decile {best}{of.unit}"
        parts.append(svg.group(method, chosen.get(method), tip, marks))
    return Figure(task, (plot.svg(parts, f"{task}: spread of clients' scores by method"),))


def ablations(standings: Standings) -> Figure | None:
    """Difference of each variant to FibecFed on the same seeds: a small dot per seed, a large one for the mean."""
    comparison, of = standings.comparison, standings.comparison.scores
    rows = []
    for task in comparison.tasks:
        ours = {run.seed: run.last.personalised for run in comparison.of(task, OURS)}
        for method in comparison.ablations:
            gaps = [of.factor * (run.last.personalised - ours[run.seed]) for run in comparison.of(task, method) if run.seed in ours]
            if gaps := [gap for gap in gaps if not math.isnan(gap)]:
                rows.append((f"{task}: {method}", gaps))
    if not rows:
        return None
    names, bottom = _beside(name for name, _ in rows), _ABOVE + 18 * len(rows)
    scale = svg.linear([0.0, *(gap for _, gaps in rows for gap in gaps)], names, WIDTH - _RIGHT)
    plot = svg.Plot(scale, svg.Scale(0, 1, bottom, _ABOVE), WIDTH, bottom + _BOTTOM)
    parts = plot.axes(f"difference to {OURS},{of.step}".rstrip(",") + of.lower, "", lambda v: f"{v:+g}" if v else "0", None)
    parts.append(svg.line(plot.x(0), bottom, plot.x(0), _ABOVE, "level"))
    for place, (name, gaps) in enumerate(rows):
        y, found = _ABOVE + 18 * (place + 0.5), spread(gaps)
        assert found is not None
        marks = [svg.text(names - 8, y + 3.5, name, "name end"), *(svg.circle(plot.x(gap), y, 2, "dot") for gap in gaps)]
        marks.append(svg.circle(plot.x(found.mean), y, 4.5, "dot"))
        parts.append(svg.group(name, 0, f"{name}: {found.mean:+.{of.digits}f}{of.step} over {found.count} seeds", marks))
    return Figure("Parts of FibecFed", (plot.svg(parts, "Difference of each variant to FibecFed"),))
