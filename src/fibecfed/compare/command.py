"""`fibecfed compare`: the folder's lock, the workers, and what is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..core.errors import UserError
from ..engine.checkpoint import RunLock
from ..report.comparison import write_report
from ..report.terminal import show
from .conduct import Results, conduct, refuse_foreign, workers, write_down
from .options import Comparison
from .plan import Clock
from .watch import Watch


def compare_in(comparison: Comparison, out: Path, console: Console) -> int:
    """Make what is left of a comparison, and show its results; how many of the runs asked for have none.

    Raises:
        UserError: a folder of another comparison, or one that cannot be written.
        KeyboardInterrupt: stopped; the same command goes on.
    """
    clock = Clock()
    refuse_foreign(comparison, out)
    with _as_user_error(out), RunLock(out):
        write_down(comparison, out)
        runs = len(comparison.methods) * len(comparison.tasks) * len(comparison.seeds)
        _print(console, f"{out}: {runs} runs, {workers(comparison)} at a time")
        with Watch(console, clock, workers(comparison)) as watch:
            results = conduct(comparison, out, watch, clock)
    _show(console, results, out)
    return len(results.failed)


@contextlib.contextmanager
def _as_user_error(out: Path) -> Iterator[None]:
    """A folder that cannot be written, as a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or out
        raise UserError(f"{where}: {error.strerror}; what was done before stays. Mend it, or choose another folder with --out") from error


def _show(console: Console, results: Results, out: Path) -> None:
    try:
        show(write_report(out), console)
    except UserError as error:  # no run that can be read: why is said by the error and below
        _print(console, str(error))
    for one, reason in results.failed.items():
        _print(console, f"{one.name} failed: {reason}")
    of = len(results.done) + len(results.failed)
    _print(console, f"{results.new} made now, {len(results.done)} of {of} runs done; the report and all runs are in {out}")


def _print(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)
