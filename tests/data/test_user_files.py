from __future__ import annotations

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet
import pytest

from fibecfed.core.errors import UserError
from fibecfed.data.user_files import read_split
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
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b \\ud83d","label":1}', ["'text', row 2", r"'\ud83d', an unpaired surrogate"]),
        ("a.jsonl", '{"text":"a","label":"\\ude00"}', ["'label', row 1", r"'\ude00', an unpaired surrogate"]),
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
    with pytest.raises(UserError, match=r"'who', row 1.*an unpaired surrogate"):
        read_split(write(tmp_path, "a.jsonl", r'{"text":"a","label":1,"who":"\ud83d"}'), columns)


# ---- files as the world writes them

TWO = '"good film",pos\nbad film,neg\n'


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars"), (",", "commas")])
@pytest.mark.parametrize("extension", [".csv", ".tsv", ".txt"])
def test_the_separator_is_the_one_that_gives_the_columns(tmp_path, separator, name, extension):
    text = f"text{separator}label\ngood, film{separator}pos\nbad film{separator}neg\n" if separator != "," else "text,label\n" + TWO
    raw = read_split(write(tmp_path, f"a{extension}", text), COLUMNS)
    assert raw.labels == ["pos", "neg"] and raw.texts[1] == "bad film"
    assert f"2 rows, separated by {name}, UTF-8; none left out" in raw.about and raw.notes == ()


def test_a_column_that_is_not_there_is_missed_under_the_separator_that_makes_most_columns(tmp_path):
    path = write(tmp_path, "a.csv", "review;stars\ngood, very good;5\n")
    with pytest.raises(UserError, match=r"no column 'text'; the file has 'review', 'stars'. Did you mean 'review'\?"):
        read_split(path, COLUMNS)


@pytest.mark.parametrize(
    ("header", "hint"),
    [("Text,label", "'Text'"), ("sentence,label", "'sentence'"), ("txt,label", "'txt'"), ("text,class", "'class'"), ("site,label", None)],
)
def test_the_column_that_is_likely_meant_is_named_and_no_other(tmp_path, header, hint):
    with pytest.raises(UserError) as error:
        read_split(write(tmp_path, "a.csv", f"{header}\na,b\n"), COLUMNS)
    assert ("Did you mean" in str(error.value)) == (hint is not None) and (hint or "") in str(error.value)


def test_quotation_marks_that_are_never_closed_are_parts_of_texts_and_are_told(tmp_path):
    lines = ['"Never closed\tpos', "plain\tneg", '"Nor this one\tpos', 'he said "no"\tneg', '"Great film."\tpos']
    raw = read_split(write(tmp_path, "a.tsv", "\n".join(["text\tlabel", *lines])), COLUMNS)
    assert raw.texts == [line.split("\t")[0] for line in lines] and raw.labels == ["pos", "neg"] * 2 + ["pos"]
    assert raw.notes[0].endswith("quotation marks are read as parts of the texts, not as enclosing them (rows 1, 3, 5 begin with one)")
    assert "without quoting" in raw.about


def test_a_mark_that_swallows_rows_is_refused_or_told_with_the_row(tmp_path):
    with pytest.raises(UserError, match=r"row 2 \(it begins in line 3\): has text after a closing quotation mark"):
        read_split(write(tmp_path, "a.csv", 'text,label\n"a, ""b""",pos\n"c" d,neg\n'), COLUMNS)
    with pytest.raises(UserError, match=r"row 1 \(it begins in line 2\): has a quotation mark that is never closed"):
        read_split(write(tmp_path, "a.csv", 'text,label\n"a, b,pos\nc,neg\n'), COLUMNS)
    raw = read_split(write(tmp_path, "a.csv", 'text,label\n"a,pos\nb",neg\nc,pos\n'), COLUMNS)
    assert len(raw.texts) == 2 and "rows 1 hold a text in quotation marks over several lines" in raw.notes[0]
    assert read_split(write(tmp_path, "a.csv", 'text,label\n"a\nb, c\nd",neg\n'), COLUMNS).notes == ()


def test_spaces_behind_separators_are_no_parts_of_quoted_values(tmp_path):
    raw = read_split(write(tmp_path, "a.csv", 'text, label\n"a, b", "pos"\n"c", neg\n'), COLUMNS)
    assert (raw.texts, raw.labels) == (["a, b", "c"], ["pos", "neg"]) and "spaces after separators are ignored" in raw.notes[0]


