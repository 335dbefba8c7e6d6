"""The figures of a report: drawings of one size that fit two or three beside each other on a laptop and one under the other on a phone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import svg
from .results import OURS, Point
from .standing import Standings, spread, total_size
from .units import duration

WIDTH, HEIGHT = 400, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 24, 38
_ROW, _ABOVE = 15, 6
_NAMES = 104
SLOTS = 6
"""Methods that can be set off by colour and dash at the same time."""


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading; several drawings if they are views of the same, of which one is shown."""

    title: str
    drawings: tuple[str, ...]


def slots(standings: Standings) -> dict[str, int]:
    """The methods set off at first: FibecFed, plain FedAvg-LoRA, and the best of the others, four altogether."""
    names = [name for name in (OURS, "lora", *standings.ranks) if name in standings.ranks]
    return {name: slot for slot, name in enumerate(list(dict.fromkeys(names))[:4])}


def _ordered(standings: Standings) -> list[str]:
    """Methods in the order of drawing: those that are set off last, FibecFed on top."""
    found = slots(standings)
    return sorted(standings.ranks, key=lambda method: -found.get(method, SLOTS))


def ranks(standings: Standings) -> Figure:
    """Mean rank of each method with its interval."""
    found, chosen = standings.ranks, slots(standings)
    top, bottom = _ABOVE, _ABOVE + _ROW * len(found)
    values = [1.0, *(value for rank in found.values() for value in (rank.low, rank.high))]
    plot = svg.Plot(svg.linear(values, _NAMES, WIDTH - _RIGHT), svg.Scale(0, 1, bottom, top), WIDTH, bottom + _BOTTOM)
    parts = plot.axes("mean rank, 1 = best", "", lambda v: f"{v:g}", None)
    for place, (method, rank) in enumerate(found.items()):
        y = top + _ROW * (place + 0.5)
        tip = f"{method}: mean rank {rank.mean:.2f}, 95 % interval {rank.low:.1f} to {rank.high:.1f}, {rank.tasks} tasks"
        marks = [
            svg.text(_NAMES - 8, y + 3.5, method, "name end"),
            svg.line(plot.x(rank.low), y, plot.x(rank.high), y, "span"),
            svg.circle(plot.x(rank.mean), y, 4, "dot"),
        ]
        parts.append(svg.group(method, chosen.get(method), tip, marks))
    return Figure("Mean rank over tasks, with its 95 % interval", (plot.svg(parts, "Mean rank of each method; the table has the numbers"),))


def trade(standings: Standings) -> Figure:
    """Score against bytes: one dot a method."""
    chosen = slots(standings)
    size = {method: standings.mean(method, total_size) / 1e6 for method in standings.ranks}
    score = {method: 100 * standings.mean(method, lambda run: run.last.personalised) for method in standings.ranks}
    size = {method: value for method, value in size.items() if value > 0}
    height = max(HEIGHT, _ABOVE + _ROW * len(standings.ranks) + _BOTTOM)
    x = svg.logarithmic(list(size.values()), _LEFT, WIDTH - _RIGHT)
    plot = svg.Plot(x, svg.linear(list(score.values()), height - _BOTTOM, _TOP), WIDTH, height)
    parts = plot.axes("MB a run, both ways, mean over tasks (logarithmic)", "personalised %", _compact, lambda v: f"{v:g}")
    for method in reversed(_ordered(standings)):
        if method in size:
            at = plot.x(size[method]), plot.y(score[method])
            side = "name end" if at[0] > WIDTH * 0.6 else "name"
            offset = -8 if at[0] > WIDTH * 0.6 else 8
            marks = [svg.circle(*at, 5, "dot"), svg.text(at[0] + offset, at[1] + 3.5, method, f"{side} only")]
            parts.append(svg.group(method, chosen.get(method), f"{method}: {score[method]:.1f} % with {size[method]:.1f} MB", marks))
    return Figure("Score and bytes", (plot.svg(parts, "Personalised score against bytes, one dot a method"),))


