"""What a comparison's folder says beside its runs: which were asked for, and what was tuned."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.files import COMPARISON, TUNING
from ...core.json_text import from_json
from ...methods.catalogue import CATALOGUE
from .whole import Place


@dataclass(frozen=True)
class Plan:
    """What comparison.toml asks for; empty where that is not known."""

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    tables: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def place(self, task: str, method: str, seed: int) -> Place:
        """Of a run, with its method's kind and its task's file where the plan or the catalogue knows them."""
        kind = _get(self.tables, "method", method, "method", "kind") or (method if method in CATALOGUE else None)
        path = _get(self.tables, "task", task, "data", "path") or _get(self.tables, "base", "data", "path")
        return Place(task, method, seed, kind if isinstance(kind, str) else None, Path(path).name if isinstance(path, str) else None)


def _get(table: Any, *names: str) -> Any:
    for name in names:
        table = table.get(name) if isinstance(table, Mapping) else None
    return table


def read_plan(folder: Path, problems: list[str]) -> Plan:
    """The plan in a folder, empty without one; what is wrong with it is added to the problems."""
    path = folder / COMPARISON
    lost = "so runs of it that are missing cannot be named; restore the file, or remove it: the next `fibecfed compare` writes it again"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Plan()
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}); make it readable")
        return Plan()
    except ValueError as error:
        problems.append(f"{path}: not valid TOML ({error}), {lost}")
        return Plan()
    lists: dict[str, Any] = {}
    wrong = []
    for name, kind in (("methods", str), ("tasks", str), ("seeds", int)):
        value = table.get(name)
        if isinstance(value, list) and value and all(isinstance(one, kind) for one in value):
            lists[name] = tuple(value)
        else:
            wrong.append(f"{name}: got {_short(value)}")
    if wrong:
        problems.append(f"{path}: {', '.join(wrong)}, expected a list of each, {lost}")
    return Plan(**lists, tables=table)


def read_tuning(folders: Iterable[Path], below: Path, problems: list[str]) -> dict[str, Any]:
    """Method -> what was tried for it, of all comparisons in `folders`; None where a file does not tell.

    Where two of them found different rates for a method, each is called after its folder too, as it stands below `below`.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for method, row in _rows(folder / TUNING, problems).items():
            found.setdefault(method, {})[os.path.relpath(folder, below)] = row
    merged: dict[str, Any] = {}
    for method, rows in found.items():
        same = all(row == next(iter(rows.values())) for row in rows.values())
        merged |= {method: next(iter(rows.values()))} if same else {f"{method} ({where})": row for where, row in rows.items()}
    return merged


def _rows(path: Path, problems: list[str]) -> dict[str, Any]:
    again = "restore the file, or remove it: the next `fibecfed compare` makes it again from the trials"
    try:
        found = from_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}), so the report shows no tuning; make it readable")
        return {TUNING: None}
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        problems.append(f"{path}{line}: cannot be read ({error}), so the report shows no tuning; {again}")
        return {TUNING: None}
    if not isinstance(found, dict):
        problems.append(f"{path}: got {_short(found)}, expected a table of methods, so the report shows no tuning; {again}")
        return {TUNING: None}
    for method, row in found.items():
        if not _is_row(row):
            problems.append(f"{path}: {method}: got {_short(row)}, expected what was tried and chosen for it; {again}")
    return {method: row if _is_row(row) else None for method, row in found.items()}


def _is_row(row: Any) -> bool:
    match row:
        case {"tried": list() as tried, "chosen": int() | float() | None}:
            return all(_is_trial(one) for one in tried)
        case _:
            return False


def _is_trial(one: Any) -> bool:
    match one:
        case {"rate": int() | float(), "score": int() | float() | None}:
            return True
        case _:
            return False


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
