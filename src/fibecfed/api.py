"""`fibecfed.run`: the command of the same name, from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .config import Config, from_table, load
from .core.files import expanded
from .engine.events import Event
from .session import start


def run(
    config: Config | Mapping[str, Any] | str | Path, out: str | Path, on_event: Callable[[Event], None] = lambda event: None
) -> dict[str, Any]:
    """Run a configuration in a new folder and return what summary.json holds.

    Args:
        config: a `Config`, a nested mapping with the tables of a configuration file, or the path of one.
        out: folder to write; it must not exist or be empty.
        on_event: is told of every round, evaluation and warning (`fibecfed.engine.events`).

    Raises:
        UserError: a mistake in the configuration, or a folder that is in use; nothing was written.
        RunFailed: the run stopped; `fibecfed.resume(out)` resumes it.
    """
    if isinstance(config, Mapping):
        config = from_table(config)
    elif not isinstance(config, Config):
        config = load(expanded(config)).config
    return start(config, expanded(out), on_event)
