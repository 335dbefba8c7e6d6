"""Sums of an evaluation as tests write them down: a confusion matrix and a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fibecfed.core.metrics import METRICS
from fibecfed.core.statistics import CALIBRATION, CONFUSION, NLL, Sums, of_classes
from fibecfed.engine.runtime import Scored


def sums(confusion: Sequence[Sequence[int]], loss: float = 0.0) -> dict[str, Any]:
    """As in a record. Args: loss: mean over the examples, nat."""
    return {CONFUSION: [list(row) for row in confusion], NLL: loss * sum_of(confusion), CALIBRATION: [0.0] * 15}


def totals(confusion: Tensor, nll: float = 0.0) -> dict[str, Tensor]:
    """As they travel. Args: nll: summed."""
    zero = of_classes(len(confusion)).zero
    return {**zero, CONFUSION: confusion, NLL: torch.tensor(nll, dtype=torch.float64)}


def scored(test: Tensor, validation: Tensor, test_nll: float = 0.0, validation_nll: float = 0.0) -> Scored:
    """An answer to an evaluation."""
    return Scored(totals(test, test_nll), totals(validation, validation_nll))


def matrix(found: Sums) -> list[list[int]]:
    """The confusion matrix among sums."""
    return found[CONFUSION]


def loss(found: Sums) -> float:
    """The mean loss of sums."""
    return METRICS["loss"].of(found)


def sum_of(confusion: Sequence[Sequence[int]]) -> int:
    """Examples that a matrix counts."""
    return sum(map(sum, confusion))
