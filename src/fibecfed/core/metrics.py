"""Metrics: what is computed from the sums that clients answer an evaluation with, so that only sums ever leave a client.

A metric is a row of `METRICS`: the sums it needs, how it is computed, its unit, and which direction is better. Everything that reads scores
asks the row. For classification a metric can also be of one class: `f1:spam` is the F1 of the class spam.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .answers import CORRECT_TOKENS, TOKEN_NLL, TOKENS
from .errors import UserError
from .statistics import CALIBRATION, CONFUSION, EXAMPLES, NLL, Sums, number_of_examples
from .units import percent
from .written import EXACT, GENERATED, ROUGE_L, STOPPED

Confusion = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Metric:
    """A score of a model on examples.

    Attributes:
        name: as in a configuration and in summary.json.
        title: as a table's head names it.
        needs: names of the sums that it is computed from.
        value: those sums -> the score; NaN where it has none, as for no examples.
        higher_is_better: whether a higher score is a better one.
        unit: "%" for shares in [0, 1], which are shown per cent; "nat"; or "" for a plain number.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    value: Callable[[Sums], float]
    higher_is_better: bool = True
    unit: Literal["%", "nat", ""] = "%"

    def of(self, sums: Sums) -> float:
        """The score; NaN where the sums lack what it needs, or where there is none."""
        return self.value(sums) if self.follows_from(sums) else math.nan

    def follows_from(self, sums: Container[str]) -> bool:
        """Whether sums of these names are enough; a confusion matrix tells the number of examples."""
        return all(name in sums or (name == EXAMPLES and CONFUSION in sums) for name in self.needs)

    def better(self, score: float, than: float) -> bool:
        """Whether a score is better than another. NaN is better than nothing, and anything else is better than NaN."""
        if math.isnan(score) or math.isnan(than):
            return math.isnan(than) and not math.isnan(score)
        return score > than if self.higher_is_better else score < than

    def text(self, score: float | None) -> str:
        """A score as a reader wants it, "-" for none: "81.3 %", "0.412 nat", "0.62"."""
        if self.unit == "%" or score is None or math.isnan(score):
            return percent(score)
        return f"{score:.3f} {self.unit}".rstrip()


# ---- of a confusion matrix (true class as row, predicted class as column)


def number_of(confusion: Confusion) -> int:
    """Examples that a confusion matrix counts."""
    return sum(map(sum, confusion))


def accuracy(confusion: Confusion) -> float:
    """Fraction of examples on the diagonal; NaN where there are none."""
    total = number_of(confusion)
    return sum(row[i] for i, row in enumerate(confusion)) / total if total else math.nan


def matthews(confusion: Confusion) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 where a margin is degenerate, NaN without examples."""
    n = len(confusion)
    total = number_of(confusion)
    correct = sum(confusion[i][i] for i in range(n))
    true = [sum(row) for row in confusion]
    predicted = [sum(row[j] for row in confusion) for j in range(n)]
    cov = correct * total - sum(t * p for t, p in zip(true, predicted, strict=True))
    spread = (total**2 - sum(p * p for p in predicted)) * (total**2 - sum(t * t for t in true))
    return math.nan if not total else cov / math.sqrt(spread) if spread else 0.0


def precision(confusion: Confusion, c: int = 1) -> float:
    """Fraction of right ones among the examples predicted as class c; 0 where there are none, NaN without examples."""
    return _share(confusion[c][c], sum(row[c] for row in confusion), confusion)


def recall(confusion: Confusion, c: int = 1) -> float:
    """Fraction of the examples of class c that are predicted as it; 0 where there are none, NaN without examples."""
    return _share(confusion[c][c], sum(confusion[c]), confusion)


def f1(confusion: Confusion, c: int = 1) -> float:
    """F1 of class c: 2 hits / (true + predicted); 0 where nothing is true or predicted as it, NaN without examples."""
    return _share(2 * confusion[c][c], sum(confusion[c]) + sum(row[c] for row in confusion), confusion)


def _share(part: int, whole: int, confusion: Confusion) -> float:
    return math.nan if not number_of(confusion) else part / whole if whole else 0.0


_OF_CLASS: Mapping[str, Callable[[Confusion, int], float]] = {"f1": f1, "precision": precision, "recall": recall}
"""Scores of one class, by the name before the colon."""


def _mean(of: Callable[[Confusion, int], float]) -> Callable[[Sums], float]:
    """Mean over the classes that are true or predicted anywhere, each of the same weight, as scikit-learn's "macro" has it."""

    def value(sums: Sums) -> float:
        confusion = sums[CONFUSION]
        there = [c for c, row in enumerate(confusion) if sum(row) or any(other[c] for other in confusion)]
        return sum(of(confusion, c) for c in there) / len(there) if there else math.nan

    return value


def _of(of: Callable[[Confusion], float]) -> Callable[[Sums], float]:
    return lambda sums: of(sums[CONFUSION])


def _of_two(of: Callable[[Confusion, int], float]) -> Callable[[Sums], float]:
    """Of the second of two classes; NaN where there are more."""
    return lambda sums: of(sums[CONFUSION], 1) if len(sums[CONFUSION]) == 2 else math.nan


def _loss(sums: Sums) -> float:
    number = number_of_examples(sums)
    return sums[NLL] / number if number else math.nan


