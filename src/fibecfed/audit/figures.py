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
        sample: which other examples these are; strata with the same name have scores of the same ones, in the same order. None: of their
            own.
    """

    members: Tensor
    others: Tensor
    sample: int | None = None


def auc(strata: Sequence[MemberScores], seed: int = 0) -> Interval | None:
    """The probability that a member has a higher score than another example of its class; ties count half. None: no class has both.

    The interval is that of `RESAMPLES` bootstrap samples of members and of others, within each class. Others that were scored for several
    clients are drawn once for all of them: that they happen to be easy or hard moves every client's area alike.
    """
    return _resampled(strata, _auc, seed)


def true_positives(strata: Sequence[MemberScores], seed: int = 0) -> Interval | None:
    """Fraction of members whose score is above that of all but `FALSE_POSITIVES` of the other examples of their class; interval and None
    as for `auc`."""
    return _resampled(strata, _true_positives, seed)


def named_by_chance(strata: Sequence[MemberScores]) -> float:
    """What `true_positives` is on average where scores tell nothing: slightly above `FALSE_POSITIVES`, as there are few others."""
    used = [one for one in strata if len(one.members) and len(one.others)]
    every = sum(len(one.members) for one in used)
    chances = [len(one.members) * (_allowed(len(one.others)) + 1) / (len(one.others) + 1) for one in used]
    return sum(chances) / every if every else FALSE_POSITIVES


_Pair: TypeAlias = tuple[Tensor, Tensor]


def _resampled(strata: Sequence[MemberScores], measure: Callable[[Sequence[_Pair]], float], seed: int) -> Interval | None:
    used = [one for one in strata if len(one.members) and len(one.others)]
    if not used:
        return None
    draw = torch.Generator().manual_seed(seed)

    def drawn(side: Tensor) -> Tensor:
        return torch.randint(len(side), (len(side),), generator=draw)

    def again() -> list[_Pair]:
        samples: dict[int, Tensor] = {}
        found: list[_Pair] = []
        for one in used:
            places = drawn(one.others) if one.sample is None else samples.setdefault(one.sample, drawn(one.others))
            found.append((one.members[drawn(one.members)].double(), one.others[places].double()))
        return found

    low, high = np.percentile([measure(again()) for _ in range(RESAMPLES)], (2.5, 97.5))
    return Interval(measure([(one.members.double(), one.others.double()) for one in used]), float(low), float(high))


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
        above += int((members > others.sort(descending=True).values[_allowed(len(others))]).sum())
        every += len(members)
    return above / every


def _allowed(others: int) -> int:
    """How many of the others may be taken for members."""
    return math.floor(FALSE_POSITIVES * others)


def mean(values: Sequence[float]) -> Interval:
    """Their mean, and to both sides as many standard errors as hold 95 % of Student's distribution (0 of a single one)."""
    array = np.asarray(values, dtype=np.float64)
    half = student(len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else 0.0
    return Interval(float(array.mean()), float(array.mean()) - half, float(array.mean()) + half)


_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution with so many degrees of freedom, at least 1."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959964  # the first terms of the expansion of Cornish and Fisher; right to three digits from here on
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2) + third
