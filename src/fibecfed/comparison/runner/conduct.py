"""A comparison from its options to its results: trials of rates, then the runs, in one folder, from which it can be resumed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...core.errors import UserError
from ...core.files import COMPARISON, FAILURE, SUMMARY, TUNING, is_aside, write_atomically
from ...core.process import cores
from ...core.units import count
from ...data.instructions import find_files
from ...methods.catalogue import CATALOGUE
from ...models.precision import choose_device
from ..report.recorded import ASIDE, RUNS, TRIALS, RecordedTrial, TuningRow
from . import tuning
from .options import ComparisonOptions
from .plan import Clock, Job, job, look
from .pool import Outcome, Pool, Watcher, record_failure
from .read import differences, read_back, to_toml


@dataclass(frozen=True)
class Results:
    """What a comparison came to.

    Attributes:
        done: summaries of the runs, those finished before included.
        failed: those that stopped, with the reason; the same command tries them again.
        rejected: those whose configuration cannot be run, with the reason; the same command would reject them again.
        unusable: those whose folder cannot be used, with the reason and what to do.
        new: how many runs and trials were made now, the rejected ones left out.
    """

    done: Mapping[Job, dict[str, Any]]
    failed: Mapping[Job, str]
    rejected: Mapping[Job, str]
    unusable: Mapping[Job, str]
    new: int = 0

    def unfinished(self, again: str) -> str | None:
        """How many of the runs asked for have no result, and what to do about each kind; None where all have one.

        Args:
            again: the command line of the comparison.
        """
        parts = []
        if self.rejected:
            way_out = "change what the reasons above name, or remove these methods: the same command would reject them again"
            parts.append(f"{count(len(self.rejected), 'run')} rejected: {way_out}")
        if self.unusable:
            parts.append(f"{count(len(self.unusable), 'run')} whose folder cannot be used: fix what is listed above, then: {again}")
        if self.failed:
            them = "it" if len(self.failed) == 1 else "them"
            parts.append(f"{count(len(self.failed), 'run')} failed, the reasons are above. Try {them} again with: {again}")
        return "\n  ".join(parts) or None


def reject_foreign(comparison: ComparisonOptions, out: Path) -> None:
    """Nothing is written into a folder that is not this comparison's.

    Raises:
        UserError: it holds another comparison, naming the keys that differ, or something else.
    """
    if (out / COMPARISON).is_file():
        if changed := differences(read_back(out / COMPARISON), comparison):
            raise UserError(
                f"{out} holds a comparison with other values of {', '.join(changed)}; set them back, or choose another folder with --out"
            )
    elif out.exists() and not (out.is_dir() and _is_free(out)):
        raise UserError(f"{out} exists and is not a comparison's folder; nothing was changed. Choose another one with --out")


def _is_free(out: Path) -> bool:
    """Whether a folder without a comparison.toml is empty, or holds what a comparison leaves whose comparison.toml was removed."""
    names = {entry.name for entry in out.iterdir() if not is_aside(entry.name)}
    left = {name for name in names if name in ("lock", RUNS, TRIALS, ASIDE, TUNING) or name.startswith("report")}
    return names == left and ("lock" in names or not names)


def write_down(comparison: ComparisonOptions, out: Path) -> None:
    """The comparison into its folder, together with what the folder held before: more methods, tasks or seeds."""
    path = out / COMPARISON
    held = _together(read_back(path), comparison) if path.is_file() else comparison
    write_atomically(path, to_toml(held).encode())


def _together(old: ComparisonOptions, new: ComparisonOptions) -> ComparisonOptions:
    lists = {name: tuple(dict.fromkeys((*getattr(old, name), *getattr(new, name)))) for name in ("methods", "tasks", "seeds")}
    tables = {name: {**getattr(old, name), **getattr(new, name)} for name in ("task", "method")}
    return new.model_copy(update={**lists, **tables})


def conduct(comparison: ComparisonOptions, out: Path, watcher: Watcher, clock: Clock) -> Results:
    """Make every run that is not done yet; skips what is.

    Raises:
        UserError: a folder of another comparison, or a set for instruction tuning that is not here.
        KeyboardInterrupt: stopped; the runs under way can be resumed.
    """
    for task in comparison.tasks:
        _reject_absent(comparison, out, task)
    with Pool(workers(comparison), watcher, clock, gpus=gpus(comparison)) as pool:
        tuned, not_tuned, trials = _tune(comparison, out, pool)
        jobs, failed, rejected = [], {}, {}
        for task in comparison.tasks:
            for method in comparison.methods:
                kind = comparison.kind(method)
                by_tuning = tuning.is_tuned(comparison, method)
                rates_found = tuning.left_open(comparison, method, tuned[kind].rates) if by_tuning and kind in tuned else None
                for seed in comparison.seeds:
                    one = job(comparison, out, task, method, seed, rates_found)
                    if by_tuning and kind in not_tuned:
                        reason, was_rejected = not_tuned[kind]
                        (rejected if was_rejected else failed)[one] = reason
                        record_failure(one, Outcome(None, "not tuned", reason))
                    else:
                        jobs.append(one)
        _take_over(comparison, out, jobs)
        done, unusable, outcomes = pool.make(jobs)
        for one, outcome in outcomes.items():
            if outcome.summary is None:
                (rejected if outcome.why == "refused" else failed)[one] = outcome.reason
    return Results(done, failed, rejected, unusable, trials + _made(outcomes))


def _reject_absent(comparison: ComparisonOptions, out: Path, task: str) -> None:
    """Reject a set that is not here at once, which each of its runs would be rejected for; one of which runs are done may have been."""
    first = job(comparison, out, task, comparison.methods[0], comparison.seeds[0])
    data = first.config.data
    if data.kind == "instruction" and data.path is None and not any(first.folder.parent.parent.glob(f"*/*/{SUMMARY}")):
        find_files(data)


def workers(comparison: ComparisonOptions) -> int:
    """How many processes: as asked; else one per GPU where the runs compute on one, or one per core that this process may use, which runs
    with workers of their own (`base.resources.workers`) share."""
    if comparison.resources.workers is not None:
        return comparison.resources.workers
    if comparison.resources.devices is not None:
        return len(comparison.resources.devices)
    if _devices(comparison) != {"cpu"}:
        return max(1, len(gpus(comparison)))
    tables = [comparison.base, *comparison.task.values(), *comparison.method.values()]
    each = [number for table in tables if isinstance(number := table.get("resources", {}).get("workers"), int)]
    return max(1, cores() // max(each, default=1))


def gpus(comparison: ComparisonOptions) -> list[str]:
    """The GPUs that the workers share in turn, as CUDA_VISIBLE_DEVICES names them; none where the runs use none, or name one themselves.

    Raises:
        UserError: `resources.devices` names one that is not there.
    """
    if (asked := comparison.resources.devices) is not None:
        there, places = _visible(), [int(name.removeprefix("cuda:")) for name in asked]
        if max(places) >= len(there):
            seen = f"the {count(len(there), 'GPU')} that torch sees, numbered from 0" if there else "none, since torch sees no GPU"
            raise UserError(f"resources.devices: got {', '.join(asked)}, expected {seen}; fix it, or remove it")
        return [there[place] for place in places]
    if "cuda" not in (devices := _devices(comparison)) or not devices <= {"cuda", "cpu"}:
        return []
    return _visible()


def _visible() -> list[str]:
    """All GPUs that torch sees, in its order."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return [name.strip() for name in names][: torch.cuda.device_count()]


