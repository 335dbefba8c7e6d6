"""JSON as programs write tables: a list of objects, one object in a line, or columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError
from .names import canonical, listed, shown


@dataclass(frozen=True)
class ParsedTable:
    """A table as it was read.

    Attributes:
        names: of all columns, without the spaces around them.
        values: of the wanted columns that are there, None where an object lacks it.
        about: how it was read, in a few words.
        notes: what the reader has to be told about that.
    """

    names: list[str]
    values: Mapping[str, list[Any]]
    about: str
    notes: tuple[str, ...] = ()


def read_objects(source: str, text: str, wanted: Sequence[str]) -> ParsedTable:
    """The wanted columns of a JSON or JSON-lines file.

    Raises:
        UserError: naming the line or row.
    """
    start = text.lstrip()[:1]
    if start == "[":
        return _by_rows(source, _whole(source, text), wanted, "JSON, a list of objects")
    if start == "{" and (table := _single(text)) is not None:
        return _by_columns(source, table, wanted) or _by_rows(source, [table], wanted, "JSON lines")
    return _by_rows(source, _lines(source, text), wanted, "JSON lines")


def objects_in(source: str, text: str) -> list[dict[str, Any]]:
    """The rows of a JSON or JSON-lines file, whole: with what else they hold.

    Raises:
        UserError: naming the line or row.
    """
    start, single = text.lstrip()[:1], _single(text)
    if start == "{" and single is not None and (table := _by_columns(source, single, [canonical(name) for name in single])) is not None:
        return [dict(zip(table.values, row, strict=True)) for row in zip(*table.values.values(), strict=True)]
    rows = _whole(source, text) if start == "[" else _lines(source, text)
    _reject_others(source, rows)
    return rows


def _reject_others(source: str, rows: list[Any]) -> None:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{source}, row {number}: got {type(row).__name__}, expected an object with the columns as keys.")


def _by_rows(source: str, rows: list[Any], wanted: Sequence[str], about: str) -> ParsedTable:
    _reject_others(source, rows)
    keys = dict.fromkeys(key for row in rows for key in row)
    values = {canonical(key): [row.get(key) for row in rows] for key in keys if canonical(key) in wanted}
    return ParsedTable([canonical(key) for key in keys], values, about)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice in one object")
    return table


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _whole(source: str, text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not JSON ({_short(error)}). Expected a list of objects, or one object per line.") from None


def _single(text: str) -> dict[str, Any] | None:
    """The object that a text is; None where it is none, or more than one."""
    try:
        found, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip()))
    except (ValueError, RecursionError):
        return None
    return found if not text[end:].strip() else None


def _lines(source: str, text: str) -> list[Any]:
    rows = []
    # not splitlines(): it also splits at characters that JSON allows inside a text
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            try:
                rows.append(_DECODER.decode(line))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{source}, line {number}: not JSON ({_short(error)}). Expected one object per line.") from None
    return rows


def _short(error: Exception) -> str:
    return shown(str(error))[1:-1]


_HINT = 'pandas writes a list of objects with to_json(orient="records"), one object per line with lines=True'


def _by_columns(source: str, table: dict[str, Any], wanted: Sequence[str]) -> ParsedTable | None:
    """Columns of an object that holds a list, or an object by row, for each; None for the object of a single row."""
    names = [canonical(name) for name in table]
    values = {name: value for name, value in zip(names, table.values(), strict=True) if name in wanted}
    if values and all(isinstance(value, list) for value in values.values()):
        if len(sizes := {len(value) for value in values.values()}) > 1:
            raise UserError(f"{source}: got columns of {listed(sorted(sizes))} values, expected columns of one length. {_HINT}.")
        return ParsedTable(names, values, "JSON, a list per column")
    if values and all(isinstance(value, dict) for value in values.values()):
        rows = list(next(iter(values.values())))
        for name, value in values.items():
            if value.keys() != set(rows):
                raise UserError(f"{source}, column {shown(name)}: got other rows than in column {shown(next(iter(values)))}. {_HINT}.")
        return ParsedTable(names, {name: [value[row] for row in rows] for name, value in values.items()}, "JSON, an object per column")
    if not values and any(isinstance(value, dict | list) for value in table.values()):
        raise UserError(
            f"{source}: got one object with the keys {listed(table)}, expected a list of objects, one object per line, or columns. {_HINT}."
        )
    return None
