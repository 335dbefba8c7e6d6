"""What a client or a federation holds, as tables for a terminal: what was read, who holds how much, what is likely to spoil it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .build import Prepared, data_warnings
from .core.terminal import escaped
from .data.federated import FederatedData
from .data.inspect import quantiles
from .data.names import plain

Section: TypeAlias = tuple[str, Table]
"""What is shown under a title."""


def show(sections: Iterable[Section], console: Console) -> None:
    """Prints them one below the other."""
    for title, table in sections:
        console.print(Text(escaped(title), style="bold"))
        console.print(table)
        console.print()


def as_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """Rows of plain text."""
    table = Table(box=None, pad_edge=False, show_header=any(header))
    for name in header:
        table.add_column(Text(escaped(name)), overflow="fold")  # Text: brackets in the name of a class are no markup
    for row in rows:
        table.add_row(*map(Text, map(escaped, row)))
    return table


_CLASSES_SHOWN, _CLIENTS_SHOWN = 8, 20
"""[C] With more classes or clients than these their numbers are summed up."""


def data_section(prepared: Prepared) -> Section:
    """What was read, and what became of it: a row for each part."""
    data = prepared.inputs.data
    sides = {examples.table.cut_side for examples in (data.train, data.test)}
    header = ("", "examples", "by class", "length in tokens: median, 95 %, maximum", f"cut to {data.max_length} at the {_end_of(sides)}")
    rows = []
    for part in ("train", "validation", "test"):
        examples = getattr(data, part)
        if not len(examples):
            rows.append((part, "0", "", "", ""))
            continue
        lengths = examples.whole_lengths
        spread = ", ".join(f"{length:,}" for length in quantiles(lengths))
        cut = int((lengths > data.max_length).sum())
        rows.append((part, f"{len(examples):,}", _by_class(data, part), spread, f"{cut:,}"))
    if data.label_names is None:
        header, rows = (*header[:2], *header[3:]), [(*row[:2], *row[3:]) for row in rows]
    return "\n".join(("Data", *data.read)), as_table(header, rows)


def warnings_section(prepared: Prepared) -> Iterator[Section]:
    """What is likely to spoil the data; nothing where nothing is."""
    if warned := data_warnings(prepared.inputs):
        yield "Warnings", as_table(("", ""), [("-", text) for text in warned])


def _end_of(sides: set[str]) -> str:
    return "beginning" if sides == {"left"} else "end"


def _by_class(data: FederatedData, part: str) -> str:
    names = data.label_names
    if names is None:
        return ""
    counts = data.class_counts(part).sum(axis=0).tolist()
    if len(names) > _CLASSES_SHOWN:
        return f"{len(names)} classes of {min(counts):,} to {max(counts):,}"
    return ", ".join(f"{plain(name)} {count:,}" for name, count in zip(names, counts, strict=True))


def clients_table(prepared: Prepared) -> Table:
    """A row for each client, or the spread of their sizes where they are many."""
    parts, data = ("train", "validation", "test"), prepared.inputs.data
    if len(data.clients) > _CLIENTS_SHOWN:
        rows = []
        for part in parts:
            held = examples_by_client(prepared, part)
            rows.append((f"{part} examples", str(min(held)), f"{statistics.median(held):g}", str(max(held))))
        return as_table(("", "least", "middle", "most"), rows)
    columns = [examples_by_client(prepared, part) for part in parts]
    named = [(plain(client), *(f"{column[k]:,}" for column in columns)) for k, client in enumerate(data.clients)]
    if data.label_names is None:
        return as_table(("client", *parts), named)
    train = data.class_counts("train").tolist()
    if len(data.label_names) > _CLASSES_SHOWN:
        most = [max(row) / max(1, sum(row)) for row in train]
        classes = [f"{sum(map(bool, row))} of {len(row)}, the largest {100 * share:.0f} %" for row, share in zip(train, most, strict=True)]
        return as_table(("client", *parts, "classes in train"), [(*row, text) for row, text in zip(named, classes, strict=True)])
    header = ("client", *parts, *(f"train: {plain(name)}" for name in data.label_names))
    return as_table(header, [(*row, *(f"{count:,}" for count in counts)) for row, counts in zip(named, train, strict=True)])


def examples_by_client(prepared: Prepared, part: str) -> list[int]:
    """Examples of each client in a part."""
    return [len(held) for held in prepared.inputs.data.partition.indices[part].values()]
