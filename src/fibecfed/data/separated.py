"""Tables whose columns are separated by a character: what programs call CSV or TSV, and write in more than one way."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..core.errors import UserError
from .names import canonical, listed

_ENCLOSED = re.compile('".*"', re.DOTALL)
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


@dataclass(frozen=True)
class Cells:
    """A table as it was read.

    Attributes:
        header: names of its columns.
        rows: below it, each as long as the header.
        about: how it was read, in a few words.
        notes: what the reader has to be told about it.
        separator: the character between values.
    """

    header: list[str]
    rows: list[list[str]]
    about: str
    notes: tuple[str, ...] = ()
    separator: str = ","


@dataclass(frozen=True)
class _Parsed:
    """One way to read a text: rows with the line that each begins and ends in, or the sentence why it cannot be read so."""

    header: list[str]
    rows: list[list[str]]
    lines: list[tuple[int, int]]
    problem: str | None = None


def read_separated(source: str, text: str, wanted: Sequence[str], preferred: str) -> Cells:
    """The cells of a table.

    The separator is the one that gives the header every wanted column, `preferred` before the others. Quotation marks enclose values, as
    CSV has it, where every row can be read so; they are parts of the texts where that loses rows (many tab-separated tables know no
    quoting). A row that has more or fewer values than the header is rejected.

    Args:
        source: the file, for errors.
        wanted: names of columns.

    Raises:
        UserError: naming the row.
    """
    separator, header = _separator(source, text, wanted, preferred)
    quoted = _parsed(text, separator, csv.QUOTE_MINIMAL)
    about = f"separated by {SEPARATORS[separator]}"
    if '"' not in text:
        return Cells(header, _sound(source, quoted).rows, about, separator=separator)
    columns = [header.index(name) for name in wanted if name in header]
    literal = _literal(text, separator, columns)
    if literal is not None and (quoted.problem or (separator == "\t" and _are_parts_of_texts(quoted, literal, columns))):
        rows = [number for number, row in enumerate(literal.rows, start=1) if any(value[:1] == '"' for value in row)]
        note = f"{source}: quotation marks are read as parts of the texts, not as enclosing them (rows {listed(rows)} begin with one)"
        return Cells(header, literal.rows, f"{about}, without quoting", (note,) if rows else (), separator)
    notes: tuple[str, ...] = ()
    if quoted.problem or any(_spaced_quote(row[column]) for row in quoted.rows for column in columns):
        spaced = _parsed(text, separator, csv.QUOTE_MINIMAL, skip_spaces=True)
        if not spaced.problem and re.search(f'{re.escape(separator)} +"', text):
            quoted, notes = spaced, (f"{source}: spaces after separators are ignored, since quotation marks follow them",)
    return Cells(header, _sound(source, quoted).rows, about, (*notes, *_swallowed(source, text, separator, quoted)), separator)


def _separator(source: str, text: str, wanted: Sequence[str], preferred: str) -> tuple[str, list[str]]:
    """The separator and the header; for an error the separator that makes most columns."""
    headers: dict[str, list[str]] = {}
    for separator in sorted(SEPARATORS, key=lambda one: one != preferred):
        with _no_limit():
            try:
                first = next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(row)), [])
            except csv.Error:
                continue
        headers[separator] = [canonical(name) for name in first]
    if not any(headers.values()):
        raise UserError(f"{source}: the file is empty. Expected a first line with the names of the columns, and rows below it.")
    for separator, header in headers.items():
        if all(name in header for name in wanted):
            return separator, header
    return max(headers.items(), key=lambda item: (sum(name in item[1] for name in wanted), len(item[1])))


def _parsed(text: str, separator: str, quoting: int, *, skip_spaces: bool = False) -> _Parsed:
    found = _Parsed([], [], [])
    with _no_limit():
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=separator,
            quoting=quoting,  # pyright: ignore[reportArgumentType]
            strict=True,
            skipinitialspace=skip_spaces,
        )
        began = 1
        try:
            for row in reader:
                line, began = began, reader.line_num + 1
                if not row or (len(row) == 1 and not row[0].strip() and found.header):
                    continue  # a blank line is no row
                if not found.header:
                    found = replace(found, header=[canonical(name) for name in row])
                    continue
                if len(row) != len(found.header):
                    return replace(found, problem=_ragged(len(found.rows) + 1, line, len(row), len(found.header), separator))
                found.rows.append(row)
                found.lines.append((line, reader.line_num))
        except csv.Error as error:
            what = "has a quotation mark that is never closed" if "end of data" in str(error) else "has text after a closing quotation mark"
            where = f"row {len(found.rows) + 1} (it begins in line {began})"
            way_out = "Put the whole text in quotation marks and double those inside it, or remove them"
            return replace(found, problem=f"{where}: {what}. {way_out}.")
    return found


def _ragged(row: int, line: int, got: int, expected: int, separator: str) -> str:
    return (
        f"row {row} (it begins in line {line}): got {got} values separated by {SEPARATORS[separator]}, expected {expected} as in the first "
        "line. Texts with separators, quotes or line breaks must be in quotes."
    )


def _sound(source: str, parsed: _Parsed) -> _Parsed:
    if parsed.problem is not None:
        raise UserError(f"{source}: cannot be read as CSV, {parsed.problem}")
    return parsed


def _spaced_quote(value: str) -> bool:
    """Whether a value was written as `, "value"`."""
    return value[:1] == " " and _ENCLOSED.fullmatch(value.strip(" ")) is not None


def _literal(text: str, separator: str, columns: Sequence[int]) -> _Parsed | None:
    """The table without quoting; None where quotation marks must enclose values, at least in some rows."""
    found = _parsed(text, separator, csv.QUOTE_NONE)
    if found.problem or any('"' in name for name in found.header):
        return None
    enclosed = [
        [value[:1] == '"' and value[-1:] == '"' and len(value) > 1 for value in map(row.__getitem__, columns)] for row in found.rows
    ]
    if enclosed and any(map(all, zip(*enclosed, strict=True))):
        return None  # a whole column stands in quotation marks
    for row, marks in zip(found.rows, enclosed, strict=True):
        for column, mark in zip(columns, marks, strict=True):
            if mark and re.search('""', row[column][1:-1]):
                return None  # marks that are doubled stand inside quoting
    return found


def _are_parts_of_texts(quoted: _Parsed, literal: _Parsed, columns: Sequence[int]) -> bool:
    """Whether two readings differ in the wanted columns. Quoting that was not needed is none: who writes it quotes whole columns."""
    if len(quoted.rows) != len(literal.rows):
        return True
    return any(one[c] != other[c] for one, other in zip(quoted.rows, literal.rows, strict=True) for c in columns)


def _swallowed(source: str, text: str, separator: str, quoted: _Parsed) -> tuple[str, ...]:
    """Rows whose quoted text spans lines each of which has as many values as a row."""
    several = [(row, first, last) for row, (first, last) in enumerate(quoted.lines, start=1) if last > first]
    if not several:
        return ()
    lines = re.split(r"\r\n|\r|\n", text)
    width = len(quoted.header) - 1
    rows = [row for row, first, last in several if all(lines[n - 1].count(separator) == width for n in range(first, last + 1))]
    if not rows:
        return ()
    where = f"{source}: rows {listed(rows)} hold a text in quotation marks over several lines"
    return (f"{where}, each of which looks like a row of its own; if they are rows, double the quotation marks that are parts of texts",)


@contextmanager
def _no_limit() -> Iterator[None]:
    """The csv module rejects values of more than 128 kB by default."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
