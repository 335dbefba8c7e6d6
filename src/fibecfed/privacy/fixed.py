"""Answers as integers that add up modulo 2^32 or 2^64, so that a sum can be computed of which nobody sees the terms.

Integers add up to the same bits in any order, masked or not: the simulator, which adds them as they are, and a federation whose server gets
them masked end in the same model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.types import Params
from .clip import Integers, clipped, on_grid

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Shape (length,), uint32 or uint64. Their sums wrap around, as masks must."""

MOST = 2**31 - 1
"""A sum of so much still has its sign in 32 bits."""

LANES = 2
"""Words behind those of the tensors: the number of examples, and how many numbers were beyond the range."""


class Adding(Protocol):
    """How a client's answer becomes words that are added."""

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """Of the words: it says modulo what they are added."""
        ...

    def length(self, sent: Params) -> int:
        """Words of each answer to these tensors."""
        ...

    def words(self, answer: Params, sent: Params, num_samples: int) -> Words:
        """What a client adds to the sum.

        Args:
            answer: the client's tensors, finite.
            sent: those that it got.
            num_samples: its training examples.
        """
        ...


class NotASum(ValueError):
    """Words that answers of so many clients cannot add up to; the text says why."""


@dataclass(frozen=True)
class WeightedMean:
    """What a sum says.

    Attributes:
        update: mean of the differences to what was sent, weighted by examples; float64, in the order of the names.
        num_samples: examples of all clients in the sum.
        saturated: numbers of single clients that were cut off at the range.
    """

    update: Mapping[str, NDArray[np.float64]]
    num_samples: int
    saturated: int


@dataclass(frozen=True)
class FixedPoint:
    """Updates weighted by the clients' examples, in 32 bits, in each number

        q = round(min(n, W) / W clip(answer - sent, -R, R) s),   s = floor((2^31 - 1) / m) / R

    Attributes:
        range: R, the largest change of a number; what is beyond is cut off and counted.
        clients: m, of a cohort; so many largest answers still fit.
        max_samples: W. A client with more examples weighs as much as one with W.
    """

    range: float
    clients: int
    max_samples: int

    dtype = np.uint32

    @property
    def most(self) -> int:
        """The largest number that one client adds."""
        return MOST // self.clients

    @property
    def step(self) -> float:
        """What one unit of the sum of updates stands for, before it is divided by the examples."""
        return self.range / self.most * self.max_samples

    def length(self, sent: Params) -> int:
        """As `Adding.length`."""
        return sum(value.numel() for value in sent.values()) + LANES

    def words(self, answer: Params, sent: Params, num_samples: int) -> Words:
        """As `Adding.words`."""
        found, weight, at, saturated = np.empty(self.length(sent), np.int32), min(num_samples, self.max_samples), 0, 0
        for name in sorted(sent):
            change = (answer[name].detach().double().cpu() - sent[name].detach().double().cpu()).numpy().reshape(-1)
            saturated += int(np.count_nonzero(np.abs(change) > self.range))
            np.clip(change, -self.range, self.range, out=change)
            found[at : at + change.size] = np.rint(change * (weight / self.step))
            at += change.size
        found[at:] = weight, min(saturated, self.most)
        return found.view(np.uint32)

    def mean(self, total: Words, sent: Params, clients: int) -> WeightedMean:
        """What the sum of the words of so many clients says.

        Raises:
            NotASum: it cannot be one.
        """
        signed, update, at = total.view(np.int32), dict[str, NDArray[np.float64]](), 0
        num_samples, saturated = (int(value) for value in signed[-LANES:])
        if len(total) != self.length(sent):
            raise NotASum(f"a sum of {len(total)} words, expected {self.length(sent)}")
        if not clients <= num_samples <= clients * self.max_samples:
            raise NotASum(f"{num_samples} examples, expected {clients} to {clients * self.max_samples} of {clients} clients")
        if not 0 <= saturated <= clients * self.most:
            raise NotASum(f"{saturated} numbers beyond the range, expected at least 0")
        limit = num_samples * self.range / self.step + clients / 2
        for name in sorted(sent):
            part = signed[at : at + sent[name].numel()].astype(np.float64)
            if part.size and float(np.abs(part).max()) > limit:
                raise NotASum(f"{name} is beyond {limit:.6g} steps, the most that answers within the range add up to")
            update[name] = (part * (self.step / num_samples)).reshape(tuple(sent[name].shape))
            at += part.size
        return WeightedMean(update, num_samples, saturated)


@dataclass(frozen=True)
class ClippedGrid:
    """Clipped updates of equal weight on the grid of `clip`, in 64 bits: the integers of a private run without secure aggregation."""

    clip_norm: float

    dtype = np.uint64

    def length(self, sent: Params) -> int:
        """As `Adding.length`."""
        return sum(value.numel() for value in sent.values())

    def words(self, answer: Params, sent: Params, num_samples: int) -> Words:
        """As `Adding.words`."""
        integers = on_grid(clipped(answer, sent, self.clip_norm), self.clip_norm)
        return np.concatenate([integers[name].reshape(-1) for name in sorted(sent)]).view(np.uint64)

    def integers(self, total: Words, sent: Params) -> Integers:
        """The named sums that words stand for.

        Raises:
            NotASum: it cannot be one.
        """
        if len(total) != self.length(sent):
            raise NotASum(f"a sum of {len(total)} words, expected {self.length(sent)}")
        signed, found, at = total.view(np.int64), Integers(), 0
        for name in sorted(sent):
            size = math.prod(sent[name].shape)
            found[name] = signed[at : at + size].reshape(tuple(sent[name].shape))
            at += size
        return found


def moved(sent: Params, update: Mapping[str, NDArray[np.float64]]) -> dict[str, torch.Tensor]:
    """What was sent plus an update, in the dtypes of what was sent."""
    return {name: (value.double().cpu() + torch.from_numpy(update[name])).to(value) for name, value in sent.items()}
