"""What of a comparison is still to be made: runs, and trials of rates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import UserError
from ...core.files import SUMMARY
from .conduct import reject_foreign
from .options import ComparisonOptions
from .plan import job
from .tuning import grid, has_diverged, is_tuned, read_tuning, trial_job

Counts = Counter[tuple[str, str]]
"""(task, method) -> how many."""


@dataclass(frozen=True)
class Left:
    """How often each method is still to be run on each task.

    Attributes:
        trials: of rates; they run under the name of the method's kind.
        more_trials: those that may follow, one beyond the best rate.
        done: runs that a folder holds already.
    """

    runs: Counts = field(default_factory=Counter[tuple[str, str]])
    trials: Counts = field(default_factory=Counter[tuple[str, str]])
    more_trials: Counts = field(default_factory=Counter[tuple[str, str]])
    done: int = 0


def left(comparison: ComparisonOptions, out: Path) -> Left:
    """What `fibecfed compare` would still make in a folder; all of it where that is another comparison's or none.

    A run whose configuration is that of a trial is taken over from it, and not made again.
    """
    try:
        reject_foreign(comparison, out)
        tuned = {kind for kind, row in read_tuning(out).items() if row.tried}
    except UserError:
        return left(comparison, out / "nowhere")
    tuning, found, done = comparison.tuning, Left(), 0
    to_tune = dict.fromkeys(comparison.kind(method) for method in comparison.methods if is_tuned(comparison, method))
    for kind in [kind for kind in to_tune if kind not in tuned]:
        for task in tuning.tasks:
            for step in grid(tuning):
                folder = trial_job(comparison, out, task, kind, step).folder
                found.trials[task, kind] += not ((folder / SUMMARY).is_file() or has_diverged(folder))
            found.more_trials[task, kind] += tuning.extend
    for task in comparison.tasks:
        for method in comparison.methods:
            taken_over = method in to_tune and task in tuning.tasks
            for seed in comparison.seeds:
                held = (job(comparison, out, task, method, seed).folder / SUMMARY).is_file()
                done += held
                found.runs[task, method] += not held and not (taken_over and seed == tuning.seed)
    return Left(found.runs, found.trials, found.more_trials, done)
