"""Labelled texts from the columns of a table: every value is checked, and a mistake is named with its column and row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError
from .names import canonical, listed, shown

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are read, and what becomes of rows without a text or a label.

    Attributes:
        skip_empty: such rows are left out and counted, instead of rejected.
        unit: who an example is of (`privacy.unit_column`).
    """

    text: str
    pair: str | None
    label: str
    client: str | None
    skip_empty: bool = False
    unit: str | None = None

    def names(self) -> tuple[str, ...]:
        """Those that are set, in order, each once; as names in a file are read."""
        named = (self.text, self.pair, self.label, self.client, self.unit)
        return tuple(dict.fromkeys(canonical(name) for name in named if name is not None))


@dataclass(frozen=True)
class RawSplit:
    """Labelled texts before their labels are numbered. Row i of every list belongs to the same example.

    Attributes:
        about: what was read, as a sentence.
        notes: what the user has to be told about it, as sentences.
        rows: 0-based rows of the source; () for all of them.
        units: who each example is of; None where that is not asked for.
    """

    source: str
    texts: list[str]
    pairs: list[str] | None
    labels: list[int] | list[str]
    clients: list[str] | None
    about: str = ""
    notes: tuple[str, ...] = ()
    rows: Sequence[int] = ()
    units: list[str] | None = None

    def row(self, position: int) -> int:
        """The number of an example's row in the source, from 1."""
        return (self.rows[position] if self.rows else position) + 1


def raw_split(source: str, columns: Columns, table: dict[str, list[Any]], *, about: str = "", notes: Sequence[str] = ()) -> RawSplit:
    """Check columns that were read from anywhere.

    Args:
        source: names the place in errors.
        table: by the names as in `columns.names()`.
        about: how it was read, in a few words.
        notes: what the user has to be told about that.

    Raises:
        UserError: see `read_split`.
    """
    text, pair, label, client = (
        None if name is None else canonical(name) for name in (columns.text, columns.pair, columns.label, columns.client)
    )
    assert text is not None and label is not None
    total = len(table[label])
    if not total:
        raise UserError(f"{source}: the file has no rows. Expected at least one labelled text for each class.")
    empty = {name: [row for row, value in enumerate(table[name]) if is_missing(value)] for name in (text, pair, label) if name is not None}
    left_out: set[int] = set()
    for name, rows in empty.items():
        if rows and not columns.skip_empty:
            raise UserError(all_missing(source, name, "label" if name == label else "text", rows, table[name]))
        left_out.update(rows)
    rows = [row for row in range(total) if row not in left_out]
    if not rows:
        raise UserError(f"{source}: none of the {total:,} rows has both a text and a label. Expected at least one for each class.")
    place = Located(source, rows)
    kept = {name: [values[row] for row in rows] for name, values in table.items()} if left_out else table
    labels, label_notes = _labels(place, label, kept[label])
    clients, client_notes = (None, []) if client is None else clients_of(place, client, kept[client])
    unit = None if columns.unit is None else canonical(columns.unit)
    units = None if unit is None else clients_of(place, unit, kept[unit], "person")[0]
    if left_out:
        numbers = listed(row + 1 for row in sorted(left_out))
        dropped = f"{len(left_out):,} of {total:,} rows are left out, which have no text or no label: rows {numbers}"
        notes = (*notes, f"{source}: {dropped}")
    return RawSplit(
        source=source,
        texts=_texts(place, text, kept[text]),
        pairs=None if pair is None else _texts(place, pair, kept[pair]),
        labels=labels,
        clients=clients,
        about=f"{source}: {total:,} rows{f', {about}' if about else ''}; {f'{len(left_out):,} of them' if left_out else 'none'} left out",
        notes=(*notes, *label_notes, *client_notes),
        rows=rows if left_out else (),
        units=units,
    )


@dataclass(frozen=True)
class Located:
    """Where values come from, for errors: the source, and the 0-based row of each value in it."""

    source: str
    rows: Sequence[int]

    def __call__(self, column: str, position: int) -> str:
        return where_in(self.source, column, self.rows[position])


