"""A table as values, shown in a terminal, in Markdown and as CSV; the page shows it too (html.py)."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ...core.terminal import escaped
from ...core.units import duration
from .scores import ComparedMetric
from .standing import Spread

_GAP = 2
_LONG = 30  # characters of a cell of text that may take several lines on a terminal


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number to sort by and to write to CSV files; None for text.

    Attributes:
        best: the best of its column, which is highlighted.
        more: what stands behind the number, in brackets or smaller.
    """

    text: str
    value: float | None = None
    best: bool = False
    more: str = ""

    @property
    def whole(self) -> str:
        """As in "3.2 (2.9 to 4.0)"."""
        return f"{self.text} ({self.more})" if self.more else self.text


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        cell: of what a row is about.
        best: `max` or `min`, which of its numbers is highlighted, all of those that tie; none of equal or of less than two numbers.
        but: names of rows that are not compared.
    """

    name: str
    cell: Callable[[Any], Cell]
    best: Callable[[Collection[float]], float] | None = None
    but: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        name: of its CSV file.
        title, note: heading, and what a reader has to know to read it.
        first columns hold names; a cell of text sorts by its text.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers."""
        return [any(row[place].value is not None for row in self.rows) for place in range(len(self.header))]


def table(name: str, title: str, note: str, columns: Sequence[Column], of: Iterable[Any]) -> Table:
    """A row for each of what the table is of, the best of its columns highlighted."""
    rows = [[column.cell(one) for column in columns] for one in of]
    for place, column in enumerate(columns):
        compared = [row for row in rows if column.best and row[0].text not in column.but and row[place].value is not None]
        values = {row[place].value for row in compared}
        for row in compared if len(values) > 1 else ():
            if column.best and row[place].value == column.best(values):  # pyright: ignore[reportArgumentType]
                row[place] = replace(row[place], best=True)
    return Table(name, title, note, tuple(column.name for column in columns), tuple(map(tuple, rows)))


def words(text: object) -> Cell:
    """A cell of text; "-" for None."""
    return Cell("-" if text is None else str(text))


def number(value: float | None, digits: int = 1) -> Cell:
    """A number with thousands set apart; "-" for None and NaN, "never" for infinity."""
    if value is None or math.isnan(value):
        return Cell("-")
    return Cell("never" if math.isinf(value) else f"{value:,.{digits}f}", value)


def score(value: float | None, scores: ComparedMetric, more: int = 0) -> Cell:
    """A score, or a difference of two, without its unit; with `more` digits than others have."""
    return number(None if value is None else scores.factor * value, scores.digits + more)


def points(found: Spread | None, scores: ComparedMetric) -> Cell:
    """A score with its deviation, without its unit: "84.1 ± 0.5"."""
    if found is None:
        return Cell("-")
    deviation = "" if found.deviation is None else f" ± {scores.factor * found.deviation:.{scores.digits}f}"
    mean = round(scores.factor * found.mean, scores.digits) + 0.0  # no -0.0
    return Cell(f"{mean:.{scores.digits}f}{deviation}", scores.factor * found.mean)


def around(found: Spread | None, digits: int) -> Cell:
    """A mean with its deviation, where values differ: "1,204 ± 12"."""
    if found is None:
        return Cell("-")
    cell = number(found.mean, digits)
    return replace(cell, text=f"{cell.text} ± {found.deviation:,.{digits}f}") if found.deviation else cell


def with_range(cell: Cell, low: str = "", high: str = "") -> Cell:
    """The cell with the ends of what it is the middle of, where they differ."""
    return cell if low == high else replace(cell, more=f"{low} to {high}")


def seconds(value: float | None) -> Cell:
    """A duration; its value is in seconds."""
    cell = number(value)
    return cell if cell.value is None or math.isinf(cell.value) else Cell(duration(cell.value), cell.value)


def megabytes(size: float | None) -> Cell:
    """Bytes as MB, 10^6 bytes."""
    return number(None if size is None else size / 1e6)


def without(table: Table, names: Sequence[str]) -> Table:
    """The table without the columns of these names."""
    kept = [i for i, name in enumerate(table.header) if name not in names]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(table, header=tuple(table.header[i] for i in kept), rows=rows)


def with_second(table: Table, name: str) -> Table:
    """The table with the column of this name behind the first."""
    order = sorted(range(len(table.header)), key=lambda i: (i > 0, table.header[i] != name))
    rows = tuple(tuple(row[i] for i in order) for row in table.rows)
    return replace(table, header=tuple(table.header[i] for i in order), rows=rows)


def to_markdown(table: Table, heading: str = "##") -> str:
    """Heading, note and table; the best are bold."""
    lines = [f"{heading} {table.title}", "", table.note, "", _row(table.header), "|" + "---|" * len(table.header)]
    lines += [_row([f"**{cell.whole}**" if cell.best else cell.whole for cell in row]) for row in table.rows]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_csv(table: Table) -> str:
    """Numbers in full; "inf" where a target was never reached, empty where there is nothing."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.header)
    for row in table.rows:
        writer.writerow([cell.value if cell.value is not None else "" if cell.text == "-" else cell.text for cell in row])
    return out.getvalue()


def show(table: Table, console: Console) -> None:
    """Print to a terminal; the best are bold. Columns that do not fit side by side follow below, the first one beside them again."""
    prose(table.title, console, "bold", above=True)
    prose(table.note, console, "dim")
    for places, widths in _blocks(table, console.width):
        shown = RichTable(box=None, pad_edge=False)
        for place in places:
            justify = "right" if table.numeric[place] else "left"
            shown.add_column(Text(escaped(table.header[place])), justify=justify, overflow="fold", width=widths[place])
        for row in table.rows:
            shown.add_row(*(Text(escaped(row[place].whole), style="bold" if row[place].best else "") for place in places))
        console.print(shown)
        if places[-1] + 1 < len(table.header):
            console.print()


def prose(text: str, console: Console, style: str = "", above: bool = False) -> None:
    """Print a sentence, on a terminal in lines that end between words, elsewhere in one.

    Args:
        above: leave a line empty above it.
    """
    console.print(Text("\n" * above + escaped(text), style=style), soft_wrap=not console.is_terminal)


def _blocks(table: Table, room: int) -> Iterator[tuple[list[int], list[int]]]:
    """Places of the columns that are shown side by side, with the widths of all columns: no word and no number is broken."""
    columns = range(len(table.header))
    for lines in (1, 2, 3, 4):  # of the heading: the fewest with which all columns fit
        widths = [max(_heading(table.header[place], lines), *(_cell(row[place]) for row in table.rows)) for place in columns]
        if sum(widths) + _GAP * (len(widths) - 1) <= room:
            break
    places = [0]
    for place in columns[1:]:
        if len(places) > 1 and sum(widths[one] + _GAP for one in places) + widths[place] > room:
            yield places, widths
            places = [0]
        places.append(place)
    yield places, widths


def _heading(text: str, lines: int) -> int:
    """The least width at which a heading takes at most so many lines, without breaking a word."""
    shown = escaped(text)
    least = max(map(cell_len, shown.split()), default=0)
    fits = (width for width in range(max(1, least), cell_len(shown)) if len(textwrap.wrap(shown, width, break_on_hyphens=False)) <= lines)
    return next(fits, cell_len(shown))


def _cell(cell: Cell) -> int:
    """The width of a cell; a long text may be broken between words."""
    shown = escaped(cell.whole)
    longest = max(map(cell_len, shown.split()), default=0)
    return cell_len(shown) if cell.value is not None else min(cell_len(shown), max(longest, _LONG))
