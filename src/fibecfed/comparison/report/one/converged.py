"""How far a run has converged: scores and training loss by round, and whether more rounds may help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ....core.records import EvalRecord, RoundRecord
from ....core.statistics import number_of_examples
from ....core.units import count
from ....engine.baselines import standard_error, still_rising
from ....engine.summary import LAST_TRAINING
from .. import svg
from ..figures import HEIGHT, WIDTH, Figure
from ..results import ComparisonResults, RunFiles
from ..runs import progress_of
from .alone import alone_beside
from .section import Section, run_and_files

_LEFT, _TOP, _BOTTOM, _ROW = 44, 24, 38, 14
_LETTER = 6.6
_ROOM = 0.09


def converged(comparison: ComparisonResults) -> Section:
    """Sentences and two figures."""
    _, files = run_and_files(comparison)
    lines = [*_state(files), *_scores(comparison), *_losses(files)]
    figures = [figure for figure in (scores(comparison), losses(files)) if figure is not None]
    note = (
        "Scores of each evaluation, from the untrained model on; the training loss is the mean over the examples of each round's clients."
    )
    return Section("converged", "How far it has converged", tuple(lines), figures=tuple(figures), note=note if figures else "")


def _state(files: RunFiles) -> list[str]:
    if files.is_finished:
        return []
    text = progress_of(files.folder) or "finished"
    return [f"The run is {text}: these are its numbers so far."]


def _scores(comparison: ComparisonResults) -> list[str]:
    """Whether the score was rising, had fallen, or was level at the end."""
    _, files = run_and_files(comparison)
    of, metric = comparison.scores, comparison.scores.metric
    if rising := still_rising(files.summary.get("rising"), metric):
        return rising
    alone = {one.number + 1 for one in files.records if isinstance(one, RoundRecord) and one.phase == LAST_TRAINING}
    points = [
        (one.rounds, score, number_of_examples(one.pooled))
        for one in files.records
        if isinstance(one, EvalRecord) and one.rounds and one.rounds not in alone and not math.isnan(score := metric.of(one.pooled))
    ]
    if len(points) < 2:
        return ["With fewer than two evaluations of a trained model nothing can be said of that; lower evaluation.every shows more."]
    (before, first, _), (last, now, examples) = points[-2:]
    apart, noise = of.difference(now - first), standard_error(now, examples, metric)
    best = max(points, key=lambda point: of.sign * point[1])
    if of.sign * (best[1] - now) > noise:
        return [
            f"The personalised score was best after round {best[0]} ({of.text(best[1])}) and is {of.difference(best[1] - now)} "
            f'{of.below} that after round {last}: fewer rounds, a smaller training.learning_rate or evaluation.save = "best" may be better.'
        ]
    if abs(now - first) <= noise:
        return [
            f"The personalised score has settled: {of.text(first)} after round {before}, {of.text(now)} after round {last}, on "
            f"{count(examples, 'test example')} (one standard error is {of.difference(noise)})."
        ]
    return [f"The personalised score changed by {apart} from round {before} ({of.text(first)}) to round {last} ({of.text(now)})."]


def _losses(files: RunFiles) -> list[str]:
    found = training_loss(files.records)
    if len(found) < 2:
        return []
    (first, start), (last, end) = found[0], found[-1]
    return [f"The mean training loss was {start:.3f} nat in round {first} and {end:.3f} nat in round {last}."]


def training_loss(records: Sequence[RoundRecord | EvalRecord]) -> list[tuple[int, float]]:
    """Round, counted from 1 over all phases, and mean loss over the examples that its clients trained on."""
    found = []
    for one in records:
        if isinstance(one, RoundRecord) and (seen := sum(one.examples.values())):
            loss = sum(one.loss.get(client, math.nan) * number for client, number in one.examples.items()) / seen
            if math.isfinite(loss):
                found.append((one.number + 1, loss))
    return found


def scores(comparison: ComparisonResults) -> Figure | None:
    """Scores by round, with what costs nothing as levels."""
    _, files = run_and_files(comparison)
    of, metric, saved = comparison.scores, comparison.scores.metric, files.summary["saved"]
    evaluations = [one for one in files.records if isinstance(one, EvalRecord)]
    lines = {
        "personalised": [(one.rounds, metric.of(one.pooled)) for one in evaluations],
        "global": [(one.rounds, metric.of(one.server)) for one in evaluations],
        "validation": [(one.rounds, metric.of(one.pooled_validation)) for one in evaluations],
    }
    shown = {name: [(x, of.factor * y) for x, y in points if not math.isnan(y)] for name, points in lines.items()}
    alone = alone_beside(files)
    levels = {
        "own majority": saved.get("own_majority"),
        "majority": saved.get("majority"),
        "clients alone": None if alone is None else alone.personalised,
    }
    level = {name: of.factor * y for name, y in levels.items() if y is not None and not math.isnan(y)}
    return drawing("Scores by round", of.head("score") + of.lower, shown, level, f"{of.digits}f", of.unit)


def losses(files: RunFiles) -> Figure | None:
    """Training loss by round."""
    found = training_loss(files.records)
    return drawing("Training loss by round", "nat", {"training loss": found}, {}, "3f", " nat") if len(found) > 1 else None


def drawing(
    title: str, label: str, lines: Mapping[str, Sequence[tuple[float, float]]], levels: Mapping[str, float], digits: str, unit: str
) -> Figure | None:
    """Lines over rounds with their names at the right, and levels; None where there are fewer than two points to draw."""
    lines = {name: points for name, points in lines.items() if points}
    xs = [x for points in lines.values() for x, _ in points]
    if len(set(xs)) < 2:
        return None
    ys = [y for points in lines.values() for _, y in points] + list(levels.values())
    names = [*lines, *levels] if len(lines) + len(levels) > 1 else []
    right = WIDTH - 10 - _LETTER * max(map(len, names), default=0)
    plot = svg.Plot(svg.Scale(min(xs), max(xs), _LEFT, right), svg.linear(ys, HEIGHT - _BOTTOM, _TOP, margin=_ROOM), WIDTH, HEIGHT)
    parts = plot.axes("rounds", label, lambda v: f"{v:g}", lambda v: f"{v:g}")
    parts += [svg.line(_LEFT, plot.y(level), right, plot.y(level), "level") for level in levels.values()]
    ends = {name: plot.y(points[-1][1]) for name, points in lines.items()} | {name: plot.y(level) for name, level in levels.items()}
    at = apart(ends, _TOP, HEIGHT - _BOTTOM)
    for slot, (name, points) in enumerate(lines.items()):
        middle = [(plot.x(x), plot.y(y)) for x, y in points]
        tip = (
            f"{name}: {points[0][1]:.{digits}}{unit} after round {points[0][0]:g}, {points[-1][1]:.{digits}}{unit} after {points[-1][0]:g}"
        )
        marks = [svg.path(middle, "hit"), svg.path(middle, "curve"), *(svg.circle(*one, 2.5, "dot") for one in middle[:: _every(middle)])]
        marks += [svg.text(right + 7, at[name] + 3.5, name, "name")] if names else []
        parts.append(svg.group(name, slot, tip, marks))
    parts += [svg.text(right + 7, at[name] + 3.5, name, "hint") for name in levels]
    return Figure(title, (plot.svg(parts, f"{title}: {', '.join(lines)}"),))


def _every(points: Sequence[object]) -> int:
    """Of many points a part has a dot."""
    return max(1, len(points) // 40)


def apart(places: Mapping[str, float], top: float, bottom: float) -> dict[str, float]:
    """The same places moved so far that no two are nearer than a line of text, in their order, within the frame if there is room.

    >>> apart({"a": 10, "b": 12, "c": 100}, 0, 200)
    {'a': 10, 'b': 24, 'c': 100}
    """
    found: dict[str, float] = {}
    before = top - _ROW
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        found[name] = before = max(place, before + _ROW)
    after = bottom + _ROW
    for name in reversed(list(found)):
        found[name] = after = min(found[name], after - _ROW)
    return found
