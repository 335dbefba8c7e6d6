"""One client under privacy for its examples: its own ledger, and from its own secret the batches and the noise of its trainings.

With batches that are a partition of the client's examples, each example is in one noised sum of every epoch, so that an epoch costs 1/z^2,
in whichever order the examples come (`gaussian.py` composes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.types import ClientId, Params, Round
from .clip import Integers, digest, grid_step
from .ledger import BudgetSpent, Ledger, Release, Terms
from .noise import noised


@dataclass(frozen=True)
class ClientLedgers:
    """Where the clients of this process keep their ledgers.

    Attributes:
        terms: what every client trains by; the units are those of the client that holds most.
        place: of a client the folder of its ledger, and the file of its secret.
        anew: whether one that took part before may begin a ledger.
    """

    terms: Terms
    place: Callable[[ClientId], tuple[Path, Path]]
    anew: bool = False

    def open(self, client: ClientId, units: int, trained: bool) -> Ledger:
        """The ledger of a client, begun if there is none.

        Args:
            units: how many examples it trains on.
            trained: whether it took part before, so that there must be one.

        Raises:
            UserError: it was changed, is another client's or run's, or is missing.
        """
        folder, secret = self.place(client)
        folder.mkdir(parents=True, exist_ok=True)
        terms = replace(self.terms, units=units, per_round=min(self.terms.per_round, units))
        return Ledger(folder, terms, recorded=int(trained and not self.anew), secret=secret)


@dataclass
class OneTraining:
    """What a client trains by in one round; see `core.private.PrivateTraining`.

    Attributes:
        times: noised sums in which a unit is so far, at most.
        steps: noised sums so far.
        numbers: of the largest of them.
    """

    ledger: Ledger
    client: ClientId
    now: Round
    times: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)
    numbers: int = field(default=0, init=False)
    draws: int = field(default=0, init=False)

    def use(self, times: int) -> None:
        """Each unit will be in so many noised sums more; what cannot be paid for is rejected before it is computed.

        Raises:
            BudgetSpent: the training would pass the budget.
        """
        ledger, self.times = self.ledger, self.times + times
        if not ledger.charged(self.now.number) and not ledger.affords([self.client], ledger.terms.noise_multiplier, self.times):
            raise BudgetSpent

    @property
    def clip_norm(self) -> float:
        """C."""
        return self.ledger.terms.clip_norm

    @property
    def noise_norm(self) -> float:
        """z C."""
        return self.ledger.terms.noise_multiplier * self.clip_norm

    def epochs(self, units: int, batch_size: int, epochs: int) -> Sequence[Sequence[Tensor]]:
        """Each epoch a partition of the units into batches, drawn from the client's secret."""
        before = self.times
        self.use(epochs)
        return [self._order(units, before + epoch).split(batch_size) for epoch in range(epochs)]

    def one_of(self, sizes: Tensor) -> Tensor:
        """As `PrivateTraining.one_of`."""
        self.draws += 1
        drawn = self._bits(len(sizes), "one of", self.draws)
        return torch.from_numpy((drawn % sizes.numpy().astype(np.uint64)).astype(np.int64))

    def counts(self, bins: Tensor, number: int) -> Tensor:
        """A histogram with noise: a unit moves it by 1."""
        self.use(1)
        total = torch.bincount(bins[bins >= 0], minlength=number).double() * self.clip_norm
        return self.noised({"counts": total})["counts"].clamp(min=0) / self.clip_norm

    def noised(self, total: Params) -> dict[str, Tensor]:
        """The sum with noise, on a grid; see `noise.noised`. The same sum in the same step gets the same noise."""
        terms, step = self.ledger.terms, grid_step(self.clip_norm)
        integers: Integers = {name: _on_grid(total[name], step) for name in sorted(total)}
        key = self.ledger.key("step", self.now.phase, self.now.number, self.steps, digest(integers, self.clip_norm))
        self.steps += 1
        self.numbers = max(self.numbers, sum(value.size for value in integers.values()))
        found = noised(integers, self.clip_norm, terms.noise_multiplier, key)
        return {name: torch.from_numpy(value * step).to(total[name]) for name, value in found.items()}

    def charge(self, result: bytes) -> None:
        """Write down what the training costs, before anything of its result leaves; the same result is charged once.

        Args:
            result: all that follows from the training.

        Raises:
            BudgetSpent: it would pass the budget; the result must not be used.
        """
        terms = self.ledger.terms
        self.ledger.charge(
            Release(
                round=self.now.number,
                phase=self.now.phase,
                numbers=self.numbers,
                z=terms.noise_multiplier,
                clip=terms.clip_norm,
                divisor=terms.per_round,
                sum=hashlib.sha256(result).digest(),
                charged=[self.client],
                times=self.times,
            )
        )

    def _order(self, units: int, epoch: int) -> Tensor:
        drawn = self._bits(units, "order", epoch)
        return torch.from_numpy(np.argsort(drawn, kind="stable"))

    def _bits(self, number: int, *names: str | int) -> NDArray[np.uint64]:
        key = self.ledger.key("draw", self.now.phase, self.now.number, *names)
        return np.frombuffer(hashlib.shake_256(key).digest(8 * number), dtype="<u8")


def _on_grid(total: Tensor, step: float) -> NDArray[np.int64]:
    return np.rint(total.detach().double().cpu().numpy() / step).astype(np.int64)
