"""Early stopping (`evaluation.patience`): a phase ends once consecutive evaluations have brought no better score on the validation parts.

What follows from the records alone is the same after an interruption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..core.metrics import Metric
from ..core.records import EvalRecord
from ..core.types import Round
from ..core.units import count
from .evaluation import better_by_validation


@dataclass(frozen=True)
class Stopped:
    """A phase that ended before its last round.

    Attributes:
        rounds: rounds completed by then, over all phases.
        left_out: rounds of the phase that were not held.
        best: rounds completed at the evaluation that no later one was better than.
        evaluations: how many later ones there were.
    """

    phase: str
    rounds: int
    left_out: int
    best: int
    evaluations: int

    @property
    def text(self) -> str:
        """As a sentence."""
        return (
            f"Phase {self.phase} ended after round {self.rounds}, {count(self.left_out, 'round')} early: no score on the validation parts "
            f"was better than after round {self.best} in {count(self.evaluations, 'evaluation')} (evaluation.patience)."
        )


class EarlyStopping:
    """Which rounds a run holds, as its evaluations come in.

    Attributes:
        rounds: those that are or will be held, in order. It gets shorter while the run is under way, never at or before the round that
            was held last, so that a loop over it continues with what is left.
        stopped: phases that ended early.
    """

    def __init__(self, patience: int | None, rounds: Sequence[Round], metric: Metric, before: Iterable[EvalRecord] = (), /) -> None:
        """Args:
        patience: consecutive evaluations without a better score that end a phase; None: none are ever enough.
        rounds: all that the method asks for.
        before: evaluations up to now, in order.
        """
        self.rounds = list(rounds)
        self.stopped: dict[str, Stopped] = {}
        self._patience = patience
        self._metric = metric
        self._phase: str | None = None
        self._best: EvalRecord | None = None
        self._without = 0
        for record in before:
            self.saw(record)

    def saw(self, record: EvalRecord) -> Stopped | None:
        """Take an evaluation in; what it ended, if it did.

        One in which a client is missing says nothing, and neither does that of the untrained model.
        """
        if self._patience is None or not record.rounds:
            return None
        now = self.rounds[record.rounds - 1]
        if now.phase != self._phase:
            self._phase, self._best, self._without = now.phase, None, 0
        best = better_by_validation(self._best, record, self._metric)
        if record.failures or best is None:
            return None
        self._without = 0 if best is record else self._without + 1
        self._best = best
        left_out = now.num_rounds - now.index - 1
        if self._without < self._patience or not left_out:
            return None
        behind = self.rounds[record.rounds + left_out :]
        self.rounds[record.rounds :] = [replace(one, number=one.number - left_out) for one in behind]
        self.stopped[now.phase] = Stopped(now.phase, record.rounds, left_out, best.rounds, self._without)
        return self.stopped[now.phase]
