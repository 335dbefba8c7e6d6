"""Reading labelled text from CSV, TSV, JSON, JSON lines and parquet, with errors that name file, column and row.

No row is left out unless the user asks for it, and no text is printed: values are shown up to `names.LONGEST` characters.
"""

from __future__ import annotations

import difflib
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from ..core.errors import UserError
from ..core.files import kind_of
from .names import canonical, listed, shown
from .objects import read_objects
from .separated import read_separated

EXTENSIONS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
_SEPARATED = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,14})")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""As a program writes numbers. "007" or "+1" would lose by being read as one, and so would a name of many digits."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_FIRST_BYTES = {
    b"\x1f\x8b": "data packed with gzip; name it .gz",
    b"PK\x03\x04": "a zip archive or an Excel workbook (.xlsx); save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls); save the sheet as CSV in UTF-8",
    b"PAR1": "a parquet file; name it .parquet",
    b"BZh": "data packed with bzip2; unpack it",
    b"\xfd7zXZ": "data packed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "data packed with zstd; unpack it",
    b"%PDF": "a PDF; save its table as CSV in UTF-8",
    b"SQLite format 3": "a database; write its table to a CSV file",
}


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are read, and what becomes of rows without a text or a label.

    Attributes:
        skip_empty: such rows are left out and counted, instead of refused.
    """

    text: str
    pair: str | None
    label: str
    client: str | None
    skip_empty: bool = False

    def names(self) -> tuple[str, ...]:
        """Those that are set, in order, each once; as names in a file are read."""
        return tuple(dict.fromkeys(canonical(name) for name in (self.text, self.pair, self.label, self.client) if name is not None))


@dataclass(frozen=True)
class RawSplit:
    """Labelled texts before their labels are numbered. Row i of every list belongs to the same example.

    Attributes:
        rows: how many rows the source holds, those that were left out too.
        about: what was read, as a sentence.
        notes: what the user has to be told about it, as sentences.
    """

    source: str
    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[str]
    clients: list[str] | None
    about: str = ""
    notes: tuple[str, ...] = ()


def read_split(path: Path, columns: Columns) -> RawSplit:
    """The labelled texts of one file; `.gz` behind an extension is unpacked.

    Raises:
        UserError: no such file, an extension that is not one of `EXTENSIONS`, a file that cannot be read, is empty or lacks a column,
            a text that is null, blank or not text, a label that is null or a fraction.
    """
    kind = kind_of(path)
    if kind != "a file":
        what = "does not exist" if kind is None else f"is {kind}"
        raise UserError(
            f"{path}: the file {what}. Expected a file with labelled texts ({', '.join(EXTENSIONS)}); correct `data.path` or `data.test_path`"
            + ("." if kind in (None, "a folder") else ", or write its content to a file first.")
        )
    packed = path.suffix.lower() == ".gz"
    extension = (path.with_suffix("") if packed else path).suffix.lower()
    if extension not in EXTENSIONS:
        raise UserError(
            f"{path}: got a file ending in {path.suffix!r}{_known(path)}, expected one of {', '.join(EXTENSIONS)}, or one of them and .gz. "
            "Convert it, or rename it if it is one of these."
        )
    source = str(path)
    if extension == ".parquet":
        names, table, about = _read_parquet(path, columns.names())
        return raw_split(source, columns, table, about=about, names=names)
    text, encoding = _text_of(path, packed)
    if extension in _SEPARATED:
        cells = read_separated(source, text, columns.names(), _SEPARATED[extension])
        check_columns(source, columns.names(), cells.header)
        at = {name: cells.header.index(name) for name in columns.names()}
        table = {name: [row[column] for row in cells.rows] for name, column in at.items()}
        return raw_split(source, columns, _typed(columns, table), about=f"{cells.about}, {encoding}", notes=cells.notes)
    found = read_objects(source, text, columns.names())
    if found.names:
        check_columns(source, columns.names(), found.names)
    table = {name: found.values.get(name, []) for name in columns.names()}
    return raw_split(source, columns, table, about=f"{found.about}, {encoding}")


def raw_split(
    source: str, columns: Columns, table: dict[str, list[Any]], *, about: str = "", notes: Sequence[str] = (), names: Sequence[str] = ()
) -> RawSplit:
    """Check columns that were read from anywhere.

    Args:
        source: names the place in errors.
        table: by the names as in `columns.names()`.
        about: how it was read, in a few words.
        notes: what the user has to be told about that.

    Raises:
        UserError: see `read_split`.
    """
    text, pair, label, client = (None if name is None else canonical(name) for name in (columns.text, columns.pair, columns.label, columns.client))
    assert text is not None and label is not None
    total = len(table[label])
    if not total:
        raise UserError(f"{source}: the file holds no rows. Expected at least one labelled text for each class.")
    empty = {name: [row for row, value in enumerate(table[name]) if _is_missing(value)] for name in (text, pair, label) if name is not None}
    left_out: set[int] = set()
    for name, rows in empty.items():
        if rows and not columns.skip_empty:
            raise UserError(_all_missing(source, name, "label" if name == label else "text", rows, table[name]))
        left_out.update(rows)
    rows = [row for row in range(total) if row not in left_out]
    if not rows:
        raise UserError(f"{source}: none of the {total:,} rows has both a text and a label. Expected at least one for each class.")
    place = _Place(source, rows)
    kept = {name: [values[row] for row in rows] for name, values in table.items()} if left_out else table
    labels, label_notes = _labels(place, label, kept[label])
    clients, client_notes = (None, []) if client is None else _clients(place, client, kept[client])
    told = f"{source}: {total:,} rows{f', {about}' if about else ''}; "
    dropped = f"{len(left_out):,} left out for want of a text or label: rows {listed(row + 1 for row in sorted(left_out))}"
    return RawSplit(
        source=source,
        texts=_texts(place, text, kept[text]),
        pairs=None if pair is None else _texts(place, pair, kept[pair]),
        labels=labels,
        clients=clients,
        about=told + (dropped if left_out else "none left out"),
        notes=(*notes, *([f"{source}: {len(left_out):,} of {total:,} rows are left out (data.skip_empty)"] if left_out else []), *label_notes, *client_notes),
    )


def check_columns(source: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Refuse a table that lacks a column, or has it twice.

    Raises:
        UserError: naming the column, those that are there, and the nearest of them.
    """
    for name in wanted:
        if present.count(name) > 1:
            raise UserError(f"{source}: got {present.count(name)} columns {shown(name)}, expected one; rename or remove the others.")
        if name not in present:
            near = _nearest(name, present)
            hint = f" Did you mean {shown(near)}?" if near else ""
            raise UserError(
                f"{source}: there is no column {shown(name)}; the file has {listed(present, 20) or 'none'}.{hint} "
                "Set `data.text_column`, `data.pair_column`, `data.label_column` or `data.client_column`."
            )


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


