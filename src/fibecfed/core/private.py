"""What a client trains by under privacy for its examples: batches from its own secret, and noise on every sum over examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .types import Params


class PrivateTraining(Protocol):
    """One training of one client. Whatever a method makes of training examples must go through it: each of them is in every sum that
    `noised` is given with at most `clip_norm`, and in as many of them as it was in batches of `epochs`."""

    @property
    def clip_norm(self) -> float:
        """C, L2 norm over all trained tensors to which the gradient of each unit is scaled down."""
        ...

    def one_of(self, sizes: Tensor) -> Tensor:
        """For each unit with so many examples the place of one, drawn anew each time, int64, shape (units,)."""
        ...

    @property
    def noise_norm(self) -> float:
        """z C, standard deviation of the noise on each number of a sum."""
        ...

    def epochs(self, units: int, batch_size: int, epochs: int) -> Sequence[Sequence[Tensor]]:
        """The places of the units of each step, int64, which depend on no data but their number.

        Args:
            units: how many there are.
            batch_size: of a step, on average.
        """
        ...

    def counts(self, bins: Tensor, number: int) -> Tensor:
        """How many units are in each of so many bins, with N(0, z^2) added to each number; each unit is in one of them, or in none: -1.

        Args:
            bins: of each unit, int64, shape (units,).
        """
        ...

    def noised(self, total: Params) -> dict[str, Tensor]:
        """A sum over units with N(0, z^2 C^2) added to each number; each call is one step's."""
        ...
