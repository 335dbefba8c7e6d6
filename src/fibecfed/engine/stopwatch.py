"""Seconds that computing costs, whatever else the machine does meanwhile."""

from __future__ import annotations

import time

import torch

from ..core.clock import CLOCKS


class Stopwatch:
    """Started when it is made, by the thread that computes.

    On CPUs it counts CPU seconds, so that a busy machine, a disk or a sleep is no work of a client. With one thread these are
    the seconds of the calling thread: torch computes in it, backward passes too, and whatever other threads of the process do (progress,
    a network) stays out. With several they are those of the process, since torch's threads beside the calling one cannot be told apart;
    one client at a time computes in a process. An accelerator works while the process waits: there it is the wall clock, read when the
    device has finished.

    Attributes:
        kind: one of `CLOCKS`.
    """

    def __init__(self, device: torch.device) -> None:
        self.kind = device.type if device.type in CLOCKS else CLOCKS[0]
        self._device = device
        self._one_thread = torch.get_num_threads() == 1
        self._before = 0.0
        self._start = self._now()

    def seconds(self) -> float:
        """Since it was made, without those that it stood still, and with those added."""
        return self._before + self._now() - self._start

    def pause(self) -> None:
        """Stand still until `go_on`. What an accelerator still computes is not waited for."""
        self._before += self._now(wait=False) - self._start

    def go_on(self) -> None:
        """Go on after a pause."""
        self._start = self._now(wait=False)

    def add(self, seconds: float) -> None:
        """Count seconds that another one measured."""
        self._before += seconds

    def _now(self, *, wait: bool = True) -> float:
        if self.kind == "cpu":
            return time.thread_time() if self._one_thread else time.process_time()
        if wait and self.kind == "cuda":
            torch.cuda.synchronize(self._device)
        elif wait and self.kind == "mps":
            torch.mps.synchronize()
        return time.perf_counter()
