"""A comparison from its options to its results: trials of rates, then the runs, in one folder, from which it can be resumed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...core.errors import UserError
from ...core.files import COMPARISON, FAILURE, SUMMARY, TUNING, is_aside, write_atomically
from ...core.terminal import one_line
from ...methods.catalogue import CATALOGUE
from ...models.precision import choose_device
from ..report.recorded import ASIDE, RUNS, TRIALS
from .options import ComparisonOptions
from .plan import Clock, Job, job, look, move_aside
from .pool import Outcome, Pool, Watcher, record_failure
from .read import differences, read_back, to_toml
from .tuning import (
    RATE,
    Trial,
    Tuned,
    beyond,
    choose,
    fixed,
    grid,
    has_diverged,
    is_tuned,
    label,
    left_open,
    metric_of,
    rates,
    read_tuning,
    validation_score,
    write_tuning,
)

logger = logging.getLogger(__name__)


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
    new: int


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
        UserError: a folder of another comparison.
        KeyboardInterrupt: stopped; the runs under way can be resumed.
    """
    with Pool(workers(comparison), watcher, clock, gpus=gpus(comparison)) as pool:
        maker = _Maker(pool, watcher, clock)
        tuned, not_tuned, trials = _tune(comparison, out, maker)
        jobs, failed, rejected = [], {}, {}
        for task in comparison.tasks:
            for method in comparison.methods:
                kind = comparison.kind(method)
                by_tuning = is_tuned(comparison, method)
                rates_found = left_open(comparison, method, tuned[kind].rates) if by_tuning and kind in tuned else None
                for seed in comparison.seeds:
                    one = job(comparison, out, task, method, seed, rates_found)
                    if by_tuning and kind in not_tuned:
                        reason, was_rejected = not_tuned[kind]
                        (rejected if was_rejected else failed)[one] = reason
                        record_failure(one, Outcome(None, "not tuned", reason))
                    else:
                        jobs.append(one)
        _take_over(comparison, out, jobs)
        done, unusable, outcomes = maker.make(jobs)
        for one, outcome in outcomes.items():
            if outcome.summary is None:
                (rejected if outcome.why == "refused" else failed)[one] = outcome.reason
    return Results(done, failed, rejected, unusable, trials + _made(outcomes))


def workers(comparison: ComparisonOptions) -> int:
    """How many processes: as asked; else one per GPU where the runs compute on one, or one per core that this process may use."""
    if comparison.resources.workers is not None:
        return comparison.resources.workers
    if _devices(comparison) != {"cpu"}:
        return max(1, len(gpus(comparison)))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(comparison: ComparisonOptions) -> list[str]:
    """The GPUs that the workers share in turn, as CUDA_VISIBLE_DEVICES names them; none where the runs use none, or name one themselves."""
    if "cuda" not in (devices := _devices(comparison)) or not devices <= {"cuda", "cpu"}:
        return []
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


@dataclass(frozen=True)
class _Maker:
    """Makes jobs that are not done."""

    pool: Pool
    watcher: Watcher
    clock: Clock

    def make(self, jobs: Sequence[Job]) -> tuple[dict[Job, dict[str, Any]], dict[Job, str], dict[Job, Outcome]]:
        """All summaries, the folders that cannot be used, and how the new runs ended. A finished run that is damaged is made again."""
        done: dict[Job, dict[str, Any]] = {}
        unusable: dict[Job, str] = {}
        said: set[str] = set()
        for one in jobs:
            held = look(one)
            for text in [text for text in held.moved if text not in said]:
                said.add(text)
                self._warn(one, f"{text}; runs that are done are taken to be of the same bytes")
            if held.unusable is not None:
                unusable[one] = held.unusable
            elif held.summary is not None:
                done[one] = held.summary
                self.clock.learn(one, held.summary)
            elif held.damaged is not None:
                self._warn(one, f"{held.damaged}; it is repeated, and the old files are kept in {move_aside(one)}")
        outcomes = self.pool.run([one for one in jobs if one not in done and one not in unusable])
        done |= {one: outcome.summary for one, outcome in outcomes.items() if outcome.summary is not None}
        return done, unusable, outcomes

    def _warn(self, one: Job, text: str) -> None:
        logger.warning("%s: %s", one_line(one.name), one_line(text), extra={"shown": True})
        self.watcher.warned(one, text)


def _take_over(comparison: ComparisonOptions, out: Path, jobs: Iterable[Job]) -> None:
    """A run that was made as a trial, with the same configuration to the last key, is not made again."""
    for one in jobs:
        values = {RATE: one.config.training.learning_rate}
        trial = out / "tuning" / one.task / comparison.kind(one.method) / label(values)
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


def _tune(comparison: ComparisonOptions, out: Path, maker: _Maker) -> tuple[dict[str, Tuned], dict[str, tuple[str, bool]], int]:
    """Rates of every kind of method, why some have none and whether a trial was rejected, and how many trials were made now."""
    kinds = list(dict.fromkeys(comparison.kind(method) for method in comparison.methods if is_tuned(comparison, method)))
    held = read_tuning(out)
    tuned = {kind: row for kind, row in held.items() if row.trials}
    steps = {kind: grid(comparison.tuning) for kind in kinds if kind not in tuned}
    problems: dict[str, tuple[str, bool]] = {}
    metric = metric_of(comparison)
    made = 0
    for extension in (False, True):
        jobs = [_trial(comparison, out, task, kind, step) for kind in steps for step in steps[kind] for task in comparison.tuning.tasks]
        undecided = [one for one in jobs if not has_diverged(one.folder)]
        _, unusable, outcomes = maker.make(undecided)
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
            scores = {trial.step: trial.worth(metric) for trial in _trials(comparison, out, kind, tried)}
            more = beyond(scores)
            steps[kind] = (*tried, more) if more is not None else tried
    for kind, tried in steps.items():
        tuned[kind] = choose(CATALOGUE[kind].rate_source, _trials(comparison, out, kind, tried), metric)
    problems |= {
        kind: ("no rate was chosen: every trial diverged", False) for kind in kinds if kind in tuned and tuned[kind].chosen is None
    }
    untuned = {method: fixed(comparison, method) for method in comparison.methods if not is_tuned(comparison, method)}
    write_tuning(out, {**held, **untuned, **tuned})  # a kind that is tuned is not overwritten by a method of its name that is not
    return tuned, problems, made


def _trial(comparison: ComparisonOptions, out: Path, task: str, kind: str, step: int) -> Job:
    values = _values(comparison, kind, step)
    return job(comparison, out, task, kind, comparison.tuning.seed, values, label(values))


def _trials(comparison: ComparisonOptions, out: Path, kind: str, steps: Sequence[int]) -> tuple[Trial, ...]:
    found = []
    for step in steps:
        folders = {task: _trial(comparison, out, task, kind, step).folder for task in comparison.tuning.tasks}
        scores = {task: validation_score(folder) for task, folder in folders.items()}
        found.append(Trial(step, _values(comparison, kind, step), scores))
    return tuple(found)


def _values(comparison: ComparisonOptions, kind: str, step: int) -> dict[str, float]:
    return left_open(comparison, kind, rates(kind, step, comparison.tuning.factor))
