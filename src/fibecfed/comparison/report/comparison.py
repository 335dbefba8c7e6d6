"""A comparison's folder: its runs read, whatever is broken or missing said, and the report written beside them."""

from __future__ import annotations

import os
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...core.clock import Network
from ...core.errors import UserError
from ...core.files import COMPARISON, CONFIG, RECORDS, TUNING, write_atomically
from ...core.units import count
from .answers import of_answers
from .compact import to_lines, without_folders
from .conditions import short as shorter
from .html import to_html
from .markdown import to_markdown
from .one import report as one_run
from .overview import all_tables
from .recorded import ASIDE, NO_PLAN, NOWHERE, RUNS, TRIALS, Place, Plan, TuningRow, line_of, read_json, short, told
from .results import ComparisonResults, Run
from .runs import files_of, progress_of, read_files, run_of
from .scores import ComparedMetric
from .standing import Standings, standings
from .tables import to_csv


@dataclass
class _Found:
    """What lies in a folder.

    Attributes:
        plans: folder of a comparison -> its plan, of all that were come across.
        places: folders that should hold a run -> their place in a comparison, where the path tells it.
        closed: folders that cannot be read.
    """

    plans: dict[Path, Plan] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    closed: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_comparison(folder: Path, network: Network | None = None, targets: Mapping[str, float] | None = None) -> ComparisonResults:
    """Every run that can be read in the folder of a comparison, of one run, or of a tree of runs.

    A comparison's runs lie in `runs/<task>/<method>/<seed>` beside its `comparison.toml`, and have these names; its trials are left out.
    Below any other folder every run is taken, those of comparisons as such, the others by their configuration.

    Args:
        network: for the modelled seconds.
        targets: task -> score in place of the computed target, as it is shown: per cent where the metric is a share.

    Raises:
        UserError: no run can be read; it says what is wrong with each.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: got no folder, expected that of a comparison or a run, as given to --out")
    network, runs, files = network or Network(), dict[tuple[str, str, int], Run](), None
    found = _look_through(folder)
    problems = found.problems
    for path, place in found.places.items():
        try:
            read = read_files(path, place, unfinished=path == folder)
            run = run_of(read, network)
        except UserError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(_closed(error, path))
            continue
        if path == folder and (progress := progress_of(folder)):
            problems.append(f"{path}: {progress}: these are its numbers so far; resume with: fibecfed resume {shlex.quote(str(path))}")
        if path == folder:
            files = files_of(read)
        name = (run.task, run.method, run.seed)
        if name in runs:
            problems.append(f"{path}: a second run of {run.method} on {run.task} with seed {run.seed}; only the first is used")
        else:
            runs[name] = run
    if not runs:
        expected = "; expected runs/<task>/<method>/<seed>/records.jsonl, or records.jsonl itself"
        raise UserError(f"{folder}: got no finished run" + ("\n  ".join([":", *problems]) if problems else expected))
    problems += _of_other_metrics(runs)
    tasks = {task for task, _, _ in runs}
    if unknown := sorted(set(targets or ()) - tasks):
        raise UserError(f"--target: got {', '.join(unknown)}, expected a task of this folder: {', '.join(sorted(tasks))}")
    factor = ComparedMetric(next(iter(runs.values())).metric).factor
    for task, score in (targets or {}).items():
        if factor > 1 and not 1 < score <= 100:
            raise UserError(f"--target: got {task}={score:g}, expected a score in per cent, above 1 and at most 100, e.g. {task}=80")
    fixed = {task: score / factor for task, score in (targets or {}).items()}
    problems += _missing(folder, found, list(runs))
    tuning = _read_tuning(found.plans, Path(os.path.abspath(folder)), problems)
    ordered = tuple(runs[name] for name in sorted(runs))
    return ComparisonResults(folder.resolve().name, ordered, network, tuple(problems), tuning, fixed, files)


def _of_other_metrics(runs: dict[tuple[str, str, int], Run]) -> list[str]:
    """Takes out the runs that are scored by another metric than most: their scores can neither be ranked nor averaged together."""
    (most, _), *others = Counter(run.metric.name for run in runs.values()).most_common()
    problems = []
    for metric, number in others:
        out = [name for name, run in runs.items() if run.metric.name == metric]
        where = shorter(sorted({f"{method} on {task}" for task, method, _ in out}))
        problems.append(
            f"left out: {count(number, 'run')} scored by {metric}, where most are scored by {most}: {where}; "
            "set the same evaluation.metric for all, or write a report of each"
        )
        for name in out:
            del runs[name]
    return problems


def read_report(folder: Path, network: Network | None = None, targets: Mapping[str, float] | None = None) -> Standings:
    """`read_comparison`, with what is worked out from it."""
    return standings(read_comparison(folder, network, targets))


def write_files(found: Standings, folder: Path, out: Path | None = None, export: Path | None = None) -> None:
    """Write report.html, report.md and a CSV file a table.

    Args:
        folder: of the comparison.
        out: folder to write to; `folder` itself by default.
        export: file for the comparison in short, as in export.py.

    Raises:
        UserError: a file cannot be written; it names it.
    """
    out = folder if out is None else out
    handed_on = replace(found.comparison, problems=without_folders(found.comparison.problems, folder))
    found = replace(found, comparison=handed_on)
    if found.comparison.files is None:
        tables = [*all_tables(found), *of_answers(found.comparison)]
        files = {"report.html": to_html(found, tables), "report.md": to_markdown(found, tables)}
    else:
        tables = one_run.all_tables(found)
        files = {"report.html": one_run.to_html(found), "report.md": one_run.to_markdown(found)}
    files |= {f"report-{table.name}.csv": to_csv(table) for table in tables}
    path = out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = out / name
            write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another folder for the report with --out") from None
    try:
        if export is not None:
            write_atomically(export, to_lines(found.comparison, folder).encode())
    except OSError as error:
        raise UserError(f"--export: {export} cannot be written ({error.strerror}); name a file in a folder that is there") from None


def write_report(
    folder: Path,
    network: Network | None = None,
    targets: Mapping[str, float] | None = None,
    out: Path | None = None,
    export: Path | None = None,
) -> Standings:
    """`read_report` and `write_files`; what was found."""
    found = read_report(folder, network, targets)
    write_files(found, folder, out, export)
    return found


def _look_through(folder: Path) -> _Found:
    """Every place of a run in a folder."""
    found = _Found()

    def closed(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # a comparison without runs so far
            return
        found.closed.append(Path(os.path.abspath(error.filename)))
        found.problems.append(_closed(error, folder))

    try:
        _plan(folder, found)
        for path in _folders_of_runs(folder, closed):
            found.places[path] = _place(path, found)
    except OSError as error:  # of a single file in it: a folder that cannot be entered
        closed(error)
    return found


def _folders_of_runs(folder: Path, closed: Callable[[OSError], None]) -> Iterator[Path]:
    if (folder / CONFIG).is_file() or (folder / RECORDS).is_file():
        yield folder
        return
    for name, folders, files in os.walk(folder / RUNS if (folder / COMPARISON).is_file() else folder, onerror=closed):
        if CONFIG in files or RECORDS in files or (not folders and _names(Path(name)) is not None):
            folders.clear()  # adapters and checkpoints lie below
            yield Path(name)
        passed = {TRIALS, ASIDE} if COMPARISON in files else set[str]()
        folders[:] = sorted(one for one in folders if one not in passed and not one.startswith("."))  # a dot: half copied


def _closed(error: OSError, where: Path) -> str:
    return f"{error.filename or where}: cannot be read ({error.strerror}); make it readable, and run the report again"


def _place(folder: Path, found: _Found) -> Place:
    """With the names in its path if that is a comparison's."""
    names = _names(folder)
    if names is None:
        return NOWHERE
    root, task, method, seed = names
    return _plan(root, found).place(task, method, seed)