def _calibration_error(sums: Sums) -> float:
    number = number_of_examples(sums)
    return sum(map(abs, sums[CALIBRATION])) / number if number else math.nan


# ---- of answers


def _per_token(name: str) -> Callable[[Sums], float]:
    return lambda sums: sums[name] / sums[TOKENS] if sums[TOKENS] else math.nan


def _perplexity(sums: Sums) -> float:
    nll = _per_token(TOKEN_NLL)(sums)
    return math.exp(nll) if nll < _LARGEST_NLL else math.nan


def _of_written(name: str) -> Callable[[Sums], float]:
    return lambda sums: sums[name] / sums[GENERATED] if sums[GENERATED] else math.nan


OF_WRITTEN = ("exact_match", "rouge_l", "stop_rate")
"""Metrics of answers that were generated, which is done after the last round, for test examples."""

_LARGEST_NLL = 700.0
"""Nat; the exponential of more is no ordinary number."""


_ROWS = (
    Metric("accuracy", "accuracy", (CONFUSION,), _of(accuracy)),
    Metric("macro_f1", "macro F1", (CONFUSION,), _mean(f1)),
    Metric("macro_precision", "macro precision", (CONFUSION,), _mean(precision)),
    Metric("macro_recall", "macro recall", (CONFUSION,), _mean(recall)),
    Metric("f1", "F1", (CONFUSION,), _of_two(f1)),
    Metric("precision", "precision", (CONFUSION,), _of_two(precision)),
    Metric("recall", "recall", (CONFUSION,), _of_two(recall)),
    Metric("matthews", "Matthews correlation", (CONFUSION,), _of(matthews), unit=""),
    Metric("loss", "loss", (EXAMPLES, NLL), _loss, higher_is_better=False, unit="nat"),
    Metric("calibration_error", "calibration error", (CONFUSION, CALIBRATION), _calibration_error, higher_is_better=False),
    Metric("nll", "NLL per token", (TOKEN_NLL, TOKENS), _per_token(TOKEN_NLL), higher_is_better=False, unit="nat"),
    Metric("perplexity", "perplexity", (TOKEN_NLL, TOKENS), _perplexity, higher_is_better=False, unit=""),
    Metric("token_accuracy", "token accuracy", (CORRECT_TOKENS, TOKENS), _per_token(CORRECT_TOKENS)),
    Metric("exact_match", "exact match", (EXACT, GENERATED), _of_written(EXACT)),
    Metric("rouge_l", "Rouge-L", (ROUGE_L, GENERATED), _of_written(ROUGE_L)),
    Metric("stop_rate", "stop rate", (STOPPED, GENERATED), _of_written(STOPPED)),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ROWS}
"""Every metric by name. `f1`, `precision` and `recall` are those of the second of two classes, `macro_...` means over the classes."""


def metric_named(name: str, classes: Sequence[str] = ()) -> Metric:
    """The metric of a name.

    Args:
        classes: names of the classes, for a metric of one of them.

    Raises:
        UserError: there is none of this name; with the nearest one.
    """
    if (mistake := mistake_in(name)) is not None:
        raise UserError(mistake)
    kind, colon, label = name.partition(":")
    if not colon:
        return METRICS[name]
    if label not in classes:
        raise UserError(f"evaluation.metric: got {name!r}, expected a class of the data after the colon: {_nearest(label, classes)}")
    of, place = _OF_CLASS[kind], list(classes).index(label)
    return Metric(name, f"{METRICS[kind].title} of {label}", (CONFUSION,), lambda sums: of(sums[CONFUSION], place))


def mistake_in(name: str) -> str | None:
    """What is wrong with a name whatever the data are, as a sentence; None where nothing is."""
    kind, colon, _ = name.partition(":")
    if name in METRICS or (colon and kind in _OF_CLASS):
        return None
    if colon and kind in METRICS:
        return f"evaluation.metric: got {name!r}, expected no class with {kind}; of one class are {', '.join(_OF_CLASS)}"
    return f"evaluation.metric: got {name!r}, expected {_nearest(name, list(METRICS))}"


def primary(name: str | None, zero: Sums, default: str, classes: Sequence[str] = ()) -> Metric:
    """The metric that a run is judged by.

    Args:
        name: as configured; None: `default`, the task's own.
        zero: the sums that the task answers with, over no examples.

    Raises:
        UserError: there is no such metric, or the task cannot give it.
    """
    metric = metric_named(default if name is None else name, classes)
    offered = [one.name for one in offered_by(zero)]
    if metric.name in METRICS and metric.name not in offered:
        two = " is of two classes" if metric.name in _OF_CLASS and CONFUSION in zero else " cannot be had from what this task predicts"
        raise UserError(f"evaluation.metric: {metric.name}{two}; expected {_nearest(f'macro_{metric.name}', offered)}")
    return metric


def offered_by(zero: Sums) -> list[Metric]:
    """The metrics of a task that answers with such sums."""
    found = [metric for metric in METRICS.values() if metric.follows_from(zero)]
    two = CONFUSION not in zero or len(zero[CONFUSION]) == 2
    return [metric for metric in found if two or metric.name not in _OF_CLASS]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{near[0]!r} (or another of {listed})" if near else f"one of {listed}"
