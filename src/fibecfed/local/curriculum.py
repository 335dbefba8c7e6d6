"""Which of its examples a client trains on in a round: easy first, more with every round [S]; the pace and its constants are [C]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.rng import Key
from ..core.types import Examples
from .options import CurriculumOptions

_ROUNDING = 1e-9  # far above what products of shares and counts are off by in float64, far below one of any count


def _linear(u: float, beta: float) -> float:
    """beta + (1 - beta) u"""
    return beta + (1.0 - beta) * u


def _sqrt(u: float, beta: float) -> float:
    """beta + (1 - beta) u^0.5"""
    return beta + (1.0 - beta) * math.sqrt(u)


def _quadratic(u: float, beta: float) -> float:
    """beta + (1 - beta) u^2"""
    return beta + (1.0 - beta) * u * u


def _exp(u: float, beta: float) -> float:
    """beta + (1 - beta) (e^(10 u) - 1) / (e^10 - 1)"""
    return beta + (1.0 - beta) * (math.expm1(10.0 * u) / math.expm1(10.0))


def _log(u: float, beta: float) -> float:
    """beta + (1 - beta) (1 + ln(u + (1 - u) e^-10) / 10)"""
    return beta + (1.0 - beta) * (1.0 + math.log(u + (1.0 - u) * math.exp(-10.0)) / 10.0)


def _step(u: float, beta: float) -> float:
    """beta until u = 1, then 1"""
    return 1.0 if u >= 1.0 else beta


def _none(u: float, beta: float) -> float:
    """1: all data in every round"""
    return 1.0


PACES: dict[str, Callable[[float, float], float]] = {
    "linear": _linear,
    "sqrt": _sqrt,
    "quadratic": _quadratic,
    "exp": _exp,
    "log": _log,
    "step": _step,
    "none": _none,
}
"""Fraction of the data at progress u in [0, 1], by name: beta at u = 0 and 1 at u = 1, never falling (none: 1 throughout) [C]."""


def share(options: CurriculumOptions, t: int, num_rounds: int) -> float:
    """The fraction of its data that a client trains on in round t of T, by `options.pace` at u = min(1, t / (alpha T)).

    Args:
        options: pace, beta and alpha.
        t: 0-based round.
        num_rounds: T, rounds of the phase.

    Raises:
        ValueError: a negative round, or no rounds.
    """
    if t < 0 or num_rounds < 1:
        raise ValueError(f"round {t} of {num_rounds}; expected t >= 0 and at least one round")
    u = t / (options.alpha * num_rounds)
    return PACES[options.pace](1.0 if u >= 1.0 - _ROUNDING else u, options.beta)


def ceil_share(share: float, count: int) -> int:
    """ceil(share x count), at least 1 and at most `count`, where rounding of the product does not count: 0.07 of 100 is 7, not 8."""
    if count < 1:
        raise ValueError(f"a fraction of {count} things; expected at least one")
    return max(1, min(count, math.ceil(share * count - _ROUNDING)))


def num_batches_used(share: float, num_batches: int) -> int:
    """q = max(1, ceil(share x num_batches)): how many batches of its order a client trains on."""
    return ceil_share(share, num_batches)


def easy_to_hard(difficulty: Float[Tensor, " examples"]) -> Int[Tensor, " examples"]:
    """Positions from the lowest to the highest difficulty [S], ties by the lower position; int64 on the CPU.

    Raises:
        FloatingPointError: a difficulty that is not finite, which has no place in an order.
    """
    if not torch.isfinite(difficulty).all():
        position = int((~torch.isfinite(difficulty)).nonzero()[0])
        raise FloatingPointError(f"the difficulty of example {position} is {float(difficulty[position])}; expected a finite number")
    return torch.argsort(difficulty.cpu(), stable=True)


def partly_scored(
    difficulty: Float[Tensor, " examples"], known: Bool[Tensor, " examples"], order: Int[Tensor, " examples"]
) -> Int[Tensor, " examples"]:
    """`order` with the examples whose difficulty is known put easy to hard on the places that they hold in it; the others keep theirs.

    >>> partly_scored(torch.tensor([0.9, 0.0, 0.1]), torch.tensor([True, False, True]), torch.tensor([1, 0, 2])).tolist()
    [1, 2, 0]

    Raises:
        FloatingPointError: a known difficulty that is not finite.
    """
    scored, mixed = known.nonzero()[:, 0], order.clone()
    mixed[known[order]] = scored[easy_to_hard(difficulty[scored])]
    return mixed


def control_order(order: Literal["length", "rarity", "random"], examples: Examples, key: Key) -> Int[Tensor, " examples"]:
    """The order of a client's examples that needs no model [C]: the controls beside the Fisher order.

    Args:
        order: "length": fewest tokens first. "rarity": commonest words first (mean of -log unigram frequency). "random": drawn from `key`.
        examples: the client's training part.
        key: stream of the random order; the others draw nothing.

    Raises:
        ValueError: another order.
    """
    if order == "length":
        return easy_to_hard(examples.lengths)
    if order == "rarity":
        return easy_to_hard(examples.rarity)
    if order == "random":
        return key.permutation(len(examples))
    raise ValueError(f"order = {order!r}; expected 'length', 'rarity' or 'random' (the Fisher order is easy_to_hard of the traces)")


def positions_of_round(order: Int[Tensor, " examples"], share: float, batch_size: int) -> Int[Tensor, " used"]:
    """The examples of the first q batches of an order, still in that order; the last batch of the order may be short.

    q = `num_batches_used(share, ceil(examples / batch_size))`.
    """
    return order[: num_batches_used(share, math.ceil(len(order) / batch_size)) * batch_size]
