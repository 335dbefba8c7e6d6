"""What becomes of the layers that clients keep: a mean of them every few rounds, towards which each client's copy is pulled [C].

The server's mean goes down in every round once there is one: a client without a copy of its own begins with it, and the global model is
whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.types import Params, Round
from ..local.options import LayerOptions

EVERY = 5
"""Rounds between two means with the rule "agreement", where none are given."""


@dataclass(frozen=True)
class Means:
    """When a mean is made, and what clients do with it.

    Attributes:
        every: in every so many rounds and in the last one clients send every layer; 0: never.
        pull: how far a client moves its own copy towards the mean before it trains or predicts, from 0 = not at all to 1 = to it.
        num_rounds: T.
    """

    every: int
    pull: float
    num_rounds: int

    def all_sent(self, now: Round) -> bool:
        """Whether clients send every layer in this round."""
        last = now.index >= self.num_rounds - 1
        return bool(self.every) and now.phase == "tune" and (last or (now.index + 1) % self.every == 0)

    def made_before(self, now: Round) -> bool:
        """Whether there is a mean when this round begins."""
        return bool(self.every) and (now.phase != "tune" or now.index >= min(self.every, self.num_rounds))

    def pulled(self, own: Params, mean: Params) -> Mapping[str, Tensor]:
        """own + pull (mean - own) of every tensor that there is a mean of; the ends are own and mean, bit for bit."""
        if self.pull == 0:
            return own
        return {name: value if name not in mean else self._between(value, mean[name]) for name, value in own.items()}

    def _between(self, own: Tensor, mean: Tensor) -> Tensor:
        return mean if self.pull == 1 else torch.lerp(own, mean, self.pull)


NO_MEANS = Means(0, 0.0, 0)


def marked(server: Any) -> Any:
    """The state after a round in which clients sent every layer: the server has a mean then."""
    return replace(server, has_mean=True)


def means_of(options: LayerOptions, num_rounds: int) -> Means:
    """The part that `method.layers.mean_every` and `.pull` ask for."""
    every = options.mean_every
    if every is None:
        every = EVERY if options.rule == "agreement" else 0
    return Means(every, options.pull, num_rounds)
