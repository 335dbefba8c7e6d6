"""Rows that a program already holds, as a parquet file: a DataFrame, a data set of Hugging Face's library, an Arrow table, or lists."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet

from ..core.errors import UserError
from .names import listed, shown

_EXPECTED = "expected a pandas DataFrame, a datasets.Dataset, a pyarrow Table, a list of dicts, or a dict of lists"


def as_parquet(name: str, data: Any) -> bytes:
    """The file with these rows.

    Args:
        name: of the argument, for errors.

    Raises:
        UserError: something else, no rows, or columns that hold values of several kinds.
    """
    try:
        table = _table(name, data)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{name}: the rows cannot be written as a table ({said}); give each column values of one kind") from error
    if not table.num_rows:
        raise UserError(f"{name}: got no rows, expected at least one labelled text for each class")
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def _table(name: str, data: Any) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if hasattr(data, "column_names") and isinstance(data.column_names, dict):
        parts = listed(data.keys())
        raise UserError(f"{name}: got a {type(data).__name__} with the parts {parts}, expected one of them; give data=...['train']")
    if hasattr(data, "features") and hasattr(data, "with_format"):
        return _of_dataset(data)
    if hasattr(data, "iloc") and hasattr(data, "columns"):
        return pa.Table.from_pandas(data, preserve_index=False)
    if isinstance(data, Mapping):
        return pa.Table.from_pydict(dict(cast("Mapping[str, Any]", data)))
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        rows = list(cast("Sequence[Any]", data))
        if other := next((row for row in rows if not isinstance(row, Mapping)), None):
            raise UserError(f"{name}: got a list with a {type(other).__name__}, {_EXPECTED}")
        keys = dict.fromkeys(key for row in rows for key in row)
        return pa.Table.from_pydict({key: [row.get(key) for row in rows] for key in keys})
    if hasattr(data, "to_arrow"):  # Polars and others
        return cast("Any", data).to_arrow()
    raise UserError(f"{name}: got {shown(type(data).__name__)}, {_EXPECTED}")


def _of_dataset(data: Any) -> pa.Table:
    """Integers that stand for names of classes become these names."""
    table: pa.Table = data.with_format("arrow")[:]
    for column, feature in data.features.items():
        names = getattr(feature, "names", None)
        if names is not None:
            values = [None if place is None or place < 0 else names[place] for place in table.column(column).to_pylist()]
            table = table.set_column(table.column_names.index(column), column, pa.array(values, pa.string()))
    return table
