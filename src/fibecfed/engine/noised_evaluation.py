"""Scores of a run that is private for clients: the shares of right and wrong answers, with noise, charged like a round.

Of every client that is asked its confusion matrix enters a sum as shares of its test examples, which add up to 1: so each client counts the
same, sizes stay unknown, and one client moves the sum by at most 1 in L2 norm, or by the root of 2 where a second matrix is about the
global model. A client that does not answer counts as one of zeros. What is released is made of the noised sum alone: the nearest matrix of
shares that are not negative and add up to 1, in ten-thousandths. Losses and validation parts are not released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.records import EvalRecord
from ..core.statistics import CONFUSION, Sums, Totals
from ..core.types import Round
from ..privacy.clip import Integers, digest, grid_step, on_grid
from ..privacy.ledger import EVALUATION, BudgetSpent, Release
from ..privacy.noise import noised
from .evaluation import Evaluator
from .failures import NEW, Standing
from .pooled import MeanPool

PARTS_OF_ONE = 10_000
_BELOW_ONE = 1 - 2.0**-30
"""Shares add up to slightly less than 1, by more than the rounding errors of float64."""


@dataclass(frozen=True)
class NoisedEvaluator:
    """In the place of an `Evaluator`.

    Attributes:
        exact: asks the clients; its `start` is given, so that they count for the global model too.
        pool: of the run.
    """

    exact: Evaluator
    pool: MeanPool

    def after(self, server: Any, now: Round, rounds: int, standing: Standing = NEW) -> tuple[EvalRecord, Standing]:
        """As `Evaluator.after`; without scores where the budget cannot pay for them, and then nobody is asked.

        Raises:
            RunFailed: nobody answered; nothing was charged.
        """
        if not self.pool.affords_evaluation(now.number, self.exact.clients):
            return self._record(rounds, self._nothing, self._nothing, 0, 0), standing
        got, classes = self.exact.answers(server, now, rounds, standing), self._classes
        models = 1 + self.exact.method.is_personal
        clip_norm = math.sqrt(models)
        total: Integers = {str(model): np.zeros((classes, classes), np.int64) for model in range(models)}
        for client in sorted(got.own):
            answers = [got.own[client].test, *([got.of_global[client].test] if models == 2 else [])]
            for name, value in on_grid({str(n): shares(answer) for n, answer in enumerate(answers)}, clip_norm).items():
                total[name] += value
        release = Release(
            round=now.number,
            phase=EVALUATION,
            numbers=models * classes**2,
            z=self.pool.noise_multiplier,
            clip=clip_norm,
            divisor=len(self.exact.clients),
            sum=digest(total, clip_norm),
            charged=self.exact.clients,
        )
        try:
            key = self.pool.ledger.charge(release)
        except BudgetSpent:  # computed again after an interruption, with other answers than before
            return self._record(rounds, self._nothing, self._nothing, got.bytes_down, got.bytes_up), standing
        found = noised(total, clip_norm, release.z, key)
        step = grid_step(clip_norm) / release.divisor
        tables = [{CONFUSION: _counts(found[name] * step)} for name in sorted(found)]
        return self._record(rounds, tables[0], tables[-1], got.bytes_down, got.bytes_up), standing

    def untrained(self, server: Any) -> EvalRecord:
        """Nothing is asked of the model that nobody has trained."""
        return self._record(0, self._nothing, self._nothing, 0, 0)

    @property
    def _classes(self) -> int:
        return len(self.exact.task.statistics.zero[CONFUSION])

    @property
    def _nothing(self) -> Sums:
        return {CONFUSION: [[0] * self._classes for _ in range(self._classes)]}

    def _record(self, rounds: int, own: Sums, of_global: Sums, bytes_down: int, bytes_up: int) -> EvalRecord:
        return EvalRecord(rounds, {}, own, self._nothing, of_global, self._nothing, bytes_down, bytes_up, 0.0)


def shares(answer: Totals) -> NDArray[np.float64]:
    """A confusion matrix as shares of its examples, of sum 1 at most; zeros where there are none."""
    counts = answer[CONFUSION].double().cpu().numpy()
    return counts / max(1.0, float(counts.sum())) * _BELOW_ONE


def nearest_shares(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The numbers nearest to some that are not negative and add up to 1 (Duchi et al., ICML 2008, figure 1)."""
    ordered = np.sort(values.reshape(-1))[::-1]
    above = (ordered.cumsum() - 1) / np.arange(1, len(ordered) + 1)
    return np.maximum(values - above[(ordered > above).nonzero()[0][-1]], 0)


def _counts(values: NDArray[np.floating[Any]]) -> list[list[int]]:
    rounded: Sequence[Sequence[float]] = np.rint(nearest_shares(values) * PARTS_OF_ONE).tolist()
    return [[int(number) for number in row] for row in rounded]
