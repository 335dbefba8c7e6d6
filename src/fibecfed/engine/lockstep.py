"""Trainings of several clients side by side: each stops where it needs the gradient of a batch, and goes on when all have theirs.

A client's part of a round is a plain function that calls others, several deep, before a gradient is asked for. It runs in a thread of its
own, so that it can stop there. No two threads ever run at the same time: what is computed, and in which order, is the same in every run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from ..core.rng import Key
from ..core.task import Tape, Task
from ..core.types import Batch, Params
from ..local.gradients import Gradients, Together, Wanted, alone, joined
from .counting import CountedTask
from .stopwatch import Stopwatch

R = TypeVar("R")


class OwnTask(CountedTask):
    """The task as one of the clients has it: implements `local.gradients.Shared`.

    Attributes:
        watch: the client's stopwatch; it stands still while the client waits.
    """

    def __init__(self, task: Task, together: Together, ask: Callable[[Wanted], Gradients]) -> None:
        super().__init__(task)
        self.watch = Stopwatch(task.device)
        self._together = together
        self._ask = ask
        self._stream: object = None

    keep_ahead = None  # joined batches are padded further than those of one client

    def gradients(self, wanted: Wanted) -> Gradients:
        """Those of one batch, when all clients have asked."""
        self._count(wanted.params, wanted.batch)
        self.watch.pause()
        try:
            return self._ask(Wanted(**{**vars(wanted), "stream": self._stream}))
        finally:
            self.watch.go_on()

    @contextlib.contextmanager
    def training(self, key: Key) -> Iterator[None]:
        """As `Task.training`, without keeping others from the module."""
        before, self._stream = self._stream, self._together.stream(key)
        try:
            yield
        finally:
            self._stream = before

    def losses(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        with self._together.drawing(self._stream):
            return super().losses(params, batch, embeddings)

    def traced(self, params: Params, batch: Batch) -> tuple[Tensor, Tape]:
        with self._together.drawing(self._stream):
            return super().traced(params, batch)


class _Stopped(BaseException):
    """Thrown into a training that is not to go on."""


class _Training(Generic[R]):
    """A training in a thread of its own, which runs only between `resume` and its return."""

    def __init__(self, name: str, task: Task, together: Together, train: Callable[[OwnTask], R]) -> None:
        self.wanted: Wanted | None = None
        self.found: R | None = None
        self.error: BaseException | None = None
        self.task: OwnTask
        self._gradients: Gradients | None = None
        self._stopped = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(task, together, train), name=name, daemon=True)

    @property
    def tokens(self) -> int:
        """Of the batch that it waits for."""
        return 0 if self.wanted is None else self.wanted.batch["input_ids"].numel()

    def resume(self, gradients: Gradients | None = None) -> None:
        """Go on until the next gradient is wanted, or to the end; raises what the training raises."""
        self.wanted, self._gradients = None, gradients
        if gradients is None:
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Leave it where it is."""
        self._stopped = True
        self._go.release()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self, task: Task, together: Together, train: Callable[[OwnTask], R]) -> None:
        torch.get_num_threads()  # a thread has that number from its first asking on
        try:
            self.task = OwnTask(task, together, self._ask)
            self.found = train(self.task)
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            self.error = error
        finally:
            self._back.release()

    def _ask(self, wanted: Wanted) -> Gradients:
        self.wanted = wanted
        self._back.release()
        self._go.acquire()
        if self._stopped:
            raise _Stopped
        assert self._gradients is not None
        return self._gradients


def in_lockstep(task: Task, trainings: Sequence[tuple[str, Callable[[OwnTask], R]]]) -> list[R]:
    """What each of some trainings returns, in their order, with as many passes joined as can be. If one raises, all end.

    The seconds of a joined pass count for the clients in it by the tokens of their batches.

    Args:
        task: one with a method `together`.
        trainings: the name of each, and what it is, of the task as it is to use it.
    """
    together: Together = cast("Any", task).together()
    begun = [_Training(name, task, together, train) for name, train in trainings]
    try:
        for one in begun:
            one.resume()
        while waiting := [one for one in begun if one.wanted is not None]:
            for one, gradients in zip(waiting, _gradients(task, together, waiting), strict=True):
                one.resume(gradients)
    finally:
        for one in begun:
            one.stop()
    return [cast("R", one.found) for one in begun]


def _gradients(task: Task, together: Together, waiting: Sequence[_Training[Any]]) -> list[Gradients]:
    wanted = [cast("Wanted", one.wanted) for one in waiting]
    found: dict[int, Gradients] = {}
    for group in together.groups(wanted):
        watch = Stopwatch(task.device)
        parts = [wanted[place] for place in group]
        if len(group) == 1:
            with together.drawing(parts[0].stream):
                got = [alone(task, parts[0])]
        else:
            got = joined(together, parts)
        seconds, tokens = watch.seconds(), sum(waiting[place].tokens for place in group)
        for place, gradients in zip(group, got, strict=True):
            waiting[place].task.watch.add(seconds * waiting[place].tokens / tokens)
            found[place] = gradients
    return [found[place] for place in range(len(wanted))]
