"""How well a score tells members from others, and how sure a figure is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 200
FALSE_POSITIVES = 0.01


@dataclass(frozen=True)
class Interval:
    """A measured value.

    Attributes:
        low, high: where it lies with 95 % confidence, as far as the measured examples tell.
    """

    value: float
    low: float
    high: float

    def reaches(self, guess: float) -> bool:
        """Whether guessing is inside of the interval."""
        return self.low <= guess <= self.high


@dataclass(frozen=True)
class MemberScores:
    """An attack's scores within one class: higher = rather a member.

    Attributes:
        members, others: shape (members,) and (others,).
    """

    members: Tensor
    others: Tensor


def auc(strata: Sequence[MemberScores], seed: int = 0) -> Interval | None:
    """The probability that a member has a higher score than another example of its class; ties count half. None: no class has both.

    The interval is that of `RESAMPLES` bootstrap samples of members and of others, within each class.
    """
    return _resampled(strata, _auc, seed)


def true_positives(strata: Sequence[MemberScores], seed: int = 0) -> Interval | None:
    """Fraction of members whose score is above that of all but `FALSE_POSITIVES` of the other examples of their class; interval and None
    as for `auc`."""
    return _resampled(strata, _true_positives, seed)


_Pair: TypeAlias = tuple[Tensor, Tensor]


def _resampled(strata: Sequence[MemberScores], measure: Callable[[Sequence[_Pair]], float], seed: int) -> Interval | None:
    used = [(one.members.double(), one.others.double()) for one in strata if len(one.members) and len(one.others)]
    if not used:
        return None
    draw = torch.Generator().manual_seed(seed)

    def again(side: Tensor) -> Tensor:
        return side[torch.randint(len(side), (len(side),), generator=draw)]

    found = [measure([(again(members), again(others)) for members, others in used]) for _ in range(RESAMPLES)]
    low, high = np.percentile(found, (2.5, 97.5))
    return Interval(measure(used), float(low), float(high))


def _auc(strata: Sequence[_Pair]) -> float:
    won = pairs = 0.0
    for members, others in strata:
        difference = members[:, None] - others[None, :]
        won += float((difference > 0).sum()) + 0.5 * float((difference == 0).sum())
        pairs += difference.numel()
    return won / pairs


def _true_positives(strata: Sequence[_Pair]) -> float:
    above = every = 0
    for members, others in strata:
        allowed = math.floor(FALSE_POSITIVES * len(others))
        above += int((members > others.sort(descending=True).values[allowed]).sum())
        every += len(members)
    return above / every


def mean(values: Sequence[float]) -> Interval:
    """Their mean, and 1.96 standard errors to both sides (0 of a single one)."""
    array = np.asarray(values, dtype=np.float64)
    half = 1.96 * float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else 0.0
    return Interval(float(array.mean()), float(array.mean()) - half, float(array.mean()) + half)
