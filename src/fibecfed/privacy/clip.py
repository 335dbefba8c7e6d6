"""An update as it enters the sum: the difference to what was sent, of at most C in L2 norm over all its tensors, on a grid of integers.

Rounding goes towards 0, so that it makes no norm larger, and a sum of integers does not depend on the order of its terms. One client thus
moves the sum by at most C, whatever it answers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..core.types import Params

Integers: TypeAlias = dict[str, NDArray[np.int64]]
"""Named tensors in steps of the grid, in the order of their names."""

GRID_BITS = 30
"""C is between 2^30 and 2^31 steps of the grid. With up to 2^24 clients and noise of 1e4 C the sum stays below 2^63."""

MOST_CLIENTS = 2**24

_MARGIN = 1 - 2**-30
"""Norms are clipped to slightly less than C, by more than the rounding errors of float64 in computing one."""


def grid_step(clip_norm: float) -> float:
    """The step of the grid, a power of two."""
    return 2.0 ** (math.frexp(clip_norm)[1] - 1 - GRID_BITS)


def clipped(answer: Params, sent: Params, clip_norm: float) -> dict[str, NDArray[np.float64]]:
    """answer - sent, times min(1, C / its norm); all 0 where a value is not finite. float64, in the order of the names.

    Raises:
        ValueError: names or shapes are not those of what was sent, or numbers are complex.
    """
    return clipped_or_whole(answer, sent, clip_norm)[0]


def clipped_or_whole(answer: Params, sent: Params, clip_norm: float) -> tuple[dict[str, NDArray[np.float64]], bool]:
    """As `clipped`; and whether its norm was within C, so that it is as it was."""
    same = answer.keys() == sent.keys() and all(answer[name].shape == value.shape for name, value in sent.items())
    if not same or any(value.is_complex() for value in answer.values()):
        raise ValueError("an update whose names, shapes or kind of numbers are not those of what was sent")
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite then is looked for below
        found = {name: _numbers(answer[name]) - _numbers(sent[name]) for name in sorted(sent)}
    if not all(np.isfinite(value).all() for value in found.values()):
        return {name: np.zeros_like(value) for name, value in found.items()}, False
    largest = max((float(np.abs(value).max()) for value in found.values() if value.size), default=0.0)
    if largest == 0:
        return found, True
    # over the largest value, since squares of numbers above 1e154 are infinite
    norm = math.sqrt(math.fsum(float(np.square(value / largest).sum()) for value in found.values()))
    most = clip_norm * _MARGIN
    if norm <= most / largest:
        return found, True
    return {name: value / largest * (most / norm) for name, value in found.items()}, False


def on_grid(update: Mapping[str, NDArray[np.float64]], clip_norm: float) -> Integers:
    """A clipped update in steps of the grid, rounded towards 0."""
    step = grid_step(clip_norm)
    return {name: np.trunc(value / step).astype(np.int64) for name, value in update.items()}


def nothing(sent: Params) -> Integers:
    """The update of a client that does not answer."""
    return {name: np.zeros(tuple(sent[name].shape), np.int64) for name in sorted(sent)}


def digest(total: Integers, clip_norm: float) -> bytes:
    """SHA-256 of a sum with its names, shapes and clip norm, by which noise is scaled: with one noise at two scales a sum is no secret.
    Of a sum without noise, so it must never be written down or sent as it is."""
    found = hashlib.sha256(repr((clip_norm, [(name, value.shape) for name, value in total.items()])).encode())
    for value in total.values():
        found.update(np.ascontiguousarray(value, dtype="<i8").data)
    return found.digest()


def _numbers(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()
