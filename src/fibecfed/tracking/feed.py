"""Feeds the trackers of a run from its records. Whatever a tracker does, the run goes on, to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from ..core.records import EvalRecord, RoundRecord
from ..core.terminal import one_line
from .contract import TrackedRun, Tracker
from .sinks import SINKS
from .values import TrackedScores, Values, of_evaluation, of_round


class Tracking:
    """The trackers of one run, as a context. They are opened at the first record.

    All records of a run are to be given in their order, those of earlier processes too: each tracker gets the steps that it does not have,
    so that a resumed run has every step once, and a tracker that joins late has all of them.

    Args:
        names: of `SINKS`.
        by_client: whether the values of each client are given as well.
        scores: what an evaluation came to.
        warn: gets a sentence about what went wrong.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: TrackedRun,
        *,
        by_client: bool,
        scores: Callable[[EvalRecord], TrackedScores],
        warn: Callable[[str], None],
    ) -> None:
        self._waiting = list(names)
        self._run = run
        self._by_client = by_client
        self._scores = scores
        self._warn = warn
        self._trackers: dict[str, Tracker] = {}
        self._step = 0
        self._values: Values = {}
        self._bytes = 0

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.flush()
        for name in list(self._trackers):
            self._guarded(name, lambda tracker: tracker.close(finished=kind is None))
        self._trackers.clear()

    def add(self, record: RoundRecord | EvalRecord, selected: Callable[[], Mapping[str, Any]] | None = None) -> None:
        """The next record of the run.

        Args:
            selected: what the method has selected by then; left out, what the record says.
        """
        if not self._opened():
            return
        step = record.number + 1 if isinstance(record, RoundRecord) else record.rounds
        if step != self._step:
            self.flush()
        self._step = step
        try:
            if isinstance(record, RoundRecord):
                self._bytes += sum(record.bytes_up.values()) + sum(record.bytes_down.values())
                self._values |= of_round(record, record.server if selected is None else selected(), self._by_client)
                self._values["bytes/total"] = self._bytes
            else:
                self._values |= of_evaluation(record, self._scores(record), self._by_client)
        except Exception as error:
            self._warn(f"tracking: no values of round {step} ({_reason(error)}); the run continues")

    def flush(self) -> None:
        """Give the values of the step so far to the trackers; to be called before a checkpoint that has the step in it."""
        step, values = self._step, {name: float(value) for name, value in self._values.items()}
        self._values.clear()
        for name in list(self._trackers) if values else ():
            self._guarded(name, lambda tracker: tracker.log(step, values) if step > tracker.last else None)

    def _opened(self) -> bool:
        while self._waiting:
            name = self._waiting.pop(0)
            try:
                self._trackers[name] = SINKS[name].start(self._run)
            except Exception as error:
                self._stopped(name, error)
        return bool(self._trackers)

    def _guarded(self, name: str, do: Callable[[Tracker], None]) -> None:
        try:
            do(self._trackers[name])
        except Exception as error:
            del self._trackers[name]
            self._stopped(name, error)

    def _stopped(self, name: str, error: Exception) -> None:
        self._warn(f"tracking: {name} failed ({_reason(error)}); the run continues without it")


def _reason(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")[:300]
