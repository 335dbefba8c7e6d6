from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from fibecfed.core.errors import UserError
from fibecfed.data.files import read_split
from fibecfed.data.values import Columns

COLUMNS = Columns("text", None, "label", None)


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_csv_keeps_quotes_commas_and_line_breaks_and_skips_a_byte_order_mark(tmp_path):
    path = write(tmp_path, "a.csv", '\ufefftext,label,more\n"a, ""b""\nc",pos,1\n"NA",neg,x\n')
    raw = read_split(path, COLUMNS)
    assert raw.texts == ['a, "b"\nc', "NA"]
    assert raw.labels == ["pos", "neg"]


def test_csv_tsv_json_lines_json_and_parquet_give_the_same(tmp_path):
    rows = [{"text": "good film", "label": 1, "who": "07"}, {"text": "bad\tfilm", "label": 0, "who": "8"}]
    columns = Columns("text", None, "label", "who")
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    files = {
        "a.csv": "who,label,text\n07,1,good film\n8,0,bad\tfilm\n",
        "a.tsv": 'who\tlabel\ttext\n07\t1\tgood film\n8\t0\t"bad\tfilm"\n',
        "a.jsonl": "\n".join(map(json.dumps, rows)) + "\n\n",
        "a.json": json.dumps(rows, indent=1),
    }
    for name, text in files.items():
        write(tmp_path, name, text)
    for name in [*files, "a.parquet"]:
        raw = read_split(tmp_path / name, columns)
        assert (raw.texts, raw.labels, raw.clients) == (["good film", "bad\tfilm"], [1, 0], ["07", "8"]), name


def test_labels_keep_their_kind(tmp_path):
    assert read_split(write(tmp_path, "a.csv", "text,label\na,true\nb,false\n"), COLUMNS).labels == ["true", "false"]
    assert read_split(write(tmp_path, "b.csv", "text,label\na,1.0\nb,2.0\n"), COLUMNS).labels == [1, 2]
    assert read_split(write(tmp_path, "c.csv", "text,label\na,1\nb,x\n"), COLUMNS).labels == ["1", "x"]
    assert read_split(write(tmp_path, "d.jsonl", '{"text":"a","label":true}\n{"text":"b","label":false}'), COLUMNS).labels == [
        "True",
        "False",
    ]
    assert read_split(write(tmp_path, "e.jsonl", '{"text":"a","label":"10"}\n{"text":"b","label":"9"}'), COLUMNS).labels == ["10", "9"]


@pytest.mark.parametrize("written", [["01", "02"], ["007", "7"], ["+1", "-1"], ["1", "02"], ["9" * 5000, "1"]])
def test_labels_of_a_csv_that_are_no_plain_numbers_stay_what_is_written(tmp_path, written):
    path = write(tmp_path, "a.csv", "text,label\n" + "".join(f"a,{label}\n" for label in written))
    assert read_split(path, COLUMNS).labels == written


def test_a_text_longer_than_a_megabyte_is_read(tmp_path):
    long = "word \n" * 300_000
    assert read_split(write(tmp_path, "a.csv", f'text,label\n"{long}",x\nb,y\n'), COLUMNS).texts[0] == long


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", ["a.csv", "empty"]),
        ("a.csv", "text,label\n", ["a.csv", "no rows"]),
        ("a.jsonl", "", ["a.jsonl", "no rows"]),
        ("a.doc", "x", [".doc", ".csv, .tsv, .txt, .jsonl, .json, .parquet"]),
        ("a.csv", "texts,label\na,1\nb,2\n", ["no column 'text'", "'texts', 'label'", "Did you mean 'texts'?", "data.text_column"]),
        ("a.jsonl", '{"text":"a","lable":1}\n', ["no column 'label'", "Did you mean 'lable'?"]),
        ("a.csv", "text,label,text\na,1,b\nb,2,c\n", ["a.csv", "got 2 columns 'text', expected one", "rename"]),
        ("a.csv", "text,label\na,1\n  ,2\n", ["a.csv", "'text'", "row 2", "empty"]),
        ("a.csv", 'text,label\na,1\n"",2\n', ["row 2", "empty"]),
        ("a.jsonl", '{"text":"a","label":1}\n{"label":2}\n', ["'text'", "row 2", "null"]),
        ("a.csv", "text,label\n1,1\n2,2\n", ["'text'", "row 1", "a number", "expected text"]),
        ("a.jsonl", '{"text":["a"],"label":1}\n', ["list", "expected text"]),
        ("a.csv", "text,label\na,x\nb,\n", ["'label'", "row 2", "missing"]),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b","label":null}\n', ["'label'", "row 2", "missing"]),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b","label":NaN}\n', ["'label'", "row 2", "missing"]),
        ("a.csv", "text,label\na,1\nb,0.5\n", ["'label'", "row 2", "0.5", "integer"]),
        ("a.jsonl", '{"text":"a","label":{"x":1}}\n', ["'label'", "row 1", "dict"]),
        ("a.csv", "text,label\na,1,2\n", ["a.csv", "cannot be read as CSV", "quotes"]),
        ("a.csv", b"text,label\n\xff\xfe,1\n", ["UTF"]),
        ("a.jsonl", '{"text":"a","label":1}\n{oops\n', ["a.jsonl, line 2", "not JSON"]),
        ("a.jsonl", '{"text":"a","label":1}\n' + "[" * 100_000, ["a.jsonl, line 2", "not JSON"]),
        ("a.json", "[" * 100_000, ["a.json", "not JSON"]),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b \\ud83d","label":1}', ["'text', row 2", r"'\ud83d', half of a character"]),
        ("a.jsonl", '{"text":"a","label":"\\ude00"}', ["'label', row 1", r"'\ude00', half of a character"]),
        ("a.json", "[1, 2]", ["row 1", "int", "object"]),
        ("a.parquet", "no parquet", ["a.parquet", "cannot be read as parquet"]),
    ],
)
def test_a_mistake_in_a_file_is_named_with_file_column_and_row(tmp_path, name, text, said):
    path = write(tmp_path, name, text)
    with pytest.raises(UserError) as error:
        read_split(path, COLUMNS)
    for words in said:
        assert words in str(error.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_split(tmp_path / "none.csv", COLUMNS)
    with pytest.raises(UserError, match="is a folder"):
        read_split(tmp_path, COLUMNS)


def test_a_missing_client_is_named(tmp_path):
    path = write(tmp_path, "a.csv", "text,label,who\na,1,x\nb,2,\n")
    with pytest.raises(UserError, match="'who', row 2"):
        read_split(path, Columns("text", None, "label", "who"))


def test_half_a_character_in_a_client_is_refused_and_a_whole_one_is_not(tmp_path):
    columns = Columns("text", None, "label", "who")
    assert read_split(write(tmp_path, "a.jsonl", r'{"text":"a","label":1,"who":"\ud83d\ude00"}'), columns).clients == ["😀"]
    with pytest.raises(UserError, match=r"'who', row 1.*half of a character"):
        read_split(write(tmp_path, "a.jsonl", r'{"text":"a","label":1,"who":"\ud83d"}'), columns)