def _names(folder: Path) -> tuple[Path, str, str, int] | None:
    """The comparison's folder, task, method and seed that a path tells; None if it is of none."""
    path = Path(os.path.abspath(folder))  # not resolved: of a link its own name counts
    if len(path.parts) > 4 and (path.parents[3] / COMPARISON).is_file():
        runs, task, method, seed = path.parts[-4:]
        if runs == RUNS and seed.isdecimal():
            return path.parents[3], task, method, int(seed)
    return None


def _plan(folder: Path, found: _Found) -> Plan:
    """The plan of a comparison's folder, read once; `NO_PLAN` without one, or where something is wrong with it."""
    path = Path(os.path.abspath(folder))
    if path not in found.plans:
        found.plans[path] = _read_plan(folder / COMPARISON, found.problems)
    return found.plans[path]


def _read_plan(path: Path, problems: list[str]) -> Plan:
    lost = "so runs of it that are missing cannot be named; restore the file, or remove it: the next `fibecfed compare` writes it again"
    try:
        return Plan.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}); make it readable")
    except ValidationError as error:
        problems.append(f"{path}: {told(error, 'a comparison')}, {lost}")
    except ValueError as error:
        problems.append(f"{path}: not valid TOML ({error}), {lost}")
    return NO_PLAN


