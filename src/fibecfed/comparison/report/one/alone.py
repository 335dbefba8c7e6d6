"""What each client reaches without the others: of a run of `method.kind = "local"` on the same data, where there is one beside a run."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....core.errors import UserError
from ....core.files import COMPARISON, RECORDS, SUMMARY
from ..recorded import RUNS
from ..results import RunFiles
from ..runs import files_of, read_files
from ..standing import ALONE

_SAME = ("partition", "data", "metric", "labels")
"""Of the headers of two runs: what has to be equal for their scores to be of the same examples."""
_SAME_SETTINGS = ("seed", "data", "federation", "model", "training")


@dataclass(frozen=True)
class Alone:
    """A run in which every client trained for itself.

    Attributes:
        name: of its folder.
        personalised, worst_decile: its scores after the last round, NaN and None where there are none.
        clients: each client's own score.
    """

    name: str
    personalised: float
    worst_decile: float | None
    clients: Mapping[str, float | None]


def beside(folder: Path) -> Path:
    """Where a run of the clients alone is looked for, and where the report says to put it."""
    return folder.with_name(f"{folder.name}-{ALONE}") if folder.name else Path(f"{folder.resolve()}-{ALONE}")


def alone_beside(files: RunFiles) -> Alone | None:
    """The clients alone, where a finished run has measured it on the same data with the same settings."""
    for folder in _candidates(files.folder):
        if not ((folder / RECORDS).is_file() and (folder / SUMMARY).is_file()):
            continue
        try:
            found = files_of(read_files(folder))
        except (UserError, OSError):
            continue
        if found.header["configuration"]["method"].get("kind") == ALONE and _of_the_same(found.header, files.header):
            saved = found.summary["saved"]
            score = saved["pooled_personalised"]
            clients = {name: one.get("score") for name, one in found.summary["clients"].items()}
            return Alone(folder.name, math.nan if score is None else score, saved["worst_decile"], clients)
    return None


def _candidates(folder: Path) -> Iterator[Path]:
    yield beside(folder)
    path = Path(os.path.abspath(folder))
    if len(path.parts) > 4 and path.parts[-4] == RUNS and (path.parents[3] / COMPARISON).is_file():
        yield path.parents[1] / ALONE / path.name


def _of_the_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    def settings(header: Mapping[str, Any]) -> list[Any]:
        tables = header["configuration"]
        return [_without_rate(tables.get(name)) for name in _SAME_SETTINGS]

    return all(one.get(name) == other.get(name) for name in _SAME) and settings(one) == settings(other)


def _without_rate(table: Any) -> Any:
    """A comparison tunes the rate of each method, and may give each a schedule."""
    return (
        {name: value for name, value in table.items() if name not in ("learning_rate", "schedule")} if isinstance(table, Mapping) else table
    )
