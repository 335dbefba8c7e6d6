"""What an evaluation is answered with: named sums over examples, which add up over batches and clients. Never a score, never a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

CONFUSION, NLL, CALIBRATION, EXAMPLES = "confusion", "nll", "calibration", "examples"
CALIBRATION_BINS = 15
"""Equal bins of the probability of the predicted class, as Guo et al. (2017) have them."""

Sums: TypeAlias = Mapping[str, Any]
"""Name -> a number or nested lists of numbers: sums as they are written down, and as a metric takes them."""

Totals: TypeAlias = Mapping[str, Tensor]
"""Name -> tensor, int64 or float64: sums while they are added up and sent."""


@dataclass(frozen=True)
class Statistics:
    """Which sums a task answers an evaluation with, and what can be said of them without its data.

    Attributes:
        zero: the sums over no examples; int64 for counts, which are never negative, and float64 for everything else.
        counted: examples of each kind among sums. Which examples a client is scored on does not change during a run, so neither does this.
        problem: what makes sums impossible although their shapes are as expected, as a sentence; None for good ones.
        kind: what the examples of one kind are called, by place in `counted`, as in "examples of class 3".
        metric: name of the metric that is the primary one where the user names none.
    """

    zero: Totals
    counted: Callable[[Totals], tuple[int, ...]]
    problem: Callable[[Totals], str | None]
    kind: Callable[[int], str]
    metric: str


def added(many: Iterable[Totals], zero: Totals) -> dict[str, Tensor]:
    """The sums of all, in the order in which they come: the last bits of a floating-point sum depend on it."""
    found = {name: value.clone() for name, value in zero.items()}
    for one in many:
        for name, total in found.items():
            total += one[name].to("cpu", total.dtype)
    return found


def plain(totals: Totals) -> dict[str, Any]:
    """Tensors as numbers and lists, for a file and for metrics."""
    return {name: _listed(value) for name, value in totals.items()}


def _listed(value: Tensor) -> Any:
    return cast("Any", value.tolist())  # pyright: ignore[reportUnknownMemberType]


def number_of_examples(sums: Sums) -> int:
    """Examples that sums are over: those that a confusion matrix counts, or where there is none the sum `examples`."""
    return sum(map(sum, sums[CONFUSION])) if CONFUSION in sums else sums[EXAMPLES]


# ---- classification


def of_classes(num_classes: int) -> Statistics:
    """The sums of a classification.

    `confusion` counts examples (true class as row, predicted class as column), int64 (classes, classes); `nll` sums -log p(label), nat;
    `calibration` sums, by bin of the predicted class's probability, that probability minus 1 where the prediction is right: (15,).
    """
    zero = {
        CONFUSION: torch.zeros(num_classes, num_classes, dtype=torch.int64),
        NLL: torch.zeros((), dtype=torch.float64),
        CALIBRATION: torch.zeros(CALIBRATION_BINS, dtype=torch.float64),
    }
    return Statistics(zero, _by_class, _impossible, lambda place: f"class {place}", "accuracy")


def class_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The sums of `of_classes` over a batch.

    Args:
        logits: (batch, classes), float32 or better.
        labels: (batch,), true classes.
    """
    logits, labels = logits.to("cpu"), labels.to("cpu")
    classes = logits.shape[-1]
    predicted = logits.argmax(-1)
    sure = logits.double().softmax(-1).gather(1, predicted[:, None])[:, 0].nan_to_num()  # a loss that is NaN tells of it
    bins = (sure * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    return {
        CONFUSION: torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes),
        NLL: cross_entropy(logits, labels, reduction="sum").double(),
        CALIBRATION: torch.zeros(CALIBRATION_BINS, dtype=torch.float64).index_add(0, bins, sure - (predicted == labels).double()),
    }


def _by_class(totals: Totals) -> tuple[int, ...]:
    return tuple(sum(row) for row in _listed(totals[CONFUSION]))  # Python's integers do not overflow


def _impossible(totals: Totals) -> str | None:
    number = sum(_by_class(totals))
    if float(totals[NLL]) < 0:
        return f"{NLL} is {float(totals[NLL])}, expected at least 0"
    most = float(totals[CALIBRATION].abs().sum())
    return f"{CALIBRATION} sums to {most}, expected at most {number}, the number of examples" if most > number * (1 + 1e-9) else None
