"""A process that computes clients on a device of its own: `python -m fibecfed.device_worker FD`, started by `engine.spawned`.

Over the pipe FD it first gets an order, JSON: `config`, the run's configuration with the device in it, as TOML; `out`, the run's folder;
`fingerprint`, of the data and tensors that it must find; `cache`, bytes of its activation cache; `threads`; and `parent`, the process that
it ends with. Once it has made model, data and method it is a worker like a forked one (`engine.worker`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def main(place: int) -> None:
    """The process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - what loading says, the parent has said before
    from .engine.worker import Up, dies_with, work

    with Connection(place) as pipe:
        try:
            order = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return  # the parent is gone
        if not dies_with(order["parent"]):
            return
        up = Up(pipe)
        try:
            compute = prepared(order)
        except Exception as error:
            up.say({"kind": "unable", "text": f"{type(error).__name__}: {error}"})
            return
        work(compute, order["threads"], up, pipe)


def prepared(order: Mapping[str, Any]) -> Callable[[Any], Any]:
    """What computes a client.

    Raises:
        UserError: as `build.prepare`; or other data or tensors than ordered.
    """
    from .build import prepare
    from .client_manager import fingerprint, runtime_of
    from .config import from_table
    from .core.errors import UserError
    from .core.process import threads
    from .core.streams import without_library_warnings
    from .engine.workers import Carried, Workers

    without_library_warnings()
    with threads(order["threads"]):
        made = prepare(from_table(tomllib.loads(order["config"])))
        if fingerprint(made) != order["fingerprint"]:
            raise UserError("got other data or another model than the run began with; leave the files as they are until it has ended")
        if order["cache"]:
            made.task.keep_activations(order["cache"])
    return Workers(runtime_of(made, Carried(), Path(order["out"])), 1, at_once=True).compute


if __name__ == "__main__":
    main(int(sys.argv[1]))
