"""Reading labelled text from CSV, JSON lines and parquet, with errors that name file, column and row."""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ..core.errors import UserError

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,14})")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""As a program writes numbers. "007" or "+1" would lose by being read as one, and so would a name of many digits."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are read."""

    text: str
    pair: str | None
    label: str
    client: str | None

    def names(self) -> tuple[str, ...]:
        """Those that are set, in order, each once."""
        return tuple(dict.fromkeys(name for name in (self.text, self.pair, self.label, self.client) if name is not None))


@dataclass(frozen=True)
class RawSplit:
    """Labelled texts before their labels are numbered. Row i of every list belongs to the same example."""

    source: str
    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[str]
    clients: list[str] | None


def read_split(path: Path, columns: Columns) -> RawSplit:
    """The labelled texts of one file.

    Raises:
        UserError: no such file, an extension that is not one of `EXTENSIONS`, a file that cannot be read, is empty or lacks a column,
            a text that is null, blank or not text, a label that is null or a fraction.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(
            f"{path}: the file {what}. Expected a file with labelled texts ({', '.join(EXTENSIONS)}); fix `data.path` or `data.test_path`."
        )
    extension = path.suffix.lower()
    if extension in (".csv", ".tsv"):
        return raw_split(str(path), columns, _typed(columns, _read_csv(path, columns.names(), "\t" if extension == ".tsv" else ",")))
    if extension in (".jsonl", ".json"):
        return raw_split(str(path), columns, _read_json(path, columns.names()))
    if extension == ".parquet":
        return raw_split(str(path), columns, _read_parquet(path, columns.names()))
    raise UserError(
        f"{path}: got a file ending in {extension!r}, expected one of {', '.join(EXTENSIONS)}. "
        "Convert it, or rename it if it is one of these."
    )


def raw_split(source: str, columns: Columns, table: dict[str, list[Any]]) -> RawSplit:
    """Check columns that were read from anywhere; `source` names the place in errors.

    Raises:
        UserError: see `read_split`.
    """
    labels = table[columns.label]
    if not labels:
        raise UserError(f"{source}: the file holds no rows. Expected at least one labelled text for each class.")
    return RawSplit(
        source=source,
        texts=_texts(source, columns.text, table[columns.text]),
        pairs=None if columns.pair is None else _texts(source, columns.pair, table[columns.pair]),
        labels=_labels(source, columns.label, labels),
        clients=None if columns.client is None else _clients(source, columns.client, table[columns.client]),
    )


def check_columns(source: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Refuse a table that lacks a column, or has it twice.

    Raises:
        UserError: naming the column, those that are there, and the nearest of them.
    """
    for name in wanted:
        if present.count(name) > 1:
            raise UserError(f"{source}: got {present.count(name)} columns {name!r}, expected one; rename or remove the others.")
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{source}: there is no column {name!r}; the file has {', '.join(map(repr, present)) or 'none'}.{hint} "
                "Set `data.text_column`, `data.pair_column`, `data.label_column` or `data.client_column`."
            )


def _read_csv(path: Path, names: Sequence[str], delimiter: str) -> dict[str, list[Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=delimiter), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error}). Save it as UTF-8.") from None
    if not header:
        raise UserError(f"{path}: the file is empty. Expected a first line with the names of the columns, and rows below it.")
    check_columns(str(path), names, header)
    try:
        table = pyarrow.csv.read_csv(
            path,
            # one block as large as the file: a quoted text with line breaks must not straddle two
            read_options=pyarrow.csv.ReadOptions(block_size=min(max(path.stat().st_size, 1 << 20), 1 << 30)),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            # everything as text: a label "007" or "true" and a client "01" stay what they are
            convert_options=pyarrow.csv.ConvertOptions(include_columns=list(names), column_types=dict.fromkeys(names, pa.string())),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}. Texts with commas, quotes or line breaks must stand in quotes.") from None
    return {name: table.column(name).to_pylist() for name in names}


def _typed(columns: Columns, table: dict[str, list[str]]) -> dict[str, list[Any]]:
    """A CSV has no types: where every text or every label is written as a number (`_NUMBER`), the column is one of numbers."""
    typed: dict[str, list[Any]] = dict(table)
    for name in (columns.text, columns.pair, columns.label):
        if name is not None and name != columns.client and table[name] and all(map(_NUMBER.fullmatch, table[name])):
            typed[name] = [int(value) if _WHOLE.fullmatch(value) else float(value) for value in table[name]]
    return typed


def _read_json(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error}). Save it as UTF-8.") from None
    rows: list[Any] = []
    if text.lstrip()[:1] == "[":
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON ({error}). Expected a list of objects, or one object a line.") from None
    else:
        # not splitlines(): it also splits at characters that JSON allows inside a text
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error}). Expected one object a line.") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, row {number}: got {type(row).__name__}, expected an object with the columns as keys.")
    if rows:
        check_columns(str(path), names, list(dict.fromkeys(key for row in rows for key in row)))
    table = {name: [row.get(name) for row in rows] for name in names}
    for name, values in table.items():
        for row, value in enumerate(values):
            if isinstance(value, str) and (half := _SURROGATE.search(value)):
                raise UserError(
                    f"{_where(str(path), name, row)}: got {half[0]!r}, half of a character, expected whole ones. Remove it, or the row."
                )
    return table


def _read_parquet(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        check_columns(str(path), names, file.schema_arrow.names)
        table = file.read(columns=list(names))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {error}. Write it anew.") from None
    return {name: table.column(name).to_pylist() for name in names}


def _where(source: str, column: str, row: int) -> str:
    return f"{source}, column {column!r}, row {row + 1} (the first row of data is 1)"


def _texts(source: str, column: str, values: list[Any]) -> list[str]:
    for row, value in enumerate(values):
        if value is None:
            raise UserError(f"{_where(source, column, row)}: the text is missing (null). Expected text; fill it in or remove the row.")
        if not isinstance(value, str):
            raise UserError(
                f"{_where(source, column, row)}: got {value!r} ({'a number' if isinstance(value, int | float) else type(value).__name__}), "
                f"expected text. Is {column!r} the column of the texts? Set `data.text_column` or `data.pair_column`."
            )
        if not value.strip():
            raise UserError(f"{_where(source, column, row)}: the text is empty. Expected text; fill it in or remove the row.")
    return values


def _labels(source: str, column: str, values: list[Any]) -> list[int] | list[str]:
    labels: list[int | str] = []
    for row, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value)):
            raise UserError(f"{_where(source, column, row)}: the label is missing. Expected a class; fill it in or remove the row.")
        if isinstance(value, float):
            if not value.is_integer():
                raise UserError(
                    f"{_where(source, column, row)}: got the label {value}, expected a string or an integer. "
                    "Is it the column of the classes? Set `data.label_column`, or turn the numbers into classes."
                )
            value = int(value)
        if not isinstance(value, int | str):
            raise UserError(f"{_where(source, column, row)}: got a label of type {type(value).__name__}, expected a string or an integer.")
        labels.append(str(value) if isinstance(value, bool) else value)
    if all(isinstance(label, int) for label in labels):
        return [int(label) for label in labels]
    return [str(label) for label in labels]


def _clients(source: str, column: str, values: list[Any]) -> list[str]:
    clients = []
    for row, value in enumerate(values):
        if value is None or not str(value).strip():
            raise UserError(f"{_where(source, column, row)}: the client is missing. Expected its name; fill it in or remove the row.")
        clients.append(str(value))
    return clients