def test_names_are_read_without_spaces_and_in_one_form_and_it_is_told(tmp_path):
    path = write(tmp_path, "a.csv", " text ,label\u00a0,who\na,pos ,Zu\u0308rich\nb,\u200bpos,Z\u00fcrich\nc,Pos,Bern\n")
    raw = read_split(path, Columns("text", None, "label", "who"))
    assert raw.labels == ["pos", "pos", "Pos"] and raw.clients == ["Z\u00fcrich", "Z\u00fcrich", "Bern"]
    labels, clients = raw.notes
    assert "column 'label': 2 of 3 names" in labels and "'pos ' as 'pos'" in labels and r"'\u200bpos' as 'pos'" in labels
    assert "column 'who': 1 of 3 names" in clients and r"'Zu\u0308rich' as 'Zürich'" in clients


def test_labels_that_are_numbers_in_some_rows_are_told(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text":"a","label":1}\n{"text":"b","label":"x"}\n')
    assert "1 of 2 labels are numbers, the others text" in read_split(path, COLUMNS).notes[0]


def test_words_for_missing_values_are_labels_and_texts_like_any_other(tmp_path):
    words = ["NA", "nan", "None", "null", "N/A"]
    for name, text in {
        "a.csv": "text,label\n" + "".join(f"{word},{word}\n" for word in words),
        "a.jsonl": "\n".join(json.dumps({"text": word, "label": word}) for word in words),
    }.items():
        raw = read_split(write(tmp_path, name, text), COLUMNS)
        assert raw.texts == raw.labels == words


TABLE = {"text": {"0": "good film", "1": "bad film"}, "label": {"0": "pos", "1": "neg"}}


@pytest.mark.parametrize(
    ("value", "how"),
    [
        (TABLE, "an object per column"),
        ({name: list(column.values()) for name, column in TABLE.items()}, "a list per column"),
        ([{name: column[row] for name, column in TABLE.items()} for row in "01"], "a list of objects"),
    ],
)
def test_json_is_read_by_rows_and_by_columns(tmp_path, value, how):
    for indent in (None, 1):
        raw = read_split(write(tmp_path, "a.json", json.dumps(value, indent=indent)), COLUMNS)
        assert (raw.texts, raw.labels) == (["good film", "bad film"], ["pos", "neg"]) and how in raw.about


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"columns": ["text", "label"], "data": [["a", "x"]]}, "one object with the keys 'columns', 'data', expected a list of objects"),
        ({"0": {"text": "a", "label": "x"}}, 'orient="records"'),
        ({"text": ["a", "b"], "label": ["x"]}, "columns of 1, 2 values, expected columns of one length"),
        ({"text": {"0": "a"}, "label": {"1": "x"}}, "column 'label': got other rows than in column 'text'"),
        ({"text": ["a"]}, "no column 'label'"),
    ],
)
def test_json_in_another_form_is_refused_with_the_form_that_is_read(tmp_path, value, said):
    with pytest.raises(UserError) as error:
        read_split(write(tmp_path, "a.json", json.dumps(value)), COLUMNS)
    assert said in str(error.value)


def test_a_key_that_stands_twice_in_an_object_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"line 1: not JSON .the key 'text' occurs twice in one object"):
        read_split(write(tmp_path, "a.jsonl", '{"text":"a","label":"x","text":"b"}\n{"text":"c","label":"y"}'), COLUMNS)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_an_encoding_with_a_mark_is_read_and_another_is_refused_by_line(tmp_path, encoding):
    path = write(tmp_path, "a.csv", "text,label\ncafé,x\nb,y\n".encode(encoding))
    if encoding == "utf-16-le":
        with pytest.raises(UserError, match=r"NUL character.*UTF-16 without its byte order mark"):
            read_split(write(tmp_path, "a.csv", "text,label\na,x\n".encode(encoding)), COLUMNS)
    else:
        assert read_split(path, COLUMNS).texts[0] == "café"
    with pytest.raises(UserError, match="line 2: byte 0xe9 at position 14 is not UTF-8, but perhaps Latin-1"):
        read_split(write(tmp_path, "a.csv", "text,label\ncafé,x\n".encode("latin-1")), COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.xlsx", b"PK\x03\x04rest", "an Excel workbook (.xlsx); save the sheet as CSV"),
        ("a.csv", b"PK\x03\x04rest", "an Excel workbook (.xlsx); save the sheet as CSV"),
        ("a.csv", gzip.compress(b"text,label\na,x\n", mtime=0), "compressed with gzip; name it .gz"),
        ("a.csv.gz", b"text,label\na,x\n", "not a complete gzip file"),
        ("a.csv.gz", gzip.compress(b"text,label\na,x\n", mtime=0)[:-4], "not a complete gzip file"),
        ("a.csv", b"PAR1....PAR1", "a parquet file; name it .parquet"),
        ("a.csv.bz2", b"BZh91AY", "compressed with bzip2; decompress it"),
    ],
)
def test_what_is_no_table_is_refused_by_what_it_is(tmp_path, name, content, said):
    with pytest.raises(UserError) as error:
        read_split(write(tmp_path, name, content), COLUMNS)
    assert said in str(error.value)


