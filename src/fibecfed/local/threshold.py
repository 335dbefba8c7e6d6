"""Which of its examples a client trains on under privacy for examples: those whose difficulty is at most a threshold.

Taking the first ones of an order by difficulty would let one example move all behind it into other batches. By a threshold each example
takes part or not by its own difficulty alone, and the threshold is a quantile of a histogram with noise: what a scoring costs is that one
histogram, from which the threshold of every later round follows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 20
"""[C] Two for each power of ten from 1e-6 to 1e4; what is beyond is in the first or the last one."""
_FIRST, _EACH = -6.0, 0.5


def bins_of(difficulty: Tensor) -> Tensor:
    """The bin of each example by the logarithm of its difficulty, int64; one that is not finite is in the last, one whose difficulty is 0,
    since it has no gradient, in none: -1."""
    places = ((difficulty.double().clamp(min=1e-300).log10() - _FIRST) / _EACH).floor()
    found = torch.nan_to_num(places, nan=BINS - 1, posinf=BINS - 1).clamp(0, BINS - 1).long()
    return found.where(difficulty != 0, -1)


def threshold(counts: Tensor, share: float) -> float:
    """The difficulty that about this share of the examples does not pass, from their noised numbers by bin; between the ends of a bin
    the logarithm is taken to be spread evenly.

    >>> counts = torch.zeros(BINS)
    >>> counts[[4, 5]] = torch.tensor([10.0, 30.0])
    >>> round(math.log10(threshold(counts, 0.25)), 6), threshold(counts, 1.0)
    (-3.5, inf)
    """
    total = float(counts.sum())
    if share >= 1 or total <= 0:
        return math.inf
    wanted, before = share * total, 0.0
    for place, count in enumerate(counts.tolist()):
        if count > 0 and before + count >= wanted:
            return 10.0 ** (_FIRST + _EACH * (place + (wanted - before) / count))
        before += count
    return math.inf
