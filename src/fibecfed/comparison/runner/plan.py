"""Which runs a comparison takes: configurations, folders, what is done, and the order."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import PLACES, Config, differences, flat, from_table, leaves, load, places, same_name
from ...config.read import read_toml, resolve_paths
from ...core.clock import Network
from ...core.errors import UserError
from ...core.files import CONFIG, RECORDS, SUMMARY
from ...data.instruction_sets import INSTRUCTION_SETS
from ...data.tasks import TASKS
from ...methods.presets import DEPTH_KEYS, KEY, PRESETS
from ..report.recorded import ASIDE, Damaged, Place
from ..report.runs import read_results, read_run
from .options import ComparisonOptions

UNKNOWN_EXAMPLES = 10_000
"""Training examples that a task counts whose number is not limited: how many it has is only known when it is read."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a comparison. Two jobs are equal only if they are the same one.

    Attributes:
        rate: which rate it tries, as its folder is called; None outside of tuning.
        folder: where it writes.
    """

    task: str
    method: str
    seed: int
    config: Config
    folder: Path
    rate: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.task}/{self.method}/" + (f"seed {self.seed}" if self.rate is None else f"rate {self.rate}")


def table_of(comparison: ComparisonOptions, task: str, method: str, seed: int, rates: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A run's configuration as a table: the base, over it the task's, over both the method's, then the rates.

    Without `rates` the learning rate is what the tables say, else the method's default.
    """
    kind = {"kind": "instruction"} if task in INSTRUCTION_SETS else {}
    named = {"data": {"task": task, **kind}} if kind or task in TASKS else {}
    table = _laid_over({}, comparison.base, named, comparison.task.get(task, {}), comparison.method.get(method, {}))
    table.setdefault("method", {})["kind"] = comparison.kind(method)
    table["seed"] = seed
    for name, value in (rates or {}).items():
        above, _, leaf = name.partition(".")
        table.setdefault(above, {})[leaf] = value
    return table


def has_answers(comparison: ComparisonOptions, task: str) -> bool:
    """Whether the examples of a task have answers, and no classes."""
    return table_of(comparison, task, comparison.methods[0], 0).get("data", {}).get("kind") == "instruction"


def primary_metric(comparison: ComparisonOptions) -> str:
    """Name of the metric of all runs: the one that is configured, or what is usual for examples like those of the first task."""
    usual = "nll" if comparison.tasks and comparison.methods and has_answers(comparison, comparison.tasks[0]) else "accuracy"
    return comparison.base.get("evaluation", {}).get("metric") or usual


