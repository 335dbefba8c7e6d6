"""Score against modelled time, bytes and rounds: a line per method, and behind it from the lowest to the highest seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...core.units import clock, compact, duration
from . import svg
from .figures import HEIGHT, WIDTH, Figure, ordered, slots
from .results import Point
from .standing import Standings

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 24, 38
_ROOM = 0.09  # of the scores' span, above and below: a line of text
_WIDE = 8  # values that differ by more than this factor are drawn by their logarithm


@dataclass(frozen=True)
class At:
    """Where a method stood at one evaluation: means over its seeds, and the lowest and highest score among them."""

    rounds: int
    size: float
    seconds: float
    score: float
    low: float
    high: float


AXES: dict[str, tuple[str, Callable[[At], float], Callable[[float], str]]] = {
    "time": ("modelled time", lambda at: at.seconds, clock),
    "bytes": ("MB both ways", lambda at: at.size / 1e6, compact),
    "rounds": ("rounds", lambda at: at.rounds, lambda v: f"{v:g}"),
}
"""What curves are drawn over: label, value, text of a tick."""
SCORES: dict[str, Callable[[Point], float]] = {"personalised": lambda point: point.personalised, "global": lambda point: point.server}
"""What is drawn."""


def curves(standings: Standings, task: str) -> Figure | None:
    """A drawing for each score that was recorded over each axis; None where nothing was trained."""
    if task not in standings.targets:
        return None
    drawings: list[str] = []
    for which, of in SCORES.items():
        lines = {method: found for method in ordered(standings) if (found := means(standings, task, method, of))}
        drawings += [_drawing(standings, task, which, axis, lines) for axis in AXES if lines]
    return Figure(task, tuple(drawings)) if drawings else None


def means(standings: Standings, task: str, method: str, of: Callable[[Point], float]) -> list[At]:
    """A method's curve at the rounds at which all its runs have a score, without the untrained model."""
    runs = standings.comparison.of(task, method)
    if not runs:
        return []
    by_round = [{point.rounds: point for point in run.points if point.rounds > 0 and not math.isnan(of(point))} for run in runs]
    found = []
    for rounds in sorted(set(by_round[0]).intersection(*by_round[1:])):
        points = [one[rounds] for one in by_round]
        scores = [standings.comparison.scores.factor * of(point) for point in points]
        size, seconds = (statistics.fmean(values) for values in zip(*((p.size, p.seconds) for p in points), strict=True))
        found.append(At(rounds, size, seconds, statistics.fmean(scores), min(scores), max(scores)))
    return found


def _drawing(standings: Standings, task: str, which: str, axis: str, lines: Mapping[str, Sequence[At]]) -> str:
    label, of, tick = AXES[axis]
    one, chosen = standings.targets[task], slots(standings)
    scores = standings.comparison.scores
    levels = {scores.baseline: scores.factor * one.majority}
    if which == "personalised":  # the target is one of this score
        levels["target" if one.counted else "target, not counted"] = scores.factor * one.score
    shown = {method: found for method, points in lines.items() if (found := [at for at in points if of(at) > 0])}
    xs = [of(at) for points in shown.values() for at in points] or [1.0]
    ys = [y for points in shown.values() for at in points for y in (at.low, at.high)] + list(levels.values())
    is_log = axis != "rounds" and max(xs) > _WIDE * min(xs)
    make = svg.logarithmic if is_log else svg.linear
    y = svg.linear(ys, HEIGHT - _BOTTOM, _TOP, margin=_ROOM)
    plot = svg.Plot(make(xs, _LEFT, WIDTH - _RIGHT), y, WIDTH, HEIGHT)
    parts = plot.axes(f"{label} (logarithmic)" if is_log else label, scores.head(which) + scores.lower, tick, lambda v: f"{v:g}")
    parts += [svg.line(_LEFT, plot.y(level), WIDTH - _RIGHT, plot.y(level), "level") for level in levels.values()]
    drawn: list[tuple[float, float]] = []
    for method, points in shown.items():
        xs = [plot.x(of(at)) for at in points]
        middle = [(x, plot.y(at.score)) for x, at in zip(xs, points, strict=True)]
        last = points[-1]
        tip = f"{method}: {last.score:.{scores.digits}f}{scores.unit} after {last.rounds} rounds"
        tip += f", {last.size / 1e6:.1f} MB, {duration(last.seconds)}"
        marks = [svg.path(middle, "hit"), svg.path(middle, "curve"), svg.circle(*middle[-1], 2.5, "dot")]
        if any(at.low < at.high for at in points):
            tip += f"; seeds from {last.low:.{scores.digits}f} to {last.high:.{scores.digits}f}{scores.unit}"
            edges = [(x, plot.y(at.high)) for x, at in zip(xs, points, strict=True)]
            edges += [(x, plot.y(at.low)) for x, at in zip(reversed(xs), reversed(points), strict=True)]
            marks.insert(0, svg.path(edges, "band"))
        parts.append(svg.group(method, chosen.get(method), tip, marks))
        drawn += svg.along(middle)
    hints = [_hint(plot, name, level, drawn) for name, level in levels.items()]
    parts.append(f'<g class="over">{"".join(hints)}</g>')
    return plot.svg(parts, f"{task}: {which} score of each method against {label}", f" x-{axis} of-{which}")


def _hint(plot: svg.Plot, name: str, level: float, drawn: list[tuple[float, float]]) -> str:
    """The name of a level beside its line, at the end and on the side where the least is drawn; its place is then taken in `drawn`."""
    wide, high, y = 6.2 * len(name), 13.0, plot.y(level)
    places = [
        (svg.Box(left, top, left + wide, top + high), style)
        for top in ((y - high - 1, y + 1) if name.startswith("target") else (y + 1, y - high - 1))
        for left, style in ((_LEFT + 4.0, "hint"), (WIDTH - _RIGHT - 2 - wide, "hint end"))
        if plot.y.end <= top and top + high <= plot.y.start
    ]
    box, style = min(places, key=lambda place: sum(place[0].holds(x, y) for x, y in drawn))
    drawn += [(box.left + 4 * step, box.top + row) for step in range(int(wide / 4)) for row in (1, 6, 12)]
    return svg.text(box.right if style.endswith("end") else box.left, box.bottom - 3, name, style)
