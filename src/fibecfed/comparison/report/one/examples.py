"""The easiest and the hardest training examples of a run, by the difficulty that its method recorded."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from ....core.records import RoundRecord
from ....core.units import count
from .. import tables
from ..results import ComparisonResults, RunFiles
from ..tables import Column, Table, number, words
from .section import Section, run_and_files

MOST = 5
"""Examples of each kind that are listed."""


def examples(comparison: ComparisonResults) -> Section:
    """Where they are, and their texts where these were asked for."""
    _, files = run_and_files(comparison)
    found = difficulty(files)
    if not found:
        return Section("examples", "Easiest and hardest examples")
    lines = [f"{count(len(found), 'training example')} of {count(len({client for client, _ in found}), 'client')} were scored."]
    if not files.texts:
        lines.append("Their texts are shown only where all data lie on this machine and you ask for them: fibecfed report --texts.")
    return Section("examples", "Easiest and hardest examples", tuple(lines), (_table(found, files),))


def difficulty(files: RunFiles) -> dict[tuple[str, int], float]:
    """(client, place among its training examples) -> the newest difficulty that the run recorded, from the easiest to the hardest."""
    found: dict[tuple[str, int], float] = {}
    for client, notes in chain.from_iterable(one.notes.items() for one in files.records if isinstance(one, RoundRecord)):
        values = notes.get("difficulty", ())
        for place, value in zip(notes.get("difficulty_of", range(len(values))), values, strict=False):
            found[client, place] = value
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def listed(files: RunFiles) -> list[tuple[str, int]]:
    """The examples that the report names: the hardest ones, then the easiest ones, the outermost first."""
    order = list(difficulty(files))
    most = min(MOST, len(order) // 2)
    return [*reversed(order[len(order) - most :]), *order[:most]]


def _table(found: Mapping[tuple[str, int], float], files: RunFiles) -> Table:
    shown = listed(files)
    half = len(shown) // 2
    kinds = {place: "hardest" if number_ < half else "easiest" for number_, place in enumerate(shown)}
    columns = [
        Column("which", lambda place: words(kinds[place])),
        Column("client", lambda place: words(place[0])),
        Column("training example", lambda place: number(place[1], 0)),
        Column("difficulty", lambda place: number(found[place], 4)),
    ]
    if files.texts:
        columns += [
            Column("class", lambda place: words(files.texts[place][0])),
            Column("text, as the model reads it", lambda place: words(files.texts[place][1])),
        ]
    note = (
        "Difficulty: the trace of the Fisher information of a training example when it was last scored; the curriculum begins with the "
        "easiest ones. Training example: its place among the client's own, counted from 0."
    )
    return tables.table("examples", "Easiest and hardest", note, columns, shown)