def _devices(comparison: ComparisonOptions) -> set[str]:
    """What the runs say for `training.device`: "cpu" in place of an "auto" that finds nothing else."""
    tables = [comparison.base, *comparison.task.values(), *comparison.method.values()]
    said = {str(table["training"]["device"]) for table in tables if "device" in table.get("training", {})}
    if "device" not in comparison.base.get("training", {}):
        said.add("auto")
    return {choose_device("auto").type if device == "auto" else device for device in said}


def _made(outcomes: Mapping[Job, Outcome]) -> int:
    return sum(outcome.why != "refused" for outcome in outcomes.values())


def _take_over(comparison: ComparisonOptions, out: Path, jobs: Iterable[Job]) -> None:
    """A run that was made as a trial, with the same configuration to the last key, is not made again."""
    for one in jobs:
        values = {tuning.RATE: one.config.training.learning_rate}
        trial = out / "tuning" / one.task / comparison.kind(one.method) / tuning.label(values)
        begun = one.folder.is_dir() and any(entry.name != FAILURE for entry in one.folder.iterdir())
        if begun or not (trial / SUMMARY).is_file():
            continue
        try:
            same = look(Job(one.task, one.method, one.seed, one.config, trial)).summary is not None
        except UserError:  # another configuration
            same = False
        if same:
            aside = one.folder.with_name(f".{one.folder.name}.tmp")
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(trial, aside)
            (one.folder / FAILURE).unlink(missing_ok=True)
            aside.rename(one.folder)


