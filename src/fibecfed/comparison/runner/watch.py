"""A comparison as its user sees it: live lines on a terminal, a line for each run that ends elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ...core.terminal import escaped
from ...core.units import duration
from ...engine.baselines import metric_of
from .plan import Clock, Job
from .pool import Outcome


class Watch:
    """Shows what the workers do; a context, and the `Watcher` of a `Pool`."""

    def __init__(self, console: Console, clock: Clock, workers: int) -> None:
        self._console = console
        self._clock = clock
        self._workers = workers
        self._live: Live | None = None
        self._running: dict[Job, tuple[int, int, float]] = {}  # rounds done, of how many, when it began
        self._scores: dict[Job, str] = {}  # personalised, of those that were evaluated
        self._waiting: Sequence[Job] = ()
        self._ended = 0
        self._trials = False  # whether they are tuning's: the runs come afterwards, and are counted apart

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, one: Job) -> None:
        """A worker has taken it."""
        if self._trials != (one.rate is not None):
            self._trials, self._ended = one.rate is not None, 0
        self._running[one] = (0, 0, time.monotonic())
        self._waiting = tuple(job for job in self._waiting if job is not one)

    def round(self, one: Job, done: int, of: int, score: str | None = None) -> None:
        """So many of its rounds are over; its personalised score at the last evaluation with its unit, once there is one."""
        if score is not None:
            self._scores[one] = score
        self._running[one] = (done, of, self._running[one][2])

    def warned(self, one: Job, text: str) -> None:
        """Something to be said that does not end it."""
        self._line(f"warning: {one.name}: {text}")

    def ended(self, one: Job, outcome: Outcome) -> None:
        """It is done, or failed."""
        began = self._running.pop(one)[2]
        self._scores.pop(one, None)
        self._ended += 1
        if outcome.summary is None:
            # why it was rejected stands in the report below, for each of its kind
            how = "rejected" if outcome.why == "refused" else f"failed: {outcome.reason}"
        else:
            score = metric_of(outcome.summary).text(outcome.summary["scores"]["pooled_personalised"])
            how = f"personalised {score}, {duration(time.monotonic() - began)}"
        self._line(f"{one.name}: {how}")

    def tick(self, waiting: Sequence[Job]) -> None:
        """Called about once a second, with what no worker has taken yet."""
        self._waiting = tuple(waiting)
        if self._live is not None:
            self._live.update(Group(*(Text(escaped(line)) for line in (self._state(), *map(self._one, self._running)))))

    def _state(self) -> str:
        of = self._ended + len(self._running) + len(self._waiting)
        left = self._seconds_left()
        what, still = ("of the trials done", "left for them") if self._trials else ("done", "left")
        return f"{self._ended}/{of} {what}" + ("" if left is None else f", {duration(left)} {still}")

    def _one(self, one: Job) -> str:
        done, of, began = self._running[one]
        rounds = f"round {done}/{of}" if of else "beginning"
        score = f", personalised {self._scores[one]}" if one in self._scores else ""
        return f"  {one.name}: {rounds}{score}, {duration(time.monotonic() - began)}"

    def _seconds_left(self) -> float | None:
        total = 0.0
        for one in (*self._waiting, *self._running):
            expected = self._clock.seconds(one)
            if expected is None:
                return None
            done, of, _ = self._running.get(one, (0, 0, 0.0))
            total += expected * (1 - done / of if of else 1)
        return total / self._workers

    def _line(self, text: str) -> None:
        self._console.print(Text(escaped(f"{text} ({self._state()})")), soft_wrap=True)
