"""How the learning rate changes over the rounds (`training.schedule`, `training.warmup`)."""

from __future__ import annotations

import math

from ..core.types import Round
from .options import TrainingOptions


def factor(options: TrainingOptions, t: int, num_rounds: int) -> float:
    """What the learning rate is multiplied by in round t of T.

    With W = ceil(warmup T) rounds of warm-up it is (t + 1) / (W + 1) for t < W. From then on, with u = (t - W) / (T - W): 1 (constant),
    1 - u (linear), (1 + cos(pi u)) / 2 (cosine). The last round thus still trains. Rounds behind the last count as the last.

    >>> [round(factor(TrainingOptions(schedule="linear", warmup=0.4), t, 5), 2) for t in range(5)]
    [0.33, 0.67, 1.0, 0.67, 0.33]
    """
    t = min(t, num_rounds - 1)
    warm = min(math.ceil(options.warmup * num_rounds - 1e-9), num_rounds - 1)
    if t < warm:
        return (t + 1) / (warm + 1)
    u = (t - warm) / (num_rounds - warm)
    return {"constant": 1.0, "linear": 1 - u, "cosine": (1 + math.cos(math.pi * u)) / 2}[options.schedule]


def in_round(options: TrainingOptions, now: Round) -> TrainingOptions:
    """The training of one round: as configured, with that round's learning rate; the rounds' mean rate where a client trains for itself
    behind the last one: that of the last would hardly move it at the end of a decay, and the peak moves alike clients apart [C]."""
    found = mean_factor(options, now.num_rounds) if now.alone else factor(options, now.index, now.num_rounds)
    return options if found == 1.0 else options.model_copy(update={"learning_rate": found * options.learning_rate})


def mean_factor(options: TrainingOptions, num_rounds: int) -> float:
    """Mean of `factor` over the rounds; exactly 1 where the rate is constant."""
    return math.fsum(factor(options, t, num_rounds) for t in range(num_rounds)) / num_rounds
