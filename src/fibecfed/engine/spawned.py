"""Worker processes on devices of their own, which a forked process cannot use: each starts anew, and makes model and data for itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, cast

from .worker import Worker

PROGRAM = "fibecfed.device_worker"
_READY_S = 600.0
"""Within so many seconds a new process must have loaded the model."""


class Spawned(Worker):
    """One of them, from the parent's side; it is under way once it is made, and of use once it is `met`.

    Args:
        order: what it reads first, see `device_worker`.
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        ours, theirs = cast("tuple[Connection, Connection]", Pipe())
        self.pipe, self._sent, self.ended = ours, None, False
        with theirs:  # closed here: else its end would not be heard of
            place = theirs.fileno()
            command = [sys.executable, "-m", PROGRAM, str(place)]
            # A group of its own: Ctrl-C is for the parent, which decides what it means
            self._process = subprocess.Popen(command, pass_fds=[place], stdin=subprocess.DEVNULL, process_group=0)
        self.pid = self._process.pid
        ours.send_bytes(json.dumps({**order, "parent": os.getpid()}).encode())

    def met(self) -> Spawned:
        """Wait until it can be given something.

        Raises:
            Unable: it cannot.
        """
        self._meet(_READY_S)
        return self

    def end(self) -> str:
        """As `Worker.end`."""
        how = super().end()
        self._process.returncode = 0  # it was waited for
        return how


class Launcher:
    """Starts a process for each order, all of them at the first call, and another one for an order whose process has ended.

    Args:
        orders: one for each device.
    """

    def __init__(self, orders: Sequence[Mapping[str, Any]]) -> None:
        self._orders = orders
        self._begun: dict[int, Spawned] = {}
        self._given = set[int]()

    def start(self) -> Worker:
        """The next one that nobody has.

        Raises:
            Unable: it cannot compute.
        """
        for place, order in enumerate(self._orders):
            if place not in self._begun or self._begun[place].ended:
                self._begun[place] = Spawned(order)
                self._given.discard(place)
        place = next(place for place in self._begun if place not in self._given)
        self._given.add(place)
        return self._begun[place].met()

    def close(self) -> None:
        """End those that nobody has."""
        for place, worker in self._begun.items():
            if place not in self._given and not worker.ended:
                worker.end()