def _known(path: Path) -> str:
    """What a file is by its first bytes, for an error."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return ""
    return next((f" ({what})" for first, what in _FIRST_BYTES.items() if start.startswith(first)), "")


def _text_of(path: Path, packed: bool) -> tuple[str, str]:
    """The text of a file, and its encoding.

    Raises:
        UserError: it cannot be read, is no text, or is in an encoding that its bytes do not tell.
    """
    try:
        data = path.read_bytes()
        if packed:
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}). Pack it anew, or rename it if it is not packed.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Change its rights, or copy it.") from None
    for first, what in _FIRST_BYTES.items():
        if data.startswith(first):
            raise UserError(f"{path}: expected text, got {what}.")
    encoding, name = _encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} at position {error.start:,} is not {name}, but perhaps Latin-1 or "
            f"Windows-1252. Save it as UTF-8, or: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: holds a NUL character, which no text has; it may be UTF-16 without its mark. Save it as UTF-8.")
    return text, name


def _encoding(data: bytes) -> tuple[str, str]:
    """By the mark at the beginning; without one a text is UTF-8."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32", "UTF-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", "UTF-16"
    return "utf-8-sig", "UTF-8"


def _typed(columns: Columns, table: dict[str, list[str]]) -> dict[str, list[Any]]:
    """A CSV has no types: where every text or every label is written as a number (`_NUMBER`), the column is one of numbers."""
    typed: dict[str, list[Any]] = dict(table)
    client = None if columns.client is None else canonical(columns.client)
    for name in (columns.text, columns.pair, columns.label):
        if name is None or (key := canonical(name)) == client:
            continue
        bare = [value.strip() for value in table[key]]
        if bare and all(not value or _NUMBER.fullmatch(value) for value in bare) and any(bare):
            typed[key] = [(int(value) if _WHOLE.fullmatch(value) else float(value)) if value else "" for value in bare]
    return typed


def _read_parquet(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, list[Any]], str]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        actual = file.schema_arrow.names
        names = [canonical(name) for name in actual]
        check_columns(str(path), wanted, names)
        places = {name: names.index(name) for name in wanted}
        table = file.read(columns=[actual[place] for place in places.values()])
        return names, {name: table.column(actual[place]).to_pylist() for name, place in places.items()}, "parquet"
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {shown(str(error))[1:-1]}. Write it anew.") from None