# ---- tuning


def _tune(comparison: ComparisonOptions, out: Path, pool: Pool) -> tuple[dict[str, TuningRow], dict[str, tuple[str, bool]], int]:
    """Rates of every kind of method, why some have none and whether a trial was rejected, and how many trials were made now."""
    kinds = list(dict.fromkeys(comparison.kind(method) for method in comparison.methods if tuning.is_tuned(comparison, method)))
    held = tuning.read_tuning(out)
    tuned = {kind: row for kind, row in held.items() if row.tried}
    steps = {kind: tuning.grid(comparison.tuning) for kind in kinds if kind not in tuned}
    problems: dict[str, tuple[str, bool]] = {}
    metric = tuning.metric_of(comparison)
    made = 0
    for extension in (False, True):
        jobs = [
            tuning.trial_job(comparison, out, task, kind, step)
            for kind in steps
            for step in steps[kind]
            for task in comparison.tuning.tasks
        ]
        _, unusable, outcomes = pool.make([one for one in jobs if not tuning.has_diverged(one.folder)])
        made += _made(outcomes)
        reasons = unusable | {one: o.reason for one, o in outcomes.items() if o.summary is None and o.why != "diverged"}
        for one, reason in reasons.items():
            rejected = one in outcomes and outcomes[one].why == "refused"
            how = "was rejected" if rejected else "failed"
            problems.setdefault(one.method, (f"no rate was chosen, because the trial {one.name} {how}: {reason}", rejected))
        steps = {kind: tried for kind, tried in steps.items() if kind not in problems}
        if extension or not comparison.tuning.extend:
            break
        for kind, tried in steps.items():
            more = tuning.beyond({step: tuning.worth(_trial(comparison, out, kind, step), metric) for step in tried})
            steps[kind] = tried if more is None else (*tried, more)
    for kind, tried in steps.items():
        tuned[kind] = tuning.choose(CATALOGUE[kind].rate_source, [_trial(comparison, out, kind, step) for step in tried], metric)
    diverged = [kind for kind in kinds if kind in tuned and tuned[kind].chosen is None]
    problems |= dict.fromkeys(diverged, ("no rate was chosen: every trial diverged", False))
    untuned = {method: tuning.fixed(comparison, method) for method in comparison.methods if not tuning.is_tuned(comparison, method)}
    tuning.write_tuning(out, {**held, **untuned, **tuned})  # a kind that is tuned is not overwritten by a method of its name that is not
    return tuned, problems, made


def _trial(comparison: ComparisonOptions, out: Path, kind: str, step: int) -> RecordedTrial:
    """What a step that was tried came to."""
    jobs = [tuning.trial_job(comparison, out, task, kind, step) for task in comparison.tuning.tasks]
    return tuning.trial(step, tuning.values_of(comparison, kind, step), {one.task: tuning.validation_score(one.folder) for one in jobs})