def test_a_packed_table_is_read(tmp_path):
    assert read_split(write(tmp_path, "a.tsv.gz", gzip.compress(b"text\tlabel\na\tx\nb\ty\n", mtime=0)), COLUMNS).texts == ["a", "b"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\na,x\n")
    path.chmod(0)
    with pytest.raises(UserError, match=r"cannot be read .Permission denied"):
        read_split(path, COLUMNS)


def test_a_pipe_is_called_one(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"the file is a pipe.*write what it gives to a file first"):
        read_split(tmp_path / "a.csv", COLUMNS)


HOLES = "text,label\na,x\n ,y\nc,\nd,y\n\u200b,x\n"


def test_empty_texts_are_all_named_at_once(tmp_path):
    path = write(tmp_path, "a.csv", HOLES)
    with pytest.raises(UserError, match=r"row 2 .*the text is empty, and so is 1 of the other 4 \(row 5\).*data\.skip_empty"):
        read_split(path, COLUMNS)


def test_rows_without_text_or_label_are_left_out_by_choice_and_counted(tmp_path):
    raw = read_split(write(tmp_path, "a.csv", HOLES), Columns("text", None, "label", None, skip_empty=True))
    assert (raw.texts, raw.labels) == (["a", "d"], ["x", "y"])
    assert "5 rows, separated by commas, UTF-8; 3 of them left out" in raw.about
    assert raw.notes[0].endswith("3 of 5 rows are left out, which have no text or no label: rows 2, 3, 5")
    # rows are those of the file
    path = write(tmp_path, "a.jsonl", '{"text":"","label":1}\n{"text":"b","label":0.5}\n')
    with pytest.raises(UserError, match="row 2"):
        read_split(path, Columns("text", None, "label", None, skip_empty=True))
    with pytest.raises(UserError, match="none of the 1 rows has both"):
        read_split(write(tmp_path, "b.csv", "text,label\n,x\n"), Columns("text", None, "label", None, skip_empty=True))


@pytest.mark.parametrize(
    ("who", "said"),
    [("NaN", "the client is missing"), ("null", "the client is missing"), ("[1]", "a client of type list"), ('" "', "missing")],
)
def test_a_client_without_a_name_is_refused(tmp_path, who, said):
    path = write(tmp_path, "a.jsonl", f'{{"text":"a","label":1,"who":{who}}}')
    with pytest.raises(UserError, match=said):
        read_split(path, Columns("text", None, "label", "who"))


def test_a_client_that_is_a_whole_number_has_one_name_in_every_type(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text":"a","label":1,"who":7}\n{"text":"b","label":0,"who":7.0}\n{"text":"b","label":0,"who":"7"}')
    assert read_split(path, Columns("text", None, "label", "who")).clients == ["7", "7", "7"]


def test_two_columns_that_differ_in_spaces_alone_are_refused(tmp_path):
    with pytest.raises(UserError, match="got 2 columns 'text'"):
        read_split(write(tmp_path, "a.csv", "text, text,label\na,b,x\n"), COLUMNS)


SECRET = "confidential " * 40


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", f"{SECRET},x\n{SECRET},y\n"),
        ("a.csv", f'text,label\n"{SECRET}" and, {SECRET},"x\n'),
        ("a.csv", f"text,label\na,{SECRET},1\n"),
        ("a.json", json.dumps({SECRET: [SECRET]})),
        ("a.json", json.dumps([SECRET])),
        ("a.jsonl", json.dumps({"text": {"a": SECRET}, "label": 1}) + "\n" + json.dumps({"text": SECRET, "label": 1})),
        ("a.jsonl", f'{{"text": "{SECRET}'),
        ("a.jsonl", json.dumps({"text": "a", "label": [SECRET]})),
    ],
)
def test_no_message_shows_a_text_whole(tmp_path, name, text):
    with pytest.raises(UserError) as error:
        read_split(write(tmp_path, name, text), COLUMNS)
    assert "confidential " * 8 not in str(error.value) and len(str(error.value)) < 1000
