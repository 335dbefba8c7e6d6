"""What a single run predicted for which class: scores by class, and the confusion matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ...core.metrics import Confusion, f1, precision, recall
from . import tables
from .results import ComparisonResults
from .scores import ComparedMetric
from .tables import Cell, Column, Table, number, score, words

_BY_CLASS: dict[str, Callable[[Confusion, int], float]] = {"precision": precision, "recall": recall, "F1": f1}


def of_classes(comparison: ComparisonResults) -> Iterator[Table]:
    """Of a comparison of one run whose classes are known; nothing of any other."""
    if len(comparison.runs) != 1 or (classes := comparison.runs[0].classes) is None:
        return
    both = {"personalised": classes.personalised, "global": classes.server}
    counted = {name: confusion for name, confusion in both.items() if any(map(any, confusion))}
    if not counted:
        return
    numbers, shares = range(len(classes.labels)), ComparedMetric()

    def cell(of: Callable[[Confusion, int], float], confusion: Confusion, c: int) -> Cell:
        return score(of(confusion, c), shares)

    columns = [Column("class", lambda c: words(classes.labels[c]))]
    for which, confusion in counted.items():
        columns.append(Column(f"{which}: examples", lambda c, confusion=confusion: number(sum(confusion[c]), 0)))
        columns += [Column(f"{which}: {name} %", partial(cell, of, confusion)) for name, of in _BY_CLASS.items()]
    note = "Of the test examples after the last round: each client with its own model, pooled, and the server's model."
    yield tables.table("classes", "Scores by class", note, columns, numbers)
    for which, confusion in counted.items():
        columns = [Column("true class", lambda c: words(classes.labels[c]))]
        columns += [
            Column(f"predicted {label}", lambda c, confusion=confusion, place=place: number(confusion[c][place], 0))
            for place, label in enumerate(classes.labels)
        ]
        note = "Number of test examples by true class and predicted class."
        yield tables.table(f"confusion-{which}", f"Confusion matrix, {which}", note, columns, numbers)
