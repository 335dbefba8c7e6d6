"""`fibecfed.run`: the command of the same name, from Python."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from .config import Config, from_table, load
from .core.errors import UserError
from .core.files import CONFIG, expanded, write_new
from .core.method import Method
from .data.frames import as_parquet
from .engine.events import Event
from .methods.catalogue import MethodContext, given
from .progress import Progress
from .session import Listener, reject_used, start
from .trained.run import FinishedRun

TRAIN, TEST = "train.parquet", "test.parquet"
"""What rows that were given as an object are called in the run's folder."""


def run(
    config: Config | Mapping[str, Any] | str | Path,
    out: str | Path,
    on_event: Callable[[Event], None] | None = None,
    *,
    data: Any = None,
    test_data: Any = None,
    method: Method[Any, Any] | Callable[[MethodContext], Method[Any, Any]] | None = None,
) -> FinishedRun:
    """Run a configuration in a new folder.

    Args:
        config: a `Config`, a nested mapping with the tables of a configuration file, or the path of one.
        out: folder to write; it must not exist or be empty.
        on_event: called with every round, evaluation and warning (`fibecfed.engine.events`); None: in a notebook the progress is shown.
        data: the examples of all clients, in place of `data.path`: a pandas DataFrame, a `datasets.Dataset`, a pyarrow Table, a list of
            dicts or a dict of lists, with the columns that the configuration names. They are written to `train.parquet` in `out`, so
            that the run can be resumed.
        test_data: test examples likewise, in place of `data.test_path`.
        method: a method of your own (`fibecfed.core.method`), or a function that makes it from the training options, the number of rounds
            and of clients, and a random stream; in place of the configuration's. docs/own-method.md.

    Returns:
        The scores and models of the run; itself the table of summary.json.

    Raises:
        UserError: a mistake in the configuration, the data or the method, or a folder that is in use; nothing was written.
        RunFailed: the run stopped; `fibecfed.resume(out)` resumes it.
    """
    if isinstance(method, type):
        raise UserError(f"method: got the class {method.__name__}, expected an object of it or a function that makes one; call it first")
    folder = expanded(out)
    with _written(folder, data, test_data) as paths, _shown(on_event) as listener:
        loaded = _loaded(config, paths)
        made = None if method is None else given(method)
        if method is not None:
            name = getattr(method, "__name__", type(method).__name__)
            loaded = from_table(loaded.model_dump() | {"method": {"kind": "custom", "name": name}})
        return FinishedRun(folder, start(loaded, folder, listener, method=made, there=[path.name for path in paths.values()]))


def _loaded(config: Config | Mapping[str, Any] | str | Path, paths: Mapping[str, Path]) -> Config:
    """The configuration, with the data where they were written."""
    places = {key: str(path.absolute()) for key, path in paths.items()}
    if not isinstance(config, Mapping | Config):
        return load(expanded(config), [f"data.{key}={value}" for key, value in places.items()]).config
    if not places:
        return config if isinstance(config, Config) else from_table(config)
    table = dict(config.model_dump() if isinstance(config, Config) else config)
    if not isinstance(table.get("data", {}), Mapping):
        return from_table(table)  # which says what is wrong with it
    table["data"] = {**table.get("data", {}), **places}
    return from_table(table)


@contextlib.contextmanager
def _written(folder: Path, data: Any, test_data: Any) -> Iterator[dict[str, Path]]:
    """Where rows that were given as objects lie, by key of [data]; they are taken back where the run did not begin."""
    rows = {"path": (TRAIN, "data", data), "test_path": (TEST, "test_data", test_data)}
    if data is None and test_data is not None:
        raise UserError("test_data: got it without data, expected both, or `data.test_path` in the configuration; give data as well")
    files = {key: (folder / file, as_parquet(name, value)) for key, (file, name, value) in rows.items() if value is not None}
    if not files:
        yield {}
        return
    reject_used(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for path, content in files.values():
            write_new(path, content)
        yield {key: path for key, (path, _) in files.items()}
    finally:
        if not (folder / CONFIG).exists():
            for path, _ in files.values():
                path.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # the run's lock is left where others may wait for it
                    folder.rmdir()


@contextlib.contextmanager
def _shown(on_event: Callable[[Event], None] | None) -> Iterator[Listener]:
    """What is called with the events: in a notebook, where nobody listens, the progress is shown."""
    if on_event is not None:
        yield on_event
    elif not _in_notebook():
        yield lambda event: None
    else:
        with Progress(Console(highlight=False), "loading model and data") as progress:
            yield progress


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {})
