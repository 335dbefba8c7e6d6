"""Weights & Biases, offline: RUN/wandb/offline-run-...; `wandb sync RUN/wandb/offline-run-*` uploads them, as one run."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.files import read_table, write_atomically
from ..core.json_text import to_json
from ..core.process import environment
from .contract import TrackedRun

_no_telemetry = environment("WANDB_ERROR_REPORTING", "false")
_offline = environment("WANDB_MODE", "offline")
"""Its telemetry looks at these variables, and not at the mode that a run was given."""

with environment("WANDB_ERROR_REPORTING", "false"), environment("WANDB_MODE", "offline"):
    import wandb  # pyright: ignore[reportMissingImports]

PROJECT = "fibecfed"
_ABOUT = "fibecfed.json"
_KILLED = "killed-"


class _Offline:
    """Each process writes a part of the run, in a folder of its own under the run's id.

    Where a process is killed, the end of its part is lost, and nothing tells which steps it has. So a file beside the parts names the last
    step of those that were closed, and the part that is open; one that was left open is renamed, and its steps are written again.
    """

    @_no_telemetry
    @_offline
    def __init__(self, run: TrackedRun) -> None:
        self._folder = run.folder.absolute() / "wandb"
        self._folder.mkdir(exist_ok=True)
        about = self._folder / _ABOUT
        known = read_table(about, "remove it, and another run begins there") if about.is_file() else {}
        if known.get("open"):
            with contextlib.suppress(FileNotFoundError):
                (self._folder / known["open"]).rename(self._folder / f"{_KILLED}{known['open']}")
        self._id, self.last = str(known.get("id") or secrets.token_hex(4)), int(known.get("last", -1))
        self._written = self.last
        quiet = {"silent": True, "console": "off", "disable_git": True, "disable_code": True}
        private = ("stats", "meta", "machine_info")  # else it notes what the machine is, where it is, and how busy
        private = {**{f"x_disable_{name}": True for name in private}, "x_save_requirements": False}
        with environment("WANDB_CACHE_DIR", str(self._folder), replace=False):  # for its debug log
            self._run: Any = wandb.init(
                project=PROJECT,
                name=run.name,
                id=self._id,
                dir=str(run.folder.absolute()),
                config=dict(run.settings),
                mode="offline",
                reinit="create_new",
                settings=wandb.Settings(**quiet, **private),  # pyright: ignore[reportArgumentType]
            )
        self._note(Path(self._run.dir).parent.name)

    @_no_telemetry
    @_offline
    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step, commit=True)
        self._written = step

    @_no_telemetry
    @_offline
    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
        self.last = self._written
        self._note(None)

    def _note(self, part: str | None) -> None:
        write_atomically(self._folder / _ABOUT, (to_json({"id": self._id, "last": self.last, "open": part}) + "\n").encode())


def start(run: TrackedRun) -> _Offline:
    """A tracker that writes what can be uploaded later."""
    return _Offline(run)
