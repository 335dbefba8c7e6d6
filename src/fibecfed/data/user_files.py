"""Reading labelled text from CSV, TSV, JSON, JSON lines and parquet, with errors that name file, column and row.

No row is left out unless the user asks for it, and no text is printed: values are shown up to `names.LONGEST` characters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from ..core.errors import UserError
from ..core.files import TOO_LONG, kind_of
from .encoding import bytes_of, looks_like, text_of
from .names import canonical, listed, shown
from .objects import ParsedTable, read_objects
from .separated import read_separated
from .values import Columns, RawSplit, raw_split

EXTENSIONS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
SEPARATED = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_KEYS = "`data.text_column`, `data.pair_column`, `data.label_column` or `data.client_column`"
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,14})")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""As a program writes numbers. "007" or "+1" would lose by being read as one, and so would a name of many digits."""


def read_split(path: Path, columns: Columns) -> RawSplit:
    """The labelled texts of one file; `.gz` behind an extension is unpacked.

    Raises:
        UserError: no such file, an extension that is not one of `EXTENSIONS`, a file that cannot be read, is empty or lacks a column,
            a text that is null, blank or not text, a label that is null or a fraction.
    """
    table = read_table(path, columns.names())
    if table.names:
        check_columns(str(path), columns.names(), table.names)
    values = {name: table.values.get(name, []) for name in columns.names()}
    if _is_separated(path):
        values = _typed(columns, values)
    return raw_split(str(path), columns, values, about=table.about, notes=table.notes)


def read_table(path: Path, wanted: Sequence[str]) -> ParsedTable:
    """The columns of one file that are among those wanted, as they are written; `.gz` behind an extension is unpacked.

    Raises:
        UserError: no such file, an extension that is not one of `EXTENSIONS`, or a file that cannot be read or is empty.
    """
    reject_unreadable(path, "correct `data.path` or `data.test_path`")
    extension = extension_of(path)
    source = str(path)
    if extension == ".parquet":
        return _read_parquet(path, wanted)
    text, encoding = text_of(source, bytes_of(path, is_packed(path)))
    if extension in SEPARATED:
        cells = read_separated(source, text, wanted, SEPARATED[extension])
        _reject_twice(source, wanted, cells.header)
        at = {name: cells.header.index(name) for name in wanted if name in cells.header}
        values = {name: [row[column] for row in cells.rows] for name, column in at.items()}
        return ParsedTable(cells.header, values, f"{cells.about}, {encoding}", cells.notes)
    found = read_objects(source, text, wanted)
    _reject_twice(source, wanted, found.names)
    return replace(found, about=f"{found.about}, {encoding}")


def reject_unreadable(path: Path, way_out: str) -> None:
    """Reject what is no file, or not of a kind that is read here.

    Args:
        way_out: what to do where there is no such file.

    Raises:
        UserError: no file, or an extension that is not one of `EXTENSIONS`.
    """
    kind = kind_of(path)
    if kind != "a file":
        what = "does not exist" if kind is None else f"is {kind}"
        if kind not in (None, "a folder", TOO_LONG):
            way_out = "write what it gives to a file first"
        raise UserError(f"{path}: the file {what}. Expected a file with texts ({', '.join(EXTENSIONS)}); {way_out}.")
    if extension_of(path) not in EXTENSIONS:
        wanted_ones = f"expected one of {', '.join(EXTENSIONS)}, followed by .gz if it is compressed"
        way_out = "Convert it, or rename it if it is one of these."
        raise UserError(f"{path}: got a file ending in {path.suffix!r}{looks_like(path)}, {wanted_ones}. {way_out}")


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix.lower() == ".gz"


def extension_of(path: Path) -> str:
    """The extension of a file, without .gz, in small letters."""
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()


def _is_separated(path: Path) -> bool:
    return extension_of(path) in SEPARATED


def _reject_twice(source: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    for name in wanted:
        if present.count(name) > 1:
            raise UserError(f"{source}: got {present.count(name)} columns {shown(name)}, expected one; rename or remove the others.")


def check_columns(source: str, wanted: Sequence[str], present: Sequence[str], keys: str = _KEYS) -> None:
    """Reject a table that lacks a column, or has it twice.

    Args:
        keys: of the configuration that name columns.

    Raises:
        UserError: naming the column, those that are there, and the nearest of them.
    """
    _reject_twice(source, wanted, present)
    for name in wanted:
        if name not in present:
            near = _nearest(name, present)
            hint = f" Did you mean {shown(near)}?" if near else ""
            raise UserError(f"{source}: there is no column {shown(name)}; the file has {listed(present, 20) or 'none'}.{hint} Set {keys}.")


_SYNONYMS = {
    "text": ("sentence", "review", "content", "document", "comment", "tweet", "message", "question", "title", "body"),
    "label": ("class", "category", "target", "sentiment", "labels", "y", "rating"),
}


def _nearest(name: str, present: Sequence[str]) -> str | None:
    """The column that is most likely meant: the same but for case, or one letter or two, or a common name of the same thing."""
    lower = {other.strip().casefold(): other for other in present}
    if name.casefold() in lower:
        return lower[name.casefold()]
    close = difflib.get_close_matches(name.casefold(), lower, n=1, cutoff=0.7)
    meant = [lower[other] for other in _SYNONYMS.get(name, ()) if other in lower]
    return lower[close[0]] if close else next(iter(meant), None)


def _typed(columns: Columns, table: dict[str, list[str]]) -> dict[str, list[Any]]:
    """A CSV has no types: where every text or every label is written as a number (`_NUMBER`), the column is one of numbers."""
    typed: dict[str, list[Any]] = dict(table)
    client = None if columns.client is None else canonical(columns.client)
    for name in (columns.text, columns.pair, columns.label):
        if name is None or (key := canonical(name)) == client:
            continue
        typed[key] = as_numbers(table[key])
    return typed


def as_numbers(values: list[str]) -> list[Any]:
    """The cells of a column; where every one is written as a number (`_NUMBER`) or empty, as numbers."""
    bare = [value.strip() for value in values]
    if not any(bare) or not all(not value or _NUMBER.fullmatch(value) for value in bare):
        return values
    return [(int(value) if _WHOLE.fullmatch(value) else float(value)) if value else "" for value in bare]


def _read_parquet(path: Path, wanted: Sequence[str]) -> ParsedTable:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        actual = file.schema_arrow.names
        names = [canonical(name) for name in actual]
        _reject_twice(str(path), wanted, names)
        places = {name: names.index(name) for name in wanted if name in names}
        table = file.read(columns=[actual[place] for place in places.values()])
        return ParsedTable(names, {name: table.column(actual[place]).to_pylist() for name, place in places.items()}, "parquet")
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {shown(str(error))[1:-1]}. Write it again.") from None
