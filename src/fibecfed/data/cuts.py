"""Cuts of a data set: random subsets and stratified parts, all decided by a key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..core.rng import Key


def generator(key: Key) -> np.random.Generator:
    """NumPy's generator at the start of the stream `key`."""
    return np.random.default_rng(key.seed())


def subset(size: int, count: int | None, key: Key) -> np.ndarray:
    """`count` different positions out of 0 .. size - 1 in ascending order, int64; all of them for None or a count beyond the size.

    With one key a smaller subset lies inside a larger one.
    """
    if count is None or count >= size:
        return np.arange(size)
    return np.sort(generator(key).permutation(size)[:count])


def stratified_cut(strata: np.ndarray | Tensor, count: int, key: Key, groups: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Cut `count` examples out so that their strata stand in the same proportion as in the whole (quotas by largest remainder).

    At least one example of each stratum stays, so a few less than `count` may be cut. With `groups`, at least one example of each
    group stays too.

    Args:
        strata: the stratum of each example, most often its class; integers, shape (n,).
        count: how many are cut, 0 .. n.
        groups: the group (client) of each example, n of them.

    Returns:
        Positions that stay and positions that are cut, both int64 and ascending.
    """
    values = np.asarray(strata)
    present, totals = np.unique(values, return_counts=True)
    quotas = np.minimum(largest_remainder(totals.astype(float), count), totals - 1)
    order = generator(key).permutation(len(values))
    cut = np.zeros(len(values), dtype=bool)
    for value, quota in zip(present, quotas, strict=True):
        cut[order[values[order] == value][:quota]] = True
    if groups is not None and len(values):
        _, group = np.unique(np.asarray(groups), return_inverse=True)
        left = np.bincount(group[~cut], minlength=group.max() + 1)
        for position in np.flatnonzero(cut & (left[group] == 0)):
            if left[group[position]] == 0:
                cut[position] = False
                left[group[position]] = 1
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers that sum to `total` and stand in the proportion of `shares`, each within 1 of its exact quota.

    Args:
        shares: non-negative, with a positive sum unless `total` is 0, shape (n,).

    Returns:
        int64, shape (n,). Ties of remainders go to the lower index.
    """
    if total == 0:
        return np.zeros(len(shares), dtype=np.int64)
    exact = shares * (total / shares.sum())
    # the small allowance keeps 2.9999999996 from becoming 2 with a remainder that another share then wins
    whole = np.floor(exact + 1e-9).astype(np.int64)
    missing = total - int(whole.sum())
    order = np.argsort(whole - exact, kind="stable")
    if missing > 0:
        whole[order[:missing]] += 1
    elif missing < 0:
        whole[order[missing:]] -= 1
    return whole
