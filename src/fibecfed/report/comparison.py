"""A comparison's folder: its runs read, whatever is broken or missing said, and the report written beside them."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import write_atomically
from .clock import Network
from .export import to_lines
from .html import to_html
from .markdown import to_markdown
from .overview import all_tables
from .results import Comparison, Run
from .runs import CONFIG, RECORDS, read_run
from .standing import Standings, standings
from .tables import to_csv

PLAN, TUNING, RUNS, TRIALS = "comparison.toml", "tuning.json", "runs", "tuning"


@dataclass(frozen=True)
class _Place:
    """A folder that should hold a run, and its place in the comparison where the path tells."""

    folder: Path
    task: str | None = None
    method: str | None = None
    seed: int | None = None


def read_comparison(folder: Path, network: Network | None = None, targets: Mapping[str, float] | None = None) -> Comparison:
    """Every run that can be read in the folder of a comparison, of one run, or of a tree of runs.

    A comparison's runs lie in `runs/<task>/<method>/<seed>` beside its `comparison.toml`, and have these names; its trials are left out.
    Below any other folder every run is taken, those of comparisons as such, the others by their configuration.

    Args:
        network: for the modelled seconds.
        targets: task -> accuracy in [0, 1] in place of the computed target.

    Raises:
        UserError: no run can be read; it says what is wrong with each.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: got no folder, expected that of a comparison or a run, as given to --out")
    network, runs, problems = network or Network(), dict[tuple[str, str, int], Run](), list[str]()
    places = list(_places(folder))
    for place in places:
        try:
            run = read_run(place.folder, network, task=place.task, method=place.method, seed=place.seed)
        except UserError as error:
            problems.append(str(error))
            continue
        name = (run.task, run.method, run.seed)
        if name in runs:
            problems.append(f"{place.folder}: a second run of {run.method} on {run.task} with seed {run.seed}; only the first is used")
        else:
            runs[name] = run
    if not runs:
        expected = "; expected runs/<task>/<method>/<seed>/records.jsonl, or records.jsonl itself"
        raise UserError(f"{folder}: got no finished run" + ("\n  ".join([":", *problems]) if problems else expected))
    tasks = {task for task, _, _ in runs}
    if unknown := sorted(set(targets or ()) - tasks):
        raise UserError(f"--target: got {', '.join(unknown)}, expected a task of this folder: {', '.join(sorted(tasks))}")
    problems += _missing(folder, places, list(runs))
    tuning = _json(folder / TUNING, problems)
    ordered = tuple(runs[name] for name in sorted(runs))
    return Comparison(folder.resolve().name, ordered, network, tuple(problems), tuning, dict(targets or {}))


def write_report(
    folder: Path,
    network: Network | None = None,
    targets: Mapping[str, float] | None = None,
    out: Path | None = None,
    export: Path | None = None,
) -> Standings:
    """Read a comparison and write report.html, report.md and a CSV file a table; what was found.

    Args:
        network, targets: as for `read_comparison`.
        out: folder to write to; `folder` itself by default.
        export: file for the comparison in short, as in export.py.

    Raises:
        UserError: no run can be read, or the files cannot be written.
    """
    found = standings(read_comparison(folder, network, targets))
    out = folder if out is None else out
    tables = all_tables(found)
    files = {"report.html": to_html(found, tables), "report.md": to_markdown(found, tables)}
    files |= {f"report-{table.name}.csv": to_csv(table) for table in tables}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(out / name, text.encode())
        if export is not None:
            write_atomically(export, to_lines(found.comparison, folder).encode())
    except OSError as error:
        raise UserError(f"{error.filename or out}: the report cannot be written ({error.strerror}); choose a folder with --out") from None
    return found


def _places(folder: Path) -> Iterator[_Place]:
    if (folder / CONFIG).is_file() or (folder / RECORDS).is_file():
        yield _Place(folder)
        return
    for name, folders, files in os.walk(folder / RUNS if (folder / PLAN).is_file() else folder):
        place = _place(Path(name))
        if CONFIG in files or RECORDS in files or (place.task is not None and not folders):
            folders.clear()  # adapters and checkpoints lie below
            yield place
        passed = {TRIALS} if PLAN in files else set[str]()
        folders[:] = sorted(one for one in folders if one not in passed and not one.startswith("."))  # a dot: half copied


def _place(folder: Path) -> _Place:
    """With the names in its path if that is a comparison's."""
    path = Path(os.path.abspath(folder))  # not resolved: of a link its own name counts
    if len(path.parts) > 4 and (path.parents[3] / PLAN).is_file():
        runs, task, method, seed = path.parts[-4:]
        if runs == RUNS and seed.isdecimal():
            return _Place(folder, task, method, int(seed))
    return _Place(folder)


def _missing(folder: Path, places: Sequence[_Place], runs: Sequence[tuple[str, str, int]]) -> list[str]:
    """Which runs of the plan have no folder at all; those that have one but cannot be read are told apart."""
    begun = {(place.task, place.method, place.seed) for place in places} | set(runs)
    plan = _plan(folder)
    tasks = plan.get("tasks") or sorted({task for task, _, _ in runs})
    methods = plan.get("methods") or sorted({method for _, method, _ in runs})
    seeds = plan.get("seeds") or sorted({seed for _, _, seed in runs})
    lines = []
    for method in methods:
        absent = {task: [seed for seed in seeds if (task, method, seed) not in begun] for task in tasks}
        if any(absent.values()):
            where = ", ".join(f"{task} (seed {', '.join(map(str, left))})" for task, left in absent.items() if left)
            lines.append(f"not run yet: {method} on {where}")
    return lines


def _plan(folder: Path) -> dict[str, list[Any]]:
    """Tasks, methods and seeds that comparison.toml names, where it names them."""
    try:
        table = tomllib.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: list(table[name]) for name in ("tasks", "methods", "seeds") if isinstance(table.get(name), list | dict)}


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        problems.append(f"{path}{line}: cannot be read ({error}); the report shows no tuning")
        return {}
    return found if isinstance(found, dict) else {}
