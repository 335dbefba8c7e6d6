"""Scoring a saved model on the labelled texts of a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from ..core.errors import UserError
from ..core.metrics import Metric, f1, metric_named, offered_by, precision, recall
from ..core.statistics import CONFUSION, class_sums, plain
from ..core.terminal import escaped
from ..core.units import count
from ..data.names import canonical, listed, look_alike, shown
from ..data.rows import FileRows
from ..data.sources import places_of
from ..data.values import where_in
from ..engine.baselines import majority, no_better
from ..inspection import as_table, show
from .model import TrainedModel, Watch
from .predict import TextColumns, read_texts

_MATRIX = 12
"""[C] With more classes the most frequent mistakes are shown instead of the whole confusion matrix, this many."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a file.

    Attributes:
        labels: names of the classes, in order.
        sums: what the scores are computed from.
        metric: the run's primary one.
        notes: what the user has to be told about how the file was read.
    """

    labels: tuple[str, ...]
    sums: dict[str, Any]
    metric: Metric
    notes: tuple[str, ...]

    @property
    def confusion(self) -> list[list[int]]:
        """Examples by true class (row) and predicted class (column)."""
        return self.sums[CONFUSION]

    def scores(self) -> list[tuple[Metric, float]]:
        """Every metric that can be had, the primary one first."""
        found = {metric.name: metric for metric in (self.metric, *offered_by(self.sums))}
        return [(metric, metric.of(self.sums)) for metric in found.values()]

    def by_class(self) -> list[dict[str, Any]]:
        """For each class its examples, how many were predicted as it, precision, recall and F1."""
        return [
            {
                "class": name,
                "examples": sum(self.confusion[c]),
                "predicted": sum(row[c] for row in self.confusion),
                "precision": precision(self.confusion, c),
                "recall": recall(self.confusion, c),
                "f1": f1(self.confusion, c),
            }
            for c, name in enumerate(self.labels)
        ]

    def mistakes(self) -> list[tuple[int, str, str]]:
        """How often which class was taken for which other one, the most frequent first."""
        pairs = [
            (number, self.labels[true], self.labels[predicted])
            for true, row in enumerate(self.confusion)
            for predicted, number in enumerate(row)
            if number and predicted != true
        ]
        return sorted(pairs, key=lambda one: -one[0])

    def table(self) -> dict[str, Any]:
        """The whole of it as JSON values."""
        return {
            "examples": sum(map(sum, self.confusion)),
            "metric": self.metric.name,
            "scores": {metric.name: score for metric, score in self.scores()},
            "majority": majority(self.sums, self.metric),
            "labels": list(self.labels),
            "classes": self.by_class(),
            "confusion": self.confusion,
        }


def evaluate_file(model: TrainedModel, file: str, columns: TextColumns, watch: Watch) -> Evaluation:
    """Score a model on a file.

    Raises:
        UserError: a file that cannot be read, has no such columns, or a row without a text or with a label that the model does not know.
    """
    rows, texts, pairs = read_texts(model, file, columns)
    labels = _numbered(rows, columns.label or model.found.config.data.label_column, model.labels)
    sums = plain(class_sums(model.logits(model.tokens(texts, pairs), watch), labels))
    return Evaluation(model.labels, sums, _metric(model, sums), rows.notes)


def _metric(model: TrainedModel, sums: dict[str, Any]) -> Metric:
    """The run's primary one."""
    metric = metric_named(model.found.config.evaluation.metric or "accuracy", model.labels)
    return metric if metric.follows_from(sums) else metric_named("accuracy")


def _numbered(rows: FileRows, column: str, names: Sequence[str]) -> Tensor:
    """The class of each row, int64.

    Raises:
        UserError: naming the first row with a label that the model does not know.
    """
    labels = rows.labels(column, "--label-column")
    places = places_of(labels, names)
    unknown = [row for row, label in enumerate(labels) if str(label) not in places]
    if unknown:
        which = list(dict.fromkeys(str(labels[row]) for row in unknown))
        more = f", and so have {count(len(unknown) - 1, 'more row')}" if len(unknown) > 1 else ""
        others = f" ({listed(which, 5)})" if len(which) > 1 else ""
        near = next((group for group in look_alike((which[0], *names)) if which[0] in group), None)
        hint = "" if near is None else f" Is it the same as {shown(next(name for name in near if name != which[0]))}?"
        raise UserError(
            f"{where_in(rows.source, canonical(column), unknown[0])}: got the label {shown(which[0])}, which the model does not know{more}"
            f"{others}, expected one of {listed(names, 20)}.{hint} Correct these rows, or remove them."
        )
    return torch.tensor([places[str(label)] for label in labels], dtype=torch.int64)


def show_evaluation(found: Evaluation, console: Console) -> None:
    """Scores, then the classes, then how they are confused."""
    simple = majority(found.sums, found.metric)
    scores = [(metric.title, metric.text(score)) for metric, score in found.scores()]
    examples = ("examples", f"{sum(map(sum, found.confusion)):,}")
    always = [] if math.isnan(simple) else [(f"{found.metric.title}, always the most frequent class", found.metric.text(simple))]
    classes = [
        (
            row["class"],
            f"{row['examples']:,}",
            f"{row['predicted']:,}",
            *(f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1")),
        )
        for row in found.by_class()
    ]
    header = ("class", "examples", "predicted", "precision", "recall", "F1")
    sections = [
        ("Scores", as_table(("", ""), [examples, scores[0], *always, *scores[1:]])),
        ("Classes, in per cent", as_table(header, classes)),
    ]
    if len(found.labels) <= _MATRIX:
        matrix = [(name, *map(str, row)) for name, row in zip(found.labels, found.confusion, strict=True)]
        sections.append(("Confusion matrix: true class by row, predicted class by column", as_table(("", *found.labels), matrix)))
    else:
        rows = [(f"{number:,}", true, predicted) for number, true, predicted in found.mistakes()[:_MATRIX]]
        sections.append(
            ("Most frequent mistakes; --json has the whole matrix", as_table(("examples", "true class", "predicted class"), rows))
        )
    show(sections, console)
    score = found.metric.of(found.sums)
    if not math.isnan(simple) and no_better(score, simple, found.metric):
        than = "only equals" if score == simple else "is worse than"
        text = f"note: {found.metric.title} {than} what always predicting the most frequent class gives."
        console.print(Text(escaped(text)), soft_wrap=True)
