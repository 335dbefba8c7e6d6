"""A clip norm that follows a quantile of the updates' norms, by a count that is part of the noised sum (Andrew et al., NeurIPS 2021).

Each update carries one number more: +beta C where its norm was within C, -beta C where it was clipped, so that one client moves the sum by
at most C sqrt(1 + beta^2) in L2 norm. With noise of z times that on every number the release is charged as one with z: the updates get
noise of z sqrt(1 + beta^2) C, and the number of updates within C, counted as b - 1/2, gets sigma_b = z sqrt(1 + beta^2) / (2 beta), which
is the paper's z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2). After the round

    C <- C exp(-RATE (share within C - quantile))

so that C falls where more updates than wanted are within it, and grows where fewer are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .clip import Integers, grid_step

RATE = 0.2
"""eta; the paper's choice."""

COUNT_NOISE = 1 / 20
"""sigma_b over the clients of a round; the paper's choice."""

REACH = 1000.0
"""C stays within this factor of where it began: clients clip to its upper end before they send."""

LANE = "within the clip norm"
"""The name of the number more; no field of a message is called so."""


def least_clients(noise_multiplier: float) -> int:
    """The smallest cohort whose count can have its noise within a release of this one, at up to twice the noise on updates."""
    return math.ceil(noise_multiplier / (2 * COUNT_NOISE) * math.sqrt(4 / 3))


def lane_weight(noise_multiplier: float, size: int) -> float:
    """beta, with which the count of a cohort gets noise of sigma_b = size / 20.

    Raises:
        ValueError: a smaller cohort than `least_clients`.
    """
    if size < least_clients(noise_multiplier):
        raise ValueError(f"got a cohort of {size}, expected at least {least_clients(noise_multiplier)}")
    return noise_multiplier / math.sqrt((2 * COUNT_NOISE * size) ** 2 - noise_multiplier**2)


def noise_on_updates(noise_multiplier: float, size: int) -> float:
    """z_delta: noise on a number of the sum of updates over C."""
    return noise_multiplier * math.sqrt(1 + lane_weight(noise_multiplier, size) ** 2)


@dataclass
class AdaptiveClip:
    """The clip norm of a run, as it is now.

    Attributes:
        norm: C.
        begun: C of the first round.
        quantile: share of updates that are to be within C.
        weight: beta.
    """

    norm: float
    begun: float
    quantile: float
    weight: float

    @property
    def moved_by(self) -> float:
        """The L2 norm by which one client moves a sum with its count."""
        return self.norm * math.sqrt(1 + self.weight**2)

    def lane(self, within: bool) -> Integers:
        """What an update carries more."""
        steps = math.trunc(self.weight * self.norm / grid_step(self.moved_by))
        return {LANE: np.array([steps if within else -steps], np.int64)}

    def follow(self, noised: Integers, size: int) -> None:
        """Move on, by a noised sum of so many clients."""
        total = float(noised[LANE][0]) * grid_step(self.moved_by) / (self.weight * self.norm)
        share = min(1.0, max(0.0, 0.5 + total / (2 * size)))
        moved = self.norm * math.exp(-RATE * (share - self.quantile))
        self.norm = min(self.begun * REACH, max(self.begun / REACH, moved))
