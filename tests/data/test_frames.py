"""Rows that a program holds become the same table, whatever holds them."""

from __future__ import annotations

import io
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from fibecfed.core.errors import UserError
from fibecfed.data.frames import as_parquet

COLUMNS = {"text": ["a", "b"], "label": ["x", "y"]}
ROWS = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
CLASSES = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})


@pytest.mark.parametrize(
    "data",
    [
        COLUMNS,
        ROWS,
        pa.table(COLUMNS),
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS, index=[7, 9]),
        pd.DataFrame(COLUMNS).astype({"label": "category"}),
        datasets.Dataset.from_dict(COLUMNS),
        datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=CLASSES),
        datasets.Dataset.from_dict({"text": ["b", "no", "a"], "label": ["y", "no", "x"]}).select([2, 0]),
    ],
    ids=["columns", "rows", "arrow", "frame", "index", "categories", "data set", "classes", "some rows"],
)
def test_every_kind_gives_the_same_rows(data: Any) -> None:
    assert pyarrow.parquet.read_table(io.BytesIO(as_parquet("data", data))).to_pylist() == ROWS


def test_a_row_that_lacks_a_value_and_a_class_that_is_not_known_are_missing() -> None:
    for data in ([{"text": "a", "label": "x"}, {"text": "b"}], datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, CLASSES)):
        assert pyarrow.parquet.read_table(io.BytesIO(as_parquet("data", data)))["label"].to_pylist() == ["x", None]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (7, "data: got 'int', expected a pandas DataFrame"),
        ("my.csv", "data: got 'str', expected a pandas DataFrame"),
        ([1, 2], "got a list with a int"),
        ([], "got no rows"),
        ({"text": []}, "got no rows"),
        (pd.DataFrame({"text": ["a", 1, {}]}), "give each column values of one kind"),
        ({"text": ["a"], "label": []}, "cannot be written as a table"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict(COLUMNS)}), "with the parts 'train', expected one of them"),
    ],
)
def test_anything_else_is_a_sentence(data: Any, problem: str) -> None:
    with pytest.raises(UserError) as error:
        as_parquet("data", data)
    assert problem in str(error.value)
