"""A worker: a process that makes one run after the other, and keeps the base model between them.

Parent and worker exchange JSON over a pipe. Down: {"config": TOML, "folder": path}. Up, for each job: any number of `round` and `warning`,
then one `done` or `failed`.
"""

from __future__ import annotations

import json
import os
import signal
import tomllib
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from ...core.streams import keep_streams, without_library_warnings


def work(pipe: Connection) -> None:
    """A worker's whole life: jobs from `pipe` until it is closed, or until SIGTERM, which stops a run where it can be resumed."""
    keep_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides what it means
    signal.signal(signal.SIGTERM, _interrupt)
    without_library_warnings()
    try:
        from ...models.kept import KeptWeights

        weights = KeptWeights()
        while True:
            wanted = json.loads(pipe.recv_bytes())
            _say(pipe, do(wanted["config"], Path(wanted["folder"]), lambda message: _say(pipe, message), weights))
    except (KeyboardInterrupt, EOFError, OSError):  # told to stop, or the parent is gone: what was under way can be resumed
        os._exit(0)  # what the libraries would do on the way out takes seconds, and nothing is left to save


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(pipe: Connection, message: dict[str, Any]) -> None:
    from ...core.json_text import to_json

    pipe.send_bytes(to_json(message).encode())


def do(config_toml: str, folder: Path, say: Any, weights: Any) -> dict[str, Any]:
    """Start or resume the run of a folder; the last message about it.

    Args:
        say: called with each message before the last.
        weights: the `KeptWeights` of this process.
    """
    from ... import session
    from ...client_manager import in_process, simulated
    from ...config import from_table, places
    from ...core.errors import Diverged, RunFailed, UserError
    from ...engine.events import Evaluated, RoundDone, Started, Warned

    rounds = [0, 0]

    def listen(event: object) -> None:
        match event:
            case Started():
                rounds[:] = event.completed, event.total_rounds
            case RoundDone():
                rounds[0] += 1
            case Evaluated(pooled_personalised=score) if event.rounds and score is not None:
                say({"kind": "round", "done": rounds[0], "of": rounds[1], "score": event.metric.text(score)})
                return
            case Warned():
                say({"kind": "warning", "text": event.text})
                return
            case _:
                return
        say({"kind": "round", "done": rounds[0], "of": rounds[1]})

    try:
        config = from_table(tomllib.loads(config_toml))
        connect = in_process if config.resources.workers is None else simulated  # the cores are the other runs'
        if (folder / session.CONFIG).is_file():
            summary, _ = session.resume(folder, listen, adapters=False, weights=weights, overrides=places(config), connect=connect)
        else:
            summary = session.start(config, folder, listen, adapters=False, weights=weights, connect=connect)
    except ConnectionError:  # the parent is gone
        raise
    except UserError as error:
        return _failed("refused", str(error))
    except RunFailed as error:
        return _failed("diverged" if isinstance(error, Diverged) else "stopped", str(error))
    except Exception as error:
        where = folder.parent / f"{folder.name}.traceback.txt"  # beside the folder: a run begins in an empty one
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return _failed("stopped", f"{type(error).__name__}: {str(error) or 'no message'}; its traceback is in {where}")
    return {"kind": "done", "summary": summary}


def _failed(why: str, reason: str) -> dict[str, Any]:
    return {"kind": "failed", "why": why, "reason": " ".join(reason.split())}
