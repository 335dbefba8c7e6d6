"""Whatever a program writes as CSV, TSV, JSON, JSON lines or parquet: the rows read are those written, or a sentence says why not.

FIBECFED_FUZZ_EXAMPLES sets how many files each test makes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import string
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fibecfed.core.errors import UserError
from fibecfed.data.user_files import read_split
from fibecfed.data.values import Columns, RawSplit

FUZZ = settings(
    max_examples=int(os.environ.get("FIBECFED_FUZZ_EXAMPLES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
COLUMNS = Columns("text", None, "label", "who")
SPACES = "".join(chr(code) for code in (*range(0x2000, 0x200E), 0x202F, 0x205F, 0x2060, 0xFEFF, 0xAD))
NAN_WORDS = ("NA", "nan", "NaN", "None", "null", "N/A", "", "#N/A", "-", "inf", "true", "False")
ODD = (
    *("caf\u00e9", "cafe\u0301", "a\u00a0b", "\u200bzero", "\uff21\uff22", "\U0001f642", "word " * 40),
    *(" lead", "trail ", '"quoted"', 'in "the" middle', "it's", "'x'"),
)
PIECES = st.sampled_from([*'",;|\t\n ', '""', "\r\n", "a", "bc", "é", "1", "0", ".", "\\", "NA", "\u2028", "=", "#"])
TEXTS = st.lists(PIECES, max_size=8).map("".join) | st.sampled_from([*NAN_WORDS, *ODD]) | st.text(max_size=12)
LABELS = st.sampled_from(["pos", "neg", "pos ", "Pos", "p\u00f6s", "po\u0308s", "1", "01", "2", "-1", "1.0", "x,y", 'say "no"', *NAN_WORDS])
ROWS = st.lists(st.tuples(TEXTS, LABELS, st.sampled_from(["a", "b", " a", "A", "1", "01", "x;y"])), min_size=1, max_size=6)


def named(value: str) -> str:
    """A label or client as it is to be read."""
    return unicodedata.normalize("NFC", value).strip(f"{string.whitespace}\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u200b\u3000\u1680{SPACES}")


def plain_unicode(value: str) -> bool:
    return all(not 0xD800 <= ord(character) <= 0xDFFF for character in value)


def read(path: Path) -> RawSplit | None:
    """What is read; None for a file that is rejected in a sentence which shows no long value whole."""
    try:
        found = read_split(path, COLUMNS)
    except UserError as error:
        assert str(error).startswith(str(path)) and len(str(error)) < len(str(path)) + 2500, str(error)
        assert "word " * 20 not in str(error)
        return None
    assert not any("word " * 20 in note for note in (found.about, *found.notes))
    return found


def is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def sound(rows: list[tuple[str, str, str]]) -> bool:
    """Nothing is missing and texts are not all numbers: such a table must be read."""
    return all(named(value) for row in rows for value in row) and not all(is_number(row[0]) for row in rows)


def same(found: RawSplit, rows: list[tuple[str, str, str]]) -> bool:
    """Whether just these rows were read, labels and clients as `named` has them, labels that are all numbers as such."""
    texts, labels, clients = (list(column) for column in zip(*rows, strict=True))
    as_read = [named(label) for label in labels]
    numbers = all(isinstance(label, int) for label in found.labels)
    alike = (
        [float(label) for label in as_read] == list(found.labels) if numbers and all(map(is_number, as_read)) else as_read == found.labels
    )
    return found.texts == texts and alike and found.clients == [named(client) for client in clients]


def warned_of_quotes(found: RawSplit) -> bool:
    return any("quotation marks" in note for note in found.notes)


@FUZZ
@given(
    rows=ROWS,
    separator=st.sampled_from(",;\t|"),
    extension=st.sampled_from([".csv", ".tsv", ".txt", ".csv.gz"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"]),
    header=st.sampled_from([["text", "label", "who"], [" text", "label ", "who"], ["id", "text", "label", "who", ""]]),
)
def test_a_table_that_a_csv_writer_wrote_is_read_as_it_was(tmp_path, rows, separator, extension, quoting, end, encoding, header):
    rows = [tuple(value if end == "\r\n" else value.replace("\r", "") for value in row) for row in rows]
    assume(all(map(plain_unicode, (value for row in rows for value in row))))
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerow(header)
    for number, row in enumerate(rows):
        writer.writerow(row if len(header) == 3 else [number, *row, ""])
    text = out.getvalue()
    data = text.encode(encoding, errors="replace")
    if encoding == "latin-1":
        assume(data.decode(encoding) == text and (text.isascii() or data.decode("utf-8", errors="replace").count("\ufffd")))
    path = tmp_path / f"a{extension}"
    path.write_bytes(gzip.compress(data) if extension.endswith(".gz") else data)
    found = read(path)
    readable = sound(rows) and "\0" not in text and (encoding != "latin-1" or text.isascii())
    if found is None:
        assert not readable
    else:
        assert same(found, rows) or warned_of_quotes(found)


def looks_quoted(values: list[str]) -> bool:
    """A column without quoting that cannot be told from one with it: marks around every value, or doubled inside of marks."""
    enclosed = [len(value) > 1 and value[0] == value[-1] == '"' for value in values]
    return all(enclosed) or any(mark and '""' in value[1:-1] for mark, value in zip(enclosed, values, strict=True))


@FUZZ
@given(
    rows=ROWS,
    separator=st.sampled_from("\t\t,;|"),
    extension=st.sampled_from([".tsv", ".csv", ".txt"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_table_written_without_quoting_loses_no_row(tmp_path, rows, separator, extension, end):
    rows = [tuple("".join(c for c in value if c not in f"\r\n{separator}") for value in row) for row in rows]
    assume(all(map(plain_unicode, (value for row in rows for value in row))) and not any("\0" in value for row in rows for value in row))
    path = tmp_path / f"a{extension}"
    path.write_bytes(end.join([separator.join(row) for row in [("text", "label", "who"), *rows]]).encode() + end.encode())
    found = read(path)
    if found is not None and not any(looks_quoted(list(column)) for column in zip(*rows, strict=True)):
        bare = [tuple(value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value for value in row) for row in rows]
        as_csv = separator != "\t" and same(found, bare)  # `"a b",pos` among rows without marks is a CSV that quotes what it need not
        assert same(found, rows) or as_csv or warned_of_quotes(found)


VALUES = TEXTS | st.integers(-3, 3) | st.booleans() | st.none() | st.sampled_from([0.5, 2.0, math.nan, math.inf, 10**20]) | st.just(["x"])
OBJECTS = st.lists(
    st.fixed_dictionaries({"text": TEXTS | VALUES, "label": LABELS | VALUES, "who": LABELS | VALUES}, optional={"more": VALUES}),
    min_size=1,
    max_size=6,
)


def as_text(value: Any) -> str:
    """A label or client as it is named."""
    if isinstance(value, bool):
        return str(value)
    return named(str(int(value) if isinstance(value, float) and value.is_integer() else value))


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not named(value)) or (isinstance(value, float) and math.isnan(value))


def of_objects(found: RawSplit | None, rows: list[dict[str, Any]]) -> None:
    """Rejected if and only if there is a reason, and else as it was."""
    texts, labels, clients = ([row.get(name) for row in rows] for name in ("text", "label", "who"))
    reason = (
        any(map(missing, (*texts, *labels, *clients)))
        or not all(isinstance(text, str) and plain_unicode(text) for text in texts)
        or not all(isinstance(label, int | str) or (isinstance(label, float) and label.is_integer()) for label in labels)
        or any(isinstance(client, list) for client in clients)
        or any(isinstance(name, str) and not plain_unicode(name) for name in (*labels, *clients))
    )
    if found is None:
        assert reason
        return
    assert not reason
    assert (
        found.texts == texts and found.clients == list(map(as_text, clients)) and list(map(str, found.labels)) == list(map(as_text, labels))
    )


@FUZZ
@given(
    rows=OBJECTS,
    form=st.sampled_from(["lines", "list", "lists by column", "objects by column"]),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_json_in_each_form_is_read_as_it_was(tmp_path, rows, form, ascii_only, end):
    if form == "lines":
        text = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + end
    elif form == "list":
        text = json.dumps(rows, ensure_ascii=ascii_only, indent=1)
    else:
        columns = {name: [row[name] for row in rows] for name in ("text", "label", "who")}
        by_row = {name: {str(n): value for n, value in enumerate(values)} for name, values in columns.items()}
        text = json.dumps(columns if form == "lists by column" else by_row, ensure_ascii=ascii_only)
    assume(ascii_only or plain_unicode(text))
    path = tmp_path / ("a.jsonl" if form == "lines" else "a.json")
    path.write_bytes(text.encode())
    if form == "lines" and len(rows) == 1 and all(isinstance(rows[0][name], list) for name in ("text", "label", "who")):
        return  # one line that is a list per column
    of_objects(read(path), rows)


@FUZZ
@given(rows=ROWS, kind=st.sampled_from(["text", "number", "truth value", "dictionary", "nothing"]), spaced=st.booleans())
def test_parquet_is_read_as_it_was(tmp_path, rows, kind, spaced):
    assume(all(map(plain_unicode, (value for row in rows for value in row))))
    made: dict[str, Any] = {
        "text": lambda label: label,
        "number": lambda label: len(label) - 1.0,
        "truth value": lambda label: len(label) > 3,
        "dictionary": lambda label: label,
        "nothing": lambda label: label or None,
    }
    objects = [{"text": text, "label": made[kind](label), "who": who} for text, label, who in rows]
    columns: dict[str, Any] = {name: pa.array([row[name] for row in objects]) for name in ("text", "label", "who")}
    if kind == "dictionary":
        columns["label"] = columns["label"].dictionary_encode()
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({f" {name}" if spaced else name: column for name, column in columns.items()}), path)
    of_objects(read(path), objects)


@FUZZ
@given(data=st.data(), extension=st.sampled_from([".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet", ".csv.gz"]))
def test_damaged_files_end_in_a_sentence_or_in_rows(tmp_path, data, extension):
    """Bytes are cut off, changed or repeated; columns are missing or there twice."""
    more = data.draw(st.lists(st.sampled_from(["text", "label", "x", "Text "]), max_size=2))
    names = data.draw(st.permutations(["text", "label", "who", *more]))
    names = names[: data.draw(st.integers(0, len(names)))]
    lines = [names, *([f"good {n}" if "text" in name else "ab"[n % 2] for name in names] for n in range(4))]
    if extension == ".parquet":
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pa.Table.from_arrays([pa.array(column[1:]) for column in zip(*lines, strict=True)], names), sink)
        whole = sink.getvalue()
    elif "json" in extension:
        pairs = ([f"{json.dumps(name)}: {json.dumps(value)}" for name, value in zip(names, row, strict=True)] for row in lines[1:])
        whole = "\n".join(f"{{{', '.join(row)}}}" for row in pairs).encode()
    else:
        whole = "\n".join("\t".join(row) for row in lines).encode()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            place = data.draw(st.integers(0, len(damaged) - 1))
            damaged[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    written = gzip.compress(bytes(damaged)) if extension.endswith(".gz") else bytes(damaged)
    path = tmp_path / f"a{extension}"
    path.write_bytes(written[: data.draw(st.integers(0, len(written)))] if data.draw(st.booleans()) else written)
    found = read(path)
    if damaged == whole and path.read_bytes() == written and found is not None:
        assert found.texts == [f"good {n}" for n in range(4)]
        assert all(names.count(name) == 1 for name in ("text", "label", "who"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_each_kind_give_the_same_rows(tmp_path, end):
    path = tmp_path / "a.csv"
    path.write_bytes(end.join(["text,label,who", '"one\ntwo",x,a', "three,y,b"]).encode())
    assert read_split(path, COLUMNS).texts == ["one\ntwo", "three"]
