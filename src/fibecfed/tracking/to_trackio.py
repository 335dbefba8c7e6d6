"""Trackio: a database in RUN/trackio; `TRACKIO_DIR=RUN/trackio trackio show --project fibecfed` shows it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path

from ..core.process import environment
from .contract import TrackedRun

PROJECT = "fibecfed"


def start(run: TrackedRun) -> _Run:
    """A tracker that writes to a database of its own."""
    folder = run.folder.absolute() / "trackio"
    folder.mkdir(exist_ok=True)
    with environment("TRACKIO_DIR", str(folder)):  # it is read at import
        import trackio.sqlite_storage  # pyright: ignore[reportMissingImports]
    _write_to(folder)

    class Local(trackio.Run):
        def _get_username(self) -> None:
            """Would ask the hub for the name behind a token."""

    storage = trackio.sqlite_storage.SQLiteStorage
    known = storage.get_run_records(PROJECT)  # one or none: the database is this run's own
    number = known[0]["id"] if known else None
    last = storage.get_max_step_for_run(PROJECT, run_id=number) if known else None
    made = Local(None, PROJECT, None, name=run.name, run_id=number, config=dict(run.settings), initial_last_step=last)
    return _Run(made, -1 if last is None else last)


def _write_to(folder: Path) -> None:
    """Trackio has one folder for the whole process; here each run has its own."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio" and hasattr(module, "TRACKIO_DIR"):
            module.TRACKIO_DIR = folder  # pyright: ignore[reportAttributeAccessIssue]


class _Run:
    def __init__(self, run: object, last: int) -> None:
        self._run = run
        self.last = last

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)  # pyright: ignore[reportAttributeAccessIssue]

    def close(self, *, finished: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it uploads, which it does not
            self._run.finish()  # pyright: ignore[reportAttributeAccessIssue]
