"""A user's file as it is, row by row, to be written again with further columns."""

from __future__ import annotations

import csv
import gzip
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet

from ..core.errors import UserError
from ..core.files import expanded
from ..core.json_text import to_json
from ..core.units import count
from .encoding import bytes_of, text_of
from .names import canonical, listed, shown
from .objects import objects_in
from .separated import read_separated
from .user_files import SEPARATED, as_numbers, check_columns, extension_of, is_packed, reject_unreadable
from .values import labels_in, texts_in

STDIN = "-"
"""In place of a file's name: standard input."""

Form = Literal["separated", "lines", "list", "parquet"]


@dataclass(frozen=True)
class FileRows:
    """The rows of a file.

    Attributes:
        source: names the place in errors.
        form: how it is written: values separated by a character, a JSON object in each line, a JSON list of objects, or parquet.
        names: of its columns, without the spaces around them.
        rows: of a separated file its cells, of JSON its objects, of parquet the table.
        separator: of a separated file.
        notes: what the reader has to be told about how it was read.
    """

    source: str
    form: Form
    names: list[str]
    rows: Any
    separator: str = ","
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, name: str, option: str) -> list[str]:
        """A column of texts.

        Args:
            option: of the command line, which names it.

        Raises:
            UserError: there is no such column, or a value that is missing or no text.
        """
        return texts_in(self.source, canonical(name), self._values(canonical(name), option), option)

    def labels(self, name: str, option: str) -> list[int] | list[str]:
        """A column of labels, as training reads them: integers, or names of classes. Arguments and errors as for `texts`."""
        values = self._values(canonical(name), option)
        return labels_in(self.source, canonical(name), as_numbers(values) if self.form == "separated" else values)

    def _values(self, name: str, option: str) -> list[Any]:
        check_columns(self.source, [name], self.names, option)
        if self.form == "separated":
            place = self.names.index(name)
            return [row[place] for row in self.rows]
        if self.form == "parquet":
            return self.rows.column(self.names.index(name)).to_pylist()
        key = {canonical(key): key for row in self.rows for key in row}[name]
        return [row.get(key) for row in self.rows]

    def with_columns(self, columns: Mapping[str, Sequence[Any]]) -> bytes:
        """The file again, with further columns behind its own; numbers in text have six significant digits.

        Raises:
            UserError: it has a column of such a name.
        """
        if taken := [name for name in columns if name in self.names]:
            raise UserError(
                f"{self.source}: got the columns {listed(taken)}, which predictions go to, expected none of these names; rename them"
            )
        if self.form == "parquet":
            table = self.rows
            for name, values in columns.items():
                table = table.append_column(name, pa.array(values))
            sink = io.BytesIO()
            pyarrow.parquet.write_table(table, sink)
            return sink.getvalue()
        short = {name: [_short(value) for value in values] for name, values in columns.items()}
        new = zip(*short.values(), strict=True)
        if self.form == "separated":
            text = io.StringIO(newline="")
            bare = any("\r" in cell for row in self.rows for cell in row)  # which the csv module does not take for a reason to quote
            quoting = csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
            writer = csv.writer(text, delimiter=self.separator, lineterminator="\n", quoting=quoting)
            writer.writerow([*self.names, *columns])
            writer.writerows([*row, *more] for row, more in zip(self.rows, new, strict=True))
            return text.getvalue().encode()
        objects = [
            to_json({**row, **dict(zip(columns, more, strict=True))}, ensure_ascii=False) for row, more in zip(self.rows, new, strict=True)
        ]
        between = ",\n".join(objects)
        return ("\n".join([*objects, ""]) if self.form == "lines" else f"[\n{between}\n]\n").encode(errors="surrogatepass")

    def changed(self) -> tuple[str, ...]:
        """What is not as it was once the rows are written again, for the reader."""
        lost = 0 if self.form in ("separated", "parquet") else sum(map(_not_finite, self.rows))
        if not lost:
            return ()
        return (f"{self.source}: NaN and Infinity, which are no JSON, are written as null ({count(lost, 'number')})",)


def _not_finite(value: Any) -> int:
    """How many numbers in a value of JSON are not finite."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return sum(map(_not_finite, value))
    return int(isinstance(value, float) and not math.isfinite(value))


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def read_rows(file: str, text_column: str) -> FileRows:
    """The rows of a CSV, TSV, JSON, JSON lines or parquet file, `.gz` behind an extension unpacked; of `STDIN`, whose first bytes tell what
    it is.

    Args:
        text_column: the column that a separated file must have, for finding its separator.

    Raises:
        UserError: no such file, one that cannot be read, or without rows.
    """
    if file == STDIN:
        source, data = "standard input", sys.stdin.buffer.read()
        start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        extension = ".parquet" if data[:4] == b"PAR1" else ".json" if start == b"[" else ".jsonl" if start == b"{" else ".csv"
    else:
        path = expanded(file)
        reject_unreadable(path, "correct its name")
        source, extension = file, extension_of(path)
        data = bytes_of(path, is_packed(path))
    rows = _parquet(source, data) if extension == ".parquet" else _text(source, data, extension, canonical(text_column))
    if not len(rows):
        raise UserError(f"{source}: the file has no rows, expected at least one below the names of the columns; is it the right file?")
    if twice := sorted({name for name in rows.names if rows.names.count(name) > 1}):
        raise UserError(f"{source}: got the columns {listed(twice)} more than once, expected each once; rename or remove the others.")
    return rows


def _text(source: str, data: bytes, extension: str, text_column: str) -> FileRows:
    text, _ = text_of(source, data)
    if extension in SEPARATED:
        cells = read_separated(source, text, [text_column], SEPARATED[extension])
        return FileRows(source, "separated", cells.header, cells.rows, cells.separator, cells.notes)
    if not text.strip():
        raise UserError(f"{source}: the file is empty, expected one object per line, or a list of them.")
    objects = objects_in(source, text)
    names = list(dict.fromkeys(canonical(key) for row in objects for key in row))
    return FileRows(source, "list" if text.lstrip()[0] == "[" or extension == ".json" else "lines", names, objects)


def _parquet(source: str, data: bytes) -> FileRows:
    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read as parquet: {shown(str(error))[1:-1]}. Write it again.") from None
    return FileRows(source, "parquet", [canonical(name) for name in table.column_names], table)


def packed_like(out: Path, data: bytes) -> bytes:
    """`data` as a file of this name holds it."""
    return gzip.compress(data, mtime=0) if is_packed(out) else data