def where_in(source: str, column: str, row: int) -> str:
    """A cell, as errors name it; the row from 0."""
    return f"{source}, column {shown(column)}, row {row + 1} (the first row of data is 1)"


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, or a text of blanks."""
    return value is None or (isinstance(value, str) and not canonical(value)) or (isinstance(value, float) and math.isnan(value))


_FILL_IN = "fill it in, remove the row, or set data.skip_empty = true"


def all_missing(source: str, column: str, what: str, rows: list[int], values: list[Any], way_out: str = _FILL_IN) -> str:
    """Every row without a value at once, so that they can be filled in in one go. `what` is "text", "answer" or "label"."""
    first = values[rows[0]]
    empty = "missing" if what == "label" else "empty"
    how = "missing (null)" if first is None else "missing (NaN)" if isinstance(first, float) else empty
    more = len(rows) - 1
    are, name = ("is", "row") if more == 1 else ("are", "rows")
    others = f"{more:,} of the other {len(values) - 1:,} ({name} {listed((row + 1 for row in rows[1:]), 8)})"
    rest = f", and so {are} {others}" if more else ""
    return (
        f"{where_in(source, column, rows[0])}: the {what} is {how}{rest}. Expected {'a class' if what == 'label' else 'text'}; {way_out}."
    )


def texts_in(source: str, column: str, values: list[Any], option: str) -> list[str]:
    """Texts of a column that is read without labels.

    Args:
        option: of the command line, which names the column.

    Raises:
        UserError: a value that is missing, or no text.
    """
    if rows := [row for row, value in enumerate(values) if is_missing(value)]:
        raise UserError(all_missing(source, column, "text", rows, values, "fill it in, or remove the row"))
    return _texts(Located(source, range(len(values))), column, values, option)


def _texts(where: Located, column: str, values: list[Any], keys: str = "`data.text_column` or `data.pair_column`") -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            kind = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
            raise UserError(
                f"{where(column, row)}: got {shown(value)} ({kind}), expected text. Is {shown(column)} the column of the texts? Set {keys}."
            )
        reject_halves(where, column, row, value)
    return values


def reject_halves(where: Located, column: str, row: int, value: str) -> None:
    """Reject a text that is not whole characters.

    Raises:
        UserError: naming the place.
    """
    if not value.isascii() and (half := _SURROGATE.search(value)):
        raise UserError(f"{where(column, row)}: got {half[0]!r}, an unpaired surrogate, expected whole characters. Remove it, or the row.")


def labels_in(source: str, column: str, values: list[Any]) -> list[int] | list[str]:
    """Labels of a column, as training reads them.

    Raises:
        UserError: one that is missing, or is no label.
    """
    if rows := [row for row, value in enumerate(values) if is_missing(value)]:
        raise UserError(all_missing(source, column, "label", rows, values, "fill it in, or remove the row"))
    return _labels(Located(source, range(len(values))), column, values)[0]


def _labels(where: Located, column: str, values: list[Any]) -> tuple[list[int] | list[str], list[str]]:
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
            reject_halves(where, column, row, value)
        labels.append(str(value) if isinstance(value, bool) else value)
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        return numbers, []
    named = [str(label) for label in labels]
    found, notes = _made_alike(where.source, column, named)
    if numbers:
        count = f"{len(numbers):,} of {len(labels):,} labels"
        notes.append(f"{where.source}, column {shown(column)}: {count} are numbers, the others text; all are read as text")
    return found, notes


def clients_of(where: Located, column: str, values: list[Any], what: str = "client") -> tuple[list[str], list[str]]:
    """Names of clients, or of what is called so, and what has to be said of them.

    Raises:
        UserError: one that is missing, or no name.
    """
    names: list[str] = []
    for row, value in enumerate(values):
        if is_missing(value):
            raise UserError(f"{where(column, row)}: the {what} is missing. Expected its name; fill it in or remove the row.")
        if isinstance(value, list | dict | bytes):
            raise UserError(f"{where(column, row)}: got a {what} of type {type(value).__name__}, expected its name, as text or a number.")
        name = str(int(value) if isinstance(value, float) and value.is_integer() else value)
        reject_halves(where, column, row, name)
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
    told = f"{rows:,} of {len(names):,} names are read without spaces around them and in composed Unicode (NFC): {pairs}{more}"
    return [forms[name] for name in names], [f"{source}, column {shown(column)}: {told}"]


def _escaped(name: str) -> str:
    """A name so that combining characters can be seen."""
    return shown(name) if name.isascii() else f"'{name[:40].encode('unicode_escape').decode()}'"