AXES: dict[str, tuple[str, Callable[[Point], float], Callable[[float], str]]] = {
    "time": ("modelled time", lambda point: point.seconds, lambda v: _clock(v)),
    "bytes": ("MB both ways", lambda point: point.size / 1e6, lambda v: _compact(v)),
    "rounds": ("rounds", lambda point: point.rounds, lambda v: f"{v:g}"),
}
"""What curves are drawn over: label, value, text of a tick."""

_WIDE = 8  # values that differ by more than this factor are drawn by their logarithm


def curves(standings: Standings, task: str) -> Figure | None:
    """Score against modelled time, bytes and rounds, mean over seeds; None where nothing was trained."""
    lines = {method: found for method in _ordered(standings) if (found := _means(standings, task, method))}
    if not lines or task not in standings.targets:
        return None
    return Figure(task, tuple(_curve(standings, task, axis, lines) for axis in AXES))


def _means(standings: Standings, task: str, method: str) -> list[Point]:
    """A method's mean curve over seeds at the rounds at which all have a score, without the untrained model."""
    runs = standings.comparison.of(task, method)
    if not runs:
        return []
    by_round = [{point.rounds: point for point in run.points if point.rounds > 0 and not math.isnan(point.personalised)} for run in runs]
    shared = sorted(set(by_round[0]).intersection(*by_round[1:]))
    return [
        Point(
            rounds,
            round(statistics.fmean(points[rounds].size for points in by_round)),
            statistics.fmean(points[rounds].seconds for points in by_round),
            statistics.fmean(points[rounds].personalised for points in by_round),
            statistics.fmean(points[rounds].server for points in by_round),
        )
        for rounds in shared
    ]


def _curve(standings: Standings, task: str, axis: str, lines: dict[str, list[Point]]) -> str:
    label, of, tick = AXES[axis]
    one, chosen = standings.targets[task], slots(standings)
    shown = {method: [point for point in points if of(point) > 0] for method, points in lines.items()}
    xs = [of(point) for points in shown.values() for point in points] or [1.0]
    ys = [100 * point.personalised for points in shown.values() for point in points] + [100 * one.score, 100 * one.majority]
    is_log = axis != "rounds" and max(xs) > _WIDE * min(xs)
    make = svg.logarithmic if is_log else svg.linear
    plot = svg.Plot(make(xs, _LEFT, WIDTH - _RIGHT), svg.linear(ys, HEIGHT - _BOTTOM, _TOP), WIDTH, HEIGHT)
    parts = plot.axes(f"{label} (logarithmic)" if is_log else label, "personalised %", tick, lambda v: f"{v:g}")
    high, low = plot.y(100 * one.score), plot.y(100 * one.majority)
    parts += [svg.line(_LEFT, y, WIDTH - _RIGHT, y, "level") for y in (high, low)]
    for method, points in shown.items():
        if not points:
            continue
        at = [(plot.x(of(point)), plot.y(100 * point.personalised)) for point in points]
        last = points[-1]
        tip = f"{method}: {100 * last.personalised:.1f} % after {last.rounds} rounds, {last.size / 1e6:.1f} MB, {duration(last.seconds)}"
        marks = [svg.path(at, "hit"), svg.path(at, "curve"), svg.circle(*at[-1], 2.5, "dot")]
        parts.append(svg.group(method, chosen.get(method), tip, marks))
    parts.append(svg.text(_LEFT + 4, high - 4, "target" if one.counted else "target, not counted", "hint"))
    below = 11 if low + 13 < plot.y.start else -4
    parts.append(svg.text(WIDTH - _RIGHT - 2, low + below, "majority class", "hint end"))
    return plot.svg(parts, f"{task}: personalised score of each method against {label}", f" x-{axis}")


