"""`fibecfed.run`: the command of the same name, from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .build import given
from .config import Config, from_table, load
from .core.errors import UserError
from .core.files import expanded
from .core.method import Method
from .engine.events import Event
from .methods.catalogue import MethodContext
from .session import start


def run(
    config: Config | Mapping[str, Any] | str | Path,
    out: str | Path,
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    method: Method[Any, Any] | Callable[[MethodContext], Method[Any, Any]] | None = None,
) -> dict[str, Any]:
    """Run a configuration in a new folder and return what summary.json holds.

    Args:
        config: a `Config`, a nested mapping with the tables of a configuration file, or the path of one.
        out: folder to write; it must not exist or be empty.
        on_event: called with every round, evaluation and warning (`fibecfed.engine.events`).
        method: a method of your own (`fibecfed.core.method`), or a function that makes it from the training options, the number of rounds
            and of clients, and a random stream; in place of the configuration's. docs/own-method.md.

    Raises:
        UserError: a mistake in the configuration or the method, or a folder that is in use; nothing was written.
        RunFailed: the run stopped; `fibecfed.resume(out)` resumes it.
    """
    if isinstance(config, Mapping):
        config = from_table(config)
    elif not isinstance(config, Config):
        config = load(expanded(config)).config
    if method is None:
        return start(config, expanded(out), on_event)
    if isinstance(method, type):
        raise UserError(f"method: got the class {method.__name__}, expected an object of it or a function that makes one; call it first")
    name = getattr(method, "__name__", type(method).__name__)
    table = config.model_dump() | {"method": {"kind": "custom", "name": name}}
    return start(from_table(table), expanded(out), on_event, method=given(method))