# ---- values


@dataclass(frozen=True)
class _Place:
    """Where values come from, for errors: the source, and the 0-based row of each value in it."""

    source: str
    rows: Sequence[int]

    def __call__(self, column: str, position: int) -> str:
        return _where(self.source, column, self.rows[position])


def _where(source: str, column: str, row: int) -> str:
    return f"{source}, column {shown(column)}, row {row + 1} (the first row of data is 1)"


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not canonical(value)) or (isinstance(value, float) and math.isnan(value))


def _all_missing(source: str, column: str, what: str, rows: list[int], values: list[Any]) -> str:
    """Every row without a value at once, so that they can be mended in one go."""
    first = values[rows[0]]
    how = "missing (null)" if first is None else "missing (NaN)" if isinstance(first, float) else "empty" if what == "text" else "missing"
    rest = "" if len(rows) == 1 else f", and so are {len(rows) - 1:,} of the other {len(values) - 1:,} ({listed((row + 1 for row in rows[1:]), 8)})"
    wanted = "text" if what == "text" else "a class"
    return f"{_where(source, column, rows[0])}: the {what} is {how}{rest}. Expected {wanted}; fill it in, remove the row, or set data.skip_empty = true."


def _texts(where: _Place, column: str, values: list[Any]) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            kind = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
            raise UserError(
                f"{where(column, row)}: got {shown(value)} ({kind}), expected text. "
                f"Is {shown(column)} the column of the texts? Set `data.text_column` or `data.pair_column`."
            )
        _refuse_halves(where, column, row, value)
    return values


def _refuse_halves(where: _Place, column: str, row: int, value: str) -> None:
    if not value.isascii() and (half := _SURROGATE.search(value)):
        raise UserError(f"{where(column, row)}: got {half[0]!r}, half of a character, expected whole ones. Remove it, or the row.")


def _labels(where: _Place, column: str, values: list[Any]) -> tuple[list[int] | list[str], list[str]]:
    """The labels, and what has to be said of them."""
    labels: list[int | str] = []
    for row, value in enumerate(values):
        if isinstance(value, float):
            if not value.is_integer():
                raise UserError(
                    f"{where(column, row)}: got the label {value}, expected text or an integer. "
                    "Is it the column of the classes? Set `data.label_column`, or turn the numbers into classes."
                )
            value = int(value)
        if not isinstance(value, int | str):
            raise UserError(f"{where(column, row)}: got a label of type {type(value).__name__}, expected text or an integer.")
        if isinstance(value, str):
            _refuse_halves(where, column, row, value)
        labels.append(str(value) if isinstance(value, bool) else value)
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return numbers, []
    named = [str(label) for label in labels]
    found, notes = _made_alike(where.source, column, named)
    if numbers:
        notes.append(f"{where.source}, column {shown(column)}: {len(numbers):,} of {len(labels):,} labels are numbers, which are read as text")
    return found, notes


def _clients(where: _Place, column: str, values: list[Any]) -> tuple[list[str], list[str]]:
    names: list[str] = []
    for row, value in enumerate(values):
        if _is_missing(value):
            raise UserError(f"{where(column, row)}: the client is missing. Expected its name; fill it in or remove the row.")
        if isinstance(value, list | dict | bytes):
            raise UserError(f"{where(column, row)}: got a client of type {type(value).__name__}, expected its name, as text or a number.")
        name = str(int(value) if isinstance(value, float) and value.is_integer() else value)
        _refuse_halves(where, column, row, name)
        names.append(name)
    return _made_alike(where.source, column, names)


def _made_alike(source: str, column: str, names: list[str]) -> tuple[list[str], list[str]]:
    """Names in their canonical form, and a sentence on those that were written otherwise."""
    forms = {name: canonical(name) for name in dict.fromkeys(names)}
    changed = {name for name, form in forms.items() if form != name}
    if not changed:
        return names, []
    rows = sum(name in changed for name in names)
    pairs = ", ".join(f"{_escaped(name)} as {shown(forms[name])}" for name in sorted(changed)[:3])
    more = f" and {len(changed) - 3:,} more" if len(changed) > 3 else ""
    return [forms[name] for name in names], [
        f"{source}, column {shown(column)}: in {rows:,} of {len(names):,} rows the name is read without the spaces around it and in one form of "
        f"Unicode: {pairs}{more}"
    ]


def _escaped(name: str) -> str:
    """A name so that combining characters can be seen."""
    return shown(name) if name.isascii() else f"'{name[:40].encode('unicode_escape').decode()}'"
