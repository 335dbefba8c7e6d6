"""Scores from a confusion matrix (true class as row, predicted class as column), so that clients only ever send counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Confusion = Sequence[Sequence[int]]
Metric = Literal["accuracy", "matthews", "f1"]


def accuracy(confusion: Confusion) -> float:
    """Fraction of examples on the diagonal; NaN where there are none."""
    total = sum(map(sum, confusion))
    return sum(row[i] for i, row in enumerate(confusion)) / total if total else math.nan


def matthews(confusion: Confusion) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 where a margin is degenerate."""
    n = len(confusion)
    total = sum(map(sum, confusion))
    correct = sum(confusion[i][i] for i in range(n))
    true = [sum(row) for row in confusion]
    predicted = [sum(row[j] for row in confusion) for j in range(n)]
    cov = correct * total - sum(t * p for t, p in zip(true, predicted, strict=True))
    spread = (total**2 - sum(p * p for p in predicted)) * (total**2 - sum(t * t for t in true))
    return cov / math.sqrt(spread) if spread else 0.0


def f1(confusion: Confusion) -> float:
    """F1 of class 1 of two; 0 where nothing is true or predicted positive."""
    hit, missed, false = confusion[1][1], confusion[1][0], confusion[0][1]
    return 2 * hit / (2 * hit + missed + false) if hit + missed + false else 0.0


def add(a: Confusion, b: Confusion) -> list[list[int]]:
    """Entrywise sum."""
    return [[x + y for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]


def zeros(num_classes: int) -> list[list[int]]:
    """An empty matrix."""
    return [[0] * num_classes for _ in range(num_classes)]
