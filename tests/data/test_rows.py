"""A file's rows are written again as they were, with further columns behind."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.core.errors import UserError
from fibecfed.data.rows import FileRows, packed_like, read_rows
from fibecfed.data.user_files import read_table

NEW = {"predicted_label": ["a", "b"], "probability_a": [0.123456789, 1e-12]}


def written(tmp_path: Path, name: str, data: str | bytes) -> str:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def rows(tmp_path: Path, name: str, data: str | bytes) -> FileRows:
    return read_rows(written(tmp_path, name, data), "text")


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a.csv", 'id,text\n007,"a, ""b""\nc"\n8,\n', 'id,text,predicted_label,probability_a\n007,"a, ""b""\nc",a,0.123457\n8,,b,1e-12\n'),
        ("a.csv", "text;id\r\nx;1\r\ny;2\r\n", "text;id;predicted_label;probability_a\nx;1;a;0.123457\ny;2;b;1e-12\n"),
        ("a.tsv", "text\tid\nx\t1\ny\t2\n", "text\tid\tpredicted_label\tprobability_a\nx\t1\ta\t0.123457\ny\t2\tb\t1e-12\n"),
        (
            "a.jsonl",
            '{"text": "é", "n": {"deep": [1, null]}}\n\n{"text": "x"}\n',
            '{"text": "é", "n": {"deep": [1, null]}, "predicted_label": "a", "probability_a": 0.123457}\n'
            '{"text": "x", "predicted_label": "b", "probability_a": 1e-12}\n',
        ),
        (
            "a.json",
            '[{"text": "x"}, {"text": "y"}]',
            '[\n{"text": "x", "predicted_label": "a", "probability_a": 0.123457},\n'
            '{"text": "y", "predicted_label": "b", "probability_a": 1e-12}\n]\n',
        ),
        (
            "a.json",
            '{"text": {"0": "x", "1": "y"}}',
            '[\n{"text": "x", "predicted_label": "a", "probability_a": 0.123457},\n'
            '{"text": "y", "predicted_label": "b", "probability_a": 1e-12}\n]\n',
        ),
    ],
)
def test_text_formats(name: str, before: str, after: str, tmp_path: Path) -> None:
    assert rows(tmp_path, name, before).with_columns(NEW).decode() == after


def test_parquet_keeps_its_types_and_exact_numbers(tmp_path: Path) -> None:
    table = pa.table({"text": ["x", "y"], "n": pa.array([1, None], pa.int8()), "when": pa.array([0, 1], pa.timestamp("ms"))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = read_rows(str(tmp_path / "a.parquet"), "text")
    again = pyarrow.parquet.read_table(io.BytesIO(found.with_columns(NEW)))
    assert again.select(["text", "n", "when"]).equals(table) and again["probability_a"].to_pylist() == NEW["probability_a"]
    assert found.texts("text", "--text-column") == ["x", "y"]


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.text("ab\",;\t\n '")),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_csv_holds_is_there_afterwards(cells: list[tuple[str, str]]) -> None:
    found = FileRows("x.csv", "separated", ["text", "other"], [list(row) for row in cells])
    data = found.with_columns({"p": ["v"] * len(cells)})
    again = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert again == [["text", "other", "p"], *([*row, "v"] for row in cells)]


@pytest.mark.parametrize(
    ("data", "form"),
    [("text\nx\n", "separated"), ('\ufeff{"text": "x"}\n', "lines"), (' [{"text": "x"}]', "list")],
)
def test_standard_input_tells_what_it_is(data: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
    found = read_rows("-", "text")
    assert (found.form, found.texts("text", "--text-column"), found.source) == (form, ["x"], "standard input")


def test_packed_files(tmp_path: Path) -> None:
    found = rows(tmp_path, "a.csv.gz", gzip.compress(b"text\nx\n"))
    assert len(found) == 1
    assert packed_like(Path("a.csv"), b"x") == b"x" and gzip.decompress(packed_like(Path("b.jsonl.gz"), b"x")) == b"x"


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.csv", "review\nx\n", "a.csv: there is no column 'text'; the file has 'review'. Did you mean 'review'? Set --text-column."),
        ("a.jsonl", '{"review": "x"}\n', "there is no column 'text'; the file has 'review'"),
        ("a.csv", "text\n", "no rows, expected at least one"),
        ("a.csv", "", "the file is empty"),
        ("a.jsonl", " \n", "the file is empty"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": ""}\n{}\n',
            "row 2 (the first row of data is 1): the text is empty, and so is 1 of the other 2",
        ),
        ("a.jsonl", '{"text": 7}\n', "got 7 (a number), expected text. Is 'text' the column of the texts? Set --text-column."),
        ("a.jsonl", "[1, 2]\n", "row 1: got int, expected an object"),
        ("a.csv", "text,x,x\na,b,c\n", "got the columns 'x' more than once"),
        ("a.xlsx", b"PK\x03\x04", "an Excel workbook"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.csv", b"text\n\xff\n", "is not UTF-8"),
    ],
)
def test_a_mistake_is_named(name: str, data: str | bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        rows(tmp_path, name, data).texts("text", "--text-column")
    assert problem in str(error.value)


def test_a_column_that_would_be_overwritten_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="got the columns 'predicted_label', which predictions go to"):
        rows(tmp_path, "a.csv", "text,predicted_label\nx,y\nx,y\n").with_columns(NEW)


def test_columns_of_one_json_object_are_the_rows_that_training_reads(tmp_path: Path) -> None:
    text = json.dumps({"text": ["x", "y"], "label": [0, 1]})
    path = written(tmp_path, "a.json", text)
    assert read_rows(path, "text").rows == [{"text": "x", "label": 0}, {"text": "y", "label": 1}]
    assert read_table(Path(path), ["text"]).values == {"text": ["x", "y"]}