def _read_tuning(folders: Iterable[Path], below: Path, problems: list[str]) -> dict[str, TuningRow | None]:
    """Method -> what was tried for it, of all comparisons in `folders`; None where a file does not tell.

    Where two of them found different rates for a method, each is called after its folder too, as it stands below `below`.
    """
    found: dict[str, dict[str, TuningRow | None]] = {}
    for folder in folders:
        for method, row in _rows(folder / TUNING, problems).items():
            found.setdefault(method, {})[os.path.relpath(folder, below)] = row
    merged: dict[str, TuningRow | None] = {}
    for method, rows in found.items():
        first = next(iter(rows.values()))
        same = all(row == first for row in rows.values())
        merged |= {method: first} if same else {f"{method} ({where})": row for where, row in rows.items()}
    return merged


def _rows(path: Path, problems: list[str]) -> dict[str, TuningRow | None]:
    again = "restore the file, or remove it: the next `fibecfed compare` restores it from the trials"
    try:
        table = read_json(path, Any)
    except FileNotFoundError:
        return {}
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}), so the report shows no tuning; make it readable")
        return {TUNING: None}
    except ValueError as error:
        problems.append(f"{path}{line_of(error)}: cannot be read ({error}), so the report shows no tuning; {again}")
        return {TUNING: None}
    if not isinstance(table, dict):
        problems.append(f"{path}: got {short(table)}, expected a table of methods, so the report shows no tuning; {again}")
        return {TUNING: None}
    rows: dict[str, TuningRow | None] = {}
    for method, row in table.items():
        try:
            rows[method] = TuningRow.model_validate(row)
        except ValidationError:
            problems.append(f"{path}: {method}: got {short(row)}, expected what was tried and chosen for it; {again}")
            rows[method] = None
    return rows


def _missing(folder: Path, found: _Found, runs: Sequence[tuple[str, str, int]]) -> list[str]:
    """Which runs of the plan have no folder at all; those that have one but cannot be read are reported elsewhere."""
    begun = {(place.task, place.method, place.seed) for place in found.places.values()} | set(runs)
    plan = _plan(folder, found)
    tasks = plan.tasks or sorted({task for task, _, _ in runs})
    methods = plan.methods or sorted({method for _, method, _ in runs})
    seeds = plan.seeds or sorted({seed for _, _, seed in runs})

    def absent(task: str, method: str, seed: int) -> bool:
        path = Path(os.path.abspath(folder / RUNS / task / method / str(seed)))
        return (task, method, seed) not in begun and not any(one == path or one in path.parents for one in found.closed)

    lines = []
    for method in methods:
        left = {task: [seed for seed in seeds if absent(task, method, seed)] for task in tasks}
        if any(left.values()):
            where = ", ".join(f"{task} (seed {', '.join(map(str, of))})" for task, of in left.items() if of)
            lines.append(f"not run yet: {method} on {where}")
    return lines