def clients(standings: Standings, task: str) -> Figure | None:
    """How scores are spread over clients: 10th to 90th percentile, quartiles and median of each method, seeds together."""
    chosen = slots(standings)
    rows = {}
    for method in standings.ranks:
        values = [value for run in standings.comparison.of(task, method) for value in run.clients]
        if len(values) > 1:
            rows[method] = [100 * value for value in _percentiles(sorted(values), (0.1, 0.25, 0.5, 0.75, 0.9))]
    if not rows:
        return None
    bottom = _ABOVE + _ROW * len(rows)
    scale = svg.linear([value for row in rows.values() for value in row], _NAMES, WIDTH - _RIGHT)
    plot = svg.Plot(scale, svg.Scale(0, 1, bottom, _ABOVE), WIDTH, bottom + _BOTTOM)
    parts = plot.axes("accuracy of a client on its own test examples, %", "", lambda v: f"{v:g}", None)
    for place, (method, (low, first, middle, third, high)) in enumerate(rows.items()):
        y = _ABOVE + _ROW * (place + 0.5)
        marks = [
            svg.text(_NAMES - 8, y + 3.5, method, "name end"),
            svg.line(plot.x(low), y, plot.x(high), y, "span"),
            svg.line(plot.x(first), y, plot.x(third), y, "box"),
            svg.circle(plot.x(middle), y, 3.5, "dot ring"),
        ]
        tip = f"{method}: median {middle:.0f} %, quartiles {first:.0f} to {third:.0f} %, worst decile {low:.0f} %, best decile {high:.0f} %"
        parts.append(svg.group(method, chosen.get(method), tip, marks))
    return Figure(task, (plot.svg(parts, f"{task}: spread of client accuracies by method"),))


def _percentiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Linear interpolation between sorted values."""
    found = []
    for share in shares:
        place = share * (len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        found.append(values[low] + (place - low) * (values[high] - values[low]))
    return found


def ablations(standings: Standings) -> Figure | None:
    """Difference of each variant to FibecFed on the same seeds: a small dot a seed, a large one for the mean."""
    comparison = standings.comparison
    rows = []
    for task in comparison.tasks:
        ours = {run.seed: run.last.personalised for run in comparison.of(task, OURS)}
        for method in comparison.ablations:
            gaps = [100 * (run.last.personalised - ours[run.seed]) for run in comparison.of(task, method) if run.seed in ours]
            if gaps := [gap for gap in gaps if not math.isnan(gap)]:
                rows.append((f"{task}: {method}", gaps))
    if not rows:
        return None
    names, bottom = 170, _ABOVE + 18 * len(rows)
    scale = svg.linear([0.0, *(gap for _, gaps in rows for gap in gaps)], names, WIDTH - _RIGHT)
    plot = svg.Plot(scale, svg.Scale(0, 1, bottom, _ABOVE), WIDTH, bottom + _BOTTOM)
    parts = plot.axes(f"difference to {OURS}, points", "", lambda v: f"{v:+g}" if v else "0", None)
    parts.append(svg.line(plot.x(0), bottom, plot.x(0), _ABOVE, "level"))
    for place, (name, gaps) in enumerate(rows):
        y, found = _ABOVE + 18 * (place + 0.5), spread(gaps)
        assert found is not None
        marks = [svg.text(names - 8, y + 3.5, name, "name end"), *(svg.circle(plot.x(gap), y, 2, "dot") for gap in gaps)]
        marks.append(svg.circle(plot.x(found.mean), y, 4.5, "dot"))
        parts.append(svg.group(name, 0, f"{name}: {found.mean:+.1f} points over {found.count} seeds", marks))
    return Figure("Parts of FibecFed", (plot.svg(parts, "Difference of each variant to FibecFed"),))


def _clock(seconds: float) -> str:
    """As in 5 s, 1:40 min, 2:30 h."""
    whole = round(seconds)
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _compact(value: float) -> str:
    """As in 0.05, 3, 1,200."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
