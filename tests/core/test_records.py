"""Records: what is read is what was written, and anything else names its line."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sums import sums

from fibecfed.core.metrics import METRICS
from fibecfed.core.records import RECORDS_VERSION, EvalRecord, FailedAttempt, RoundRecord, read, to_line

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.dictionaries(TEXT, st.integers(0, 2**62), max_size=3)
MATRIX = st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=2), min_size=2, max_size=2)
CLIENTS = st.lists(TEXT, max_size=3).map(tuple)
REASONS = st.dictionaries(TEXT, TEXT, max_size=2)
ROUNDS = st.builds(
    RoundRecord,
    phase=TEXT,
    index=st.integers(0),
    number=st.integers(0),
    cohort=CLIENTS,
    bytes_down=COUNTS,
    bytes_up=COUNTS,
    fields_down=COUNTS,
    fields_up=COUNTS,
    steps=COUNTS,
    examples=COUNTS,
    loss=st.dictionaries(TEXT, NUMBERS, max_size=3),
    compute_s=st.dictionaries(TEXT, NUMBERS, max_size=3),
    failures=REASONS,
    server=st.dictionaries(TEXT, st.lists(NUMBERS, max_size=2), max_size=2),
    seconds=NUMBERS,
    notes=st.dictionaries(TEXT, st.dictionaries(TEXT, st.lists(NUMBERS), max_size=2), max_size=2),
    recomputed=CLIENTS,
    refused=CLIENTS,
    excluded=CLIENTS,
    attempts=st.lists(st.builds(FailedAttempt, CLIENTS, COUNTS, COUNTS, REASONS, CLIENTS), max_size=2).map(tuple),
)
SUMS = st.fixed_dictionaries({"confusion": MATRIX, "nll": NUMBERS, "calibration": st.lists(NUMBERS, max_size=3)})
EVALUATIONS = st.builds(
    EvalRecord,
    rounds=st.integers(0),
    clients=st.dictionaries(TEXT, SUMS, max_size=2),
    pooled=SUMS,
    pooled_validation=SUMS,
    server=SUMS,
    server_validation=SUMS,
    bytes_down=st.integers(0),
    bytes_up=st.integers(0),
    seconds=NUMBERS,
    failures=REASONS,
    recomputed=CLIENTS,
)
EVALUATION = EvalRecord(
    0, {"a": sums([[1, 0], [0, 1]])}, sums([[1, 0], [0, 1]], 0.5), sums([[0]]), sums([[2]], math.nan), sums([[0]]), 1, 2, 0.1
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.dictionaries(TEXT.filter(lambda name: name not in ("kind", "version")), TEXT, max_size=3), st.lists(ROUNDS | EVALUATIONS, max_size=3)
)
def test_records_come_back_equal(tmp_path: Path, header: dict[str, str], records: list[RoundRecord | EvalRecord]) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("".join([to_line(header), *map(to_line, records)]), encoding="utf-8")
    back_header, back = read(path)
    assert back_header == {"kind": "header", "version": RECORDS_VERSION, **header}
    assert back == records


def strict(text: str | bytes) -> Any:
    """What a parser makes of it that knows no more than JSON."""

    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=reject)


ANY_NUMBERS = st.floats()
WITH_ANY_NUMBERS = st.builds(
    replace,
    ROUNDS,
    loss=st.dictionaries(TEXT, ANY_NUMBERS, max_size=3),
    compute_s=st.dictionaries(TEXT, ANY_NUMBERS, max_size=3),
    seconds=ANY_NUMBERS,
    cpu_s=ANY_NUMBERS,
    server=st.dictionaries(TEXT, ANY_NUMBERS | st.lists(ANY_NUMBERS), max_size=2),
    notes=st.dictionaries(TEXT, st.dictionaries(TEXT, st.lists(st.lists(ANY_NUMBERS)), max_size=2), max_size=2),
) | st.builds(replace, EVALUATIONS, pooled=st.fixed_dictionaries({"confusion": MATRIX, "nll": ANY_NUMBERS}), seconds=ANY_NUMBERS)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(WITH_ANY_NUMBERS)
def test_every_line_is_strict_json_and_its_numbers_come_back_those_that_are_not_finite_as_nan(
    tmp_path: Path, record: RoundRecord | EvalRecord
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(to_line({"at": math.inf}) + to_line(record), encoding="utf-8")
    assert [strict(line)["kind"] for line in path.read_bytes().splitlines()] == ["header", json.loads(to_line(record))["kind"]]
    (back,) = read(path)[1]
    for field in dataclasses.fields(record):
        then, now = getattr(record, field.name), getattr(back, field.name)
        if field.name in ("loss", "compute_s"):
            then, now = list(then.items()), list(now.items())
            assert [name for name, _ in then] == [name for name, _ in now]
            then, now = [number for _, number in then], [number for _, number in now]
        elif field.name == "pooled":
            then, now = [then["nll"]], [now["nll"]]
        elif field.type != "float":
            continue
        else:
            then, now = [then], [now]
        assert [math.isnan(b) if not math.isfinite(a) else a == b for a, b in zip(then, now, strict=True)] == [True] * len(then)


OLD = """{"kind":"header","version":1,"metric":"f1"}
{"kind":"evaluation","rounds":3,"clients":{"0":[[1,0],[0,2]]},"pooled":[[3,1],[0,4]],"pooled_validation":[[1,0],[1,0]],"server":[[4,0],[4,0]],\
"server_validation":[[2,0],[0,0]],"loss_pooled":0.5,"loss_server":NaN,"bytes_down":7,"bytes_up":9,"seconds":0.1}
""".replace("\\\n", "")


def test_confusion_matrices_and_mean_losses_of_version_0_1_are_read_as_sums(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text(OLD + to_line(EVALUATION))  # begun by 0.1, resumed by this version
    header, (old, new) = read(tmp_path / "records.jsonl")
    assert (header["metric"], header["higher_is_better"], header["usual_metric"]) == ("accuracy", True, "f1")
    assert isinstance(old, EvalRecord) and old.clients == {"0": {"confusion": [[1, 0], [0, 2]]}}
    assert old.pooled == {"confusion": [[3, 1], [0, 4]], "nll": 4.0} and old.pooled_validation == {"confusion": [[1, 0], [1, 0]]}
    assert math.isnan(old.server["nll"]) and old.server_validation == {"confusion": [[2, 0], [0, 0]]}
    assert METRICS["loss"].of(old.pooled) == 0.5 and math.isnan(METRICS["calibration_error"].of(old.pooled))
    assert isinstance(new, EvalRecord) and new.clients == EVALUATION.clients


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_records_of_another_version_are_refused_by_name(tmp_path: Path, version: Any) -> None:
    (tmp_path / "records.jsonl").write_text(OLD.replace('"version":1', f'"version":{json.dumps(version)}'))
    with pytest.raises(ValueError, match=f"records of version {version!r}, expected one of 1, 2"):
        read(tmp_path / "records.jsonl")


@settings(max_examples=50, deadline=None)
@given(ROUNDS | EVALUATIONS)
def test_a_record_is_one_line_of_json_that_begins_with_its_kind(record: RoundRecord | EvalRecord) -> None:
    line = to_line(record)
    assert line.endswith("\n")
    assert line.encode().count(b"\n") == 1
    assert line.startswith('{"kind":"round"' if isinstance(record, RoundRecord) else '{"kind":"evaluation"')
    empty = {name for name in RARE[type(record)] if not getattr(record, name)}
    assert json.loads(line).keys() - {"kind"} == {field.name for field in dataclasses.fields(record)} - empty


def test_a_loss_that_is_not_a_number_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(to_line({}) + to_line(EVALUATION))
    (record,) = read(path)[1]
    assert isinstance(record, EvalRecord)
    assert math.isnan(record.server["nll"])


@pytest.mark.parametrize("name", ["kind", "version"])
def test_a_header_cannot_overwrite_what_says_that_it_is_one(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        to_line({name: "0.1"})


RARE = {
    RoundRecord: ("refused", "excluded", "attempts", "recomputed", "dropped", "virtual_s", "staleness"),
    EvalRecord: ("failures", "recomputed"),
}


def test_a_line_has_no_room_for_failures_where_there_were_none() -> None:
    names = json.loads(to_line(EVALUATION)).keys()
    assert "failures" not in names and "seconds" in names


GOOD = to_line({}).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "line 1: expected the header"),
        (to_line(EVALUATION).encode(), "line 1: expected the header"),
        (b'{"kind":"header","version":99}\n', "line 1: records of version 99, expected one of 1, 2"),
        (GOOD + b'{"kind":"round"', "line 2: not JSON"),
        (GOOD + GOOD, "line 2: got kind 'header'"),
        (GOOD + b'{"kind":["round"]}\n', "line 2: got kind"),
        (GOOD + to_line(EVALUATION).encode() + b"[]\n", "line 3: got list, expected a table"),
        (GOOD + b"\xff\xfe\n", "line 2: not JSON"),
        (GOOD + b'{"kind":"evaluation","rounds":1}\n', "line 2: not a record of kind 'evaluation': .*missing"),
        (GOOD + b'{"kind":"round","index":1}\n', "line 2: not a record of kind 'round': .*cohort"),
        (GOOD + to_line(EVALUATION).encode()[:-2] + b',"cpu_s":1}\n', "line 2: not a record of kind 'evaluation'"),
        (GOOD + b'{"kind":"round","cohort":[],"loss":5}\n', "line 2: not a record of kind 'round'"),
        (GOOD + b'{"kind":"round","cohort":5}\n', "line 2: not a record of kind 'round'"),
        (GOOD + to_line(EVALUATION).encode().replace(b'"rounds"', b'"round"'), "line 2: not a record of kind 'evaluation'"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)
