"""`fibecfed compare`: the folder's lock, the workers, and what is shown."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ...core.errors import UserError
from ...core.files import COMPARISON, disk_errors
from ...core.terminal import escaped
from ...core.units import count, duration
from ...engine.checkpoint import run_lock
from ..report.comparison import read_report, write_files
from ..report.terminal import show
from .conduct import Results, conduct, reject_foreign, workers, write_down
from .options import ComparisonOptions
from .plan import Clock
from .watch import Watch


def compare_in(comparison: ComparisonOptions, out: Path, console: Console) -> Results:
    """Make what is left of a comparison, and show its results.

    Raises:
        UserError: a folder of another comparison, or one that cannot be written.
        RunFailed: it can no longer be written.
        KeyboardInterrupt: stopped; the same command resumes.
    """
    began = time.monotonic()
    clock = Clock()
    reject_foreign(comparison, out)
    with disk_errors(out, COMPARISON, "what was done before stays"), run_lock(out):
        write_down(comparison, out)
        runs = len(comparison.methods) * len(comparison.tasks) * len(comparison.seeds)
        _print(console, f"{out}: {count(runs, 'run')}, {workers(comparison)} at a time")
        with Watch(console, clock, workers(comparison)) as watch:
            results = conduct(comparison, out, watch, clock)
    show_results(console, results, out, time.monotonic() - began)
    return results


def show_results(console: Console, results: Results, out: Path, seconds: float) -> None:
    """The report, which says why runs failed or were rejected, then what it does not know of, and how many there are of each."""
    try:
        found = read_report(out)
        show(found, console)
        write_files(found, out)
    except UserError as error:  # no run that can be read: why is said by the error
        _print(console, str(error))
    for one, reason in results.unusable.items():
        _print(console, f"{one.name}: {reason}")
    kinds = {"failed": results.failed, "rejected": results.rejected, "whose folder cannot be used": results.unusable}
    of = len(results.done) + sum(map(len, kinds.values()))
    left = "".join(f", {len(jobs)} {name}" for name, jobs in kinds.items() if jobs)
    made = f"{results.new} run now in {duration(seconds)}, {len(results.done)} of {count(of, 'run')} done"
    _print(console, f"{made}{left}; the report and all runs are in {out}")


def _print(console: Console, text: str) -> None:
    console.print(Text(escaped(text)), soft_wrap=True)
