"""Figures of what FibecFed selected in its runs."""

from __future__ import annotations

from collections.abc import Mapping

from . import svg
from .figures import Figure
from .results import OURS, SelectionRecord
from .standing import Standings

_WIDTH, _HEIGHT = 300, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 24, 38


def selections(standings: Standings) -> list[tuple[str, list[Figure]]]:
    """A heading and a figure per task, of its run with the lowest seed; without those about which a run recorded nothing."""
    runs = {task: found[0] for task in standings.comparison.tasks if (found := standings.comparison.of(task, OURS))}
    kinds = {
        "Importance of each layer; filled layers are averaged over clients, hatched ones stay on them": _importance,
        "Fraction of the clients' data that is trained on, by round": _data,
        "Neurons that a client updates in the layers it keeps, by round": _kept,
        "Difficulty of training examples: Fisher information of an example, logarithmic": _difficulty,
    }
    found = []
    for title, draw in kinds.items():
        drawings = [Figure(f"{task}, seed {run.seed}", (one,)) for task, run in runs.items() if (one := draw(run.selection, task))]
        if drawings:
            found.append((title, drawings))
    return found


def _importance(selection: SelectionRecord, task: str) -> str | None:
    values = selection.importance
    if not values:
        return None
    count = len(values)
    y = svg.linear([0.0, *values], _HEIGHT - _BOTTOM, _TOP, zero=True)
    plot = svg.Plot(svg.Scale(-0.5, count - 0.5, _LEFT, _WIDTH - _RIGHT), y, _WIDTH, _HEIGHT)
    parts = plot.axes("layer", "importance", lambda v: f"{v:g}" if v == int(v) else "", lambda v: f"{v:g}")
    wide = 0.8 * (plot.x(1) - plot.x(0))
    for layer, value in enumerate(values):
        top = plot.y(max(value, 0.0))
        style = "bar" if layer in selection.layers else "bar stays"
        where = "averaged" if layer in selection.layers else "stays on the clients"
        parts.append(svg.rect(plot.x(layer) - wide / 2, top, wide, plot.y(0) - top, style, f"layer {layer}: {value:.3g}, {where}"))
    chosen = ", ".join(map(str, selection.layers))
    return plot.svg(parts, f"{task}: importance of {count} layers; averaged: {chosen}")


def _data(selection: SelectionRecord, task: str) -> str | None:
    return _by_round({number: 100 * share for number, share in selection.data.items()}, task, "% of the data")


def _kept(selection: SelectionRecord, task: str) -> str | None:
    return _by_round(selection.kept, task, f"of {selection.own:,} neurons, mean" if selection.own else "neurons, mean over clients")


def _by_round(values: Mapping[int, float], task: str, label: str) -> str | None:
    if len(values) < 2:
        return None
    x = svg.Scale(min(values), max(values), _LEFT, _WIDTH - _RIGHT)
    plot = svg.Plot(x, svg.linear([0.0, *values.values()], _HEIGHT - _BOTTOM, _TOP, zero=True), _WIDTH, _HEIGHT)
    parts = plot.axes("round of training", label, lambda v: f"{v:g}", lambda v: f"{v:,.0f}")
    at = [(plot.x(number), plot.y(value)) for number, value in values.items()]
    last = list(values)[-1]
    parts.append(svg.group(OURS, 0, f"from {values[min(values)]:,.0f} to {values[last]:,.0f} in round {last}", [svg.path(at, "curve")]))
    return plot.svg(parts, f"{task}: {label} by round")


def _difficulty(selection: SelectionRecord, task: str) -> str | None:
    edges, counts = selection.difficulty
    if not counts:
        return None
    bounds = [10**edge for edge in edges]
    x = svg.Scale(bounds[0], bounds[-1], _LEFT, _WIDTH - _RIGHT, log=True)
    plot = svg.Plot(x, svg.linear([0.0, *counts], _HEIGHT - _BOTTOM, _TOP, zero=True), _WIDTH, _HEIGHT)
    parts = plot.axes("trace of the Fisher information", "examples", _plain, _whole)
    for low, high, count in zip(bounds, bounds[1:], counts, strict=False):
        top, left = plot.y(count), plot.x(low)
        parts.append(svg.rect(left, top, plot.x(high) - left - 1, plot.y(0) - top, "bar", f"{low:.3g} to {high:.3g}: {count}"))
    return plot.svg(parts, f"{task}: histogram of the difficulty of {sum(counts)} scored examples")


def _plain(value: float) -> str:
    """A round number above 0 without an exponent, as long as that is short."""
    return f"{value:,.0f}" if 1 <= value < 1e6 else f"{value:.6f}".rstrip("0") if 1e-6 <= value < 1 else f"{value:.0e}"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else ""
