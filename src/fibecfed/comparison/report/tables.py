"""A table as values, shown in a terminal, in Markdown and as CSV; the page shows it too (html.py)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ...core.terminal import escaped
from ...core.units import duration
from .standing import Spread


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


def words(text: object) -> Cell:
    """A cell of text; "-" for None."""
    return Cell("-" if text is None else str(text))


def number(value: float | None, digits: int = 1, best: bool = False) -> Cell:
    """A number with thousands set apart; "-" for None and NaN, "never" for infinity."""
    if value is None or math.isnan(value):
        return Cell("-")
    return Cell("never" if math.isinf(value) else f"{value:,.{digits}f}", value, best)


def points(found: Spread | None, best: bool = False) -> Cell:
    """A score in per cent with its deviation: "84.1 ± 0.5"."""
    if found is None:
        return Cell("-")
    deviation = "" if found.deviation is None else f" ± {100 * found.deviation:.1f}"
    mean = round(100 * found.mean, 1) + 0.0  # no -0.0
    return Cell(f"{mean:.1f}{deviation}", 100 * found.mean, best)


def around(found: Spread | None, digits: int) -> Cell:
    """A mean with its deviation, where values differ: "1,204 ± 12"."""
    if found is None:
        return Cell("-")
    cell = number(found.mean, digits)
    return replace(cell, text=f"{cell.text} ± {found.deviation:,.{digits}f}") if found.deviation else cell


def with_range(cell: Cell, low: str = "", high: str = "") -> Cell:
    """The cell with the ends of what it is the middle of, where they differ."""
    return cell if low == high else replace(cell, more=f"{low} to {high}")


def seconds(value: float | None, best: bool = False) -> Cell:
    """A duration; its value is in seconds."""
    cell = number(value, best=best)
    return cell if cell.value is None or math.isinf(cell.value) else Cell(duration(cell.value), cell.value, best)


def megabytes(size: float | None, best: bool = False) -> Cell:
    """Bytes as MB, 10^6 bytes."""
    return number(None if size is None else size / 1e6, 1, best)


def set_off(table: Table, *, most: Collection[int] = (), least: Collection[int] = (), but: Collection[str] = ()) -> Table:
    """The table with the best of some columns highlighted, all of those that tie; none in a column of equal or of less than two numbers.

    Args:
        most, least: columns of which the highest or the lowest number is the best.
        but: names of rows that are not compared in these columns.
    """
    best: dict[int, float] = {}
    for column in (*most, *least):
        found = {value for row in table.rows if row[0].text not in but and (value := row[column].value) is not None}
        if len(found) > 1:
            best[column] = max(found) if column in most else min(found)
    rows = tuple(
        tuple(
            replace(cell, best=True) if place in best and cell.value == best[place] and row[0].text not in but else cell
            for place, cell in enumerate(row)
        )
        for row in table.rows
    )
    return replace(table, rows=rows)


def without(table: Table, names: Sequence[str]) -> Table:
    """The table without the columns of these names."""
    kept = [i for i, name in enumerate(table.header) if name not in names]
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows)
    return replace(table, header=tuple(table.header[i] for i in kept), rows=rows)


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
    """Print to a terminal; the best are bold."""
    console.print(Text(escaped(f"\n{table.title}"), style="bold"))
    console.print(Text(escaped(table.note), style="dim"), soft_wrap=True)
    shown = RichTable(box=None, pad_edge=False)
    numeric = [any(row[i].value is not None for row in table.rows) for i in range(len(table.header))]
    for name, right in zip(table.header, numeric, strict=True):
        shown.add_column(Text(escaped(name)), justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(escaped(cell.whole), style="bold" if cell.best else "") for cell in row))
    console.print(shown)