def _laid_over(*tables: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for table in tables:
        for name, value in table.items():
            both = isinstance(value, Mapping) and isinstance(result.get(name, {}), Mapping)
            result[name] = _laid_over(result.get(name, {}), value) if both else value
    return result


def job(
    comparison: ComparisonOptions,
    out: Path,
    task: str,
    method: str,
    seed: int,
    rates: Mapping[str, float] | None = None,
    rate: str | None = None,
) -> Job:
    """One run; a trial of `rates` in tuning if `rate` names them."""
    config = resolve_paths(from_table(table_of(comparison, task, method, seed, rates)))
    folder = out / "runs" / task / method / str(seed) if rate is None else out / "tuning" / task / method / rate
    return Job(task, method, seed, config, folder, rate)


@dataclass(frozen=True)
class Held:
    """State of a job's folder. No field is set if the job must be started or resumed.

    Attributes:
        summary: of a run that is done, whose records are whole too.
        damaged: what is wrong with a finished run, which is to be made again.
        unusable: why the folder can neither be used nor resumed, and what to do.
        moved: for a run that is done: files of the same name in another place than they had in it, a sentence for each.
    """

    summary: dict[str, Any] | None = None
    damaged: str | None = None
    unusable: str | None = None
    moved: tuple[str, ...] = ()


def look(one: Job) -> Held:
    """What a job's folder holds. What the report could not use does not count as done.

    Raises:
        UserError: it holds a run of another configuration.
    """
    path = one.folder / CONFIG
    if not path.is_file():
        begun = [name for name in (RECORDS, SUMMARY) if (one.folder / name).is_file()]
        return Held(damaged=f"{one.folder}: got no {CONFIG} beside {' and '.join(begun)}") if begun else Held()
    try:
        before = dict(leaves(read_toml(path)))
        held = load(path, places(one.config)).config  # the places of its own may have nothing by now
    except UserError as error:
        return Held(unusable=f"{' '.join(str(error).split())}; move {one.folder} away, and the same command repeats the run")
    new = flat(one.config)
    moved = [name for name in PLACES if before.get(name) != new[name]]
    changed = {name for name in differences(held, one.config) if name != KEY}
    if changed := sorted({*changed, *(name for name in moved if not same_name(name, before.get(name), new[name]))}):
        of_paper = [name for name in changed if name not in DEPTH_KEYS]  # which follow from the others
        values = flat(held)
        paper = bool(of_paper) and all(name in PRESETS["paper"] and values.get(name) == PRESETS["paper"][name] for name in of_paper)
        how = f' (method.{one.method}.{KEY} = "paper", the default of earlier versions)' if paper else ""
        raise UserError(
            f"{path} is a run of another comparison: {', '.join(changed)} differ; set them back{how}, move "
            f"{one.folder} away to have its run made, or choose another folder with --out"
        )
    if not (one.folder / SUMMARY).is_file():
        return Held()
    place = Place(task=one.task, method=one.method, seed=one.seed, kind=one.config.method.model_dump()["kind"])
    try:
        read_run(one.folder, Network(), place)
        summary = read_results(one.folder, place).model_dump(exclude_unset=True)
    except Damaged as error:
        return Held(damaged=error.what)
    except (UserError, OSError) as error:
        return Held(unusable=str(error))
    return Held(summary, moved=tuple(f"{name} was {before[name]}, now {new[name]}" for name in moved))


def move_aside(one: Job) -> Path:
    """Takes a job's folder out of the way and keeps it; where it is now."""
    root = one.folder.parents[3]
    place = root / ASIDE / one.folder.relative_to(root)
    number = 2
    while place.exists():
        place, number = place.with_name(f"{one.folder.name}-{number}"), number + 1
    place.parent.mkdir(parents=True, exist_ok=True)
    one.folder.rename(place)
    return place


# ---- how long


def units(config: Config) -> float:
    """Tokens that a run may train on at most: examples x epochs x rounds x length. Only to compare runs by."""
    from ...build import max_length  # brings torch, which reading a comparison does without

    federation = config.federation
    examples = (config.data.max_train or UNKNOWN_EXAMPLES) * federation.cohort_size(federation.clients) / federation.clients
    return examples * config.training.local_epochs * federation.rounds * max_length(config)


class Clock:
    """Seconds that runs take, from those that are done."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = {}  # (task, method) -> seconds a unit
        self._tasks: dict[str, list[float]] = {}

    def learn(self, one: Job, summary: Mapping[str, Any]) -> None:
        """From the summary of a run that is done."""
        seconds = summary["seconds"] + summary["evaluation"]["seconds"]
        self._seconds.setdefault((one.task, one.method), []).append(seconds / units(one.config))
        self._tasks.setdefault(one.task, []).append(seconds / units(one.config))

    def seconds(self, one: Job) -> float | None:
        """Expected seconds of a run: by its task and method where one is done, else by its task, else by all; None before the first."""
        known = self._seconds.get((one.task, one.method)) or self._tasks.get(one.task) or [s for all_ in self._tasks.values() for s in all_]
        return statistics.mean(known) * units(one.config) if known else None

    def cheapest(self, jobs: Iterable[Job]) -> Job:
        """The one that is expected to take least; the first of equals."""
        return min(jobs, key=lambda one: (self.seconds(one) or 0.0, units(one.config)))
