"""Folders of runs that are broken or incomplete: what is wrong is named with file and line, and the others are read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_runs
import pytest

from fibecfed.comparison.report import overview
from fibecfed.comparison.report.comparison import read_comparison
from fibecfed.comparison.report.conditions import conditions
from fibecfed.comparison.report.standing import standings
from fibecfed.core.errors import UserError


def test_a_half_written_record_is_named_with_file_and_line_and_the_others_are_read(folder: Path, only: Callable[..., tuple[str, ...]]):
    path = folder / "runs/sst2/voc/1/records.jsonl"
    text = path.read_text()
    path.write_text(text[: len(text) - 40])
    (problem,) = only(folder)
    assert f"{path}, line {text.count(chr(10))}: not JSON" in problem


def test_records_of_another_version_are_named(folder: Path, only: Callable[..., tuple[str, ...]]):
    path = folder / "runs/sst2/voc/1/records.jsonl"
    path.write_text(path.read_text().replace('"version":2', '"version":7', 1))
    (problem,) = only(folder)
    assert f"{path}, line 1: records of version 7, expected one of 1, 2" in problem


def test_records_whose_values_are_of_another_kind_are_named(folder: Path, only: Callable[..., tuple[str, ...]]):
    path = folder / "runs/sst2/voc/1/records.jsonl"
    path.write_text(path.read_text().replace('"pooled":{"confusion":[[', '"pooled":{"confusion":[["x",', 1))
    (problem,) = only(folder)
    assert str(path) in problem and "cannot be used" in problem


def test_a_run_without_summary_is_not_finished_and_one_that_failed_says_why(folder: Path, only: Callable[..., tuple[str, ...]]):
    (folder / "runs/sst2/voc/1/summary.json").unlink()
    (folder / "runs/sst2/lora/1/summary.json").unlink()
    (folder / "runs/sst2/lora/1/failure.json").write_text('{"why": "diverged", "reason": "loss is not finite"}')
    failed, unfinished = only(folder, 2)
    assert "sst2/lora/1: no result, diverged: loss is not finite" in failed
    assert "not finished (10 rounds recorded); fibecfed resume" in unfinished
    (folder / "runs/sst2/lora/1/failure.json").write_text('{"why": "refused", "reason": "no such key"}')
    assert "sst2/lora/1: no result, rejected: no such key" in only(folder, 2)[0]


def test_a_broken_summary_is_named_with_its_line(folder: Path, only: Callable[..., tuple[str, ...]]):
    (folder / "runs/sst2/voc/1/summary.json").write_text('{"scores": {\n"rounds": 3,\n')
    (problem,) = only(folder)
    assert "sst2/voc/1/summary.json, line 3: not JSON" in problem


def test_runs_of_the_plan_that_were_never_begun_and_empty_folders_are_missing(folder: Path):
    shutil.rmtree(folder / "runs/sst2/voc")
    for path in (folder / "runs/cola/lora/1").iterdir():
        path.unlink()
    found = read_comparison(folder)
    empty, absent = found.problems
    assert "cola/lora/1: got no records.jsonl" in empty
    assert absent == "not run yet: voc on sst2 (seed 0, 1)"


def test_a_run_under_the_folder_of_another_is_told_and_not_taken_at_its_paths_word(folder: Path, only: Callable[..., tuple[str, ...]]):
    for name, other in (("cola/lora/0", "sst2/lora/0"), ("cola/fibecfed/1", "cola/lora/1"), ("sst2/lora/1", "sst2/fibecfed/0")):
        for path in (folder / "runs" / name).iterdir():
            shutil.copy(path, folder / "runs" / other)
    kind, both, task = only(folder, 3)
    assert "cola/lora/1/records.jsonl, line 1: the records of another run" in kind and "method.kind: got fibecfed, expected lora;" in kind
    assert "sst2/fibecfed/0/records.jsonl, line 1" in both and "method.kind: got lora, expected fibecfed, seed: got 1, expected 0;" in both
    assert "sst2/lora/0/records.jsonl, line 1" in task and "data.task: got cola, expected sst2; move" in task


def test_a_place_knows_the_kind_of_a_variant_and_the_file_of_a_task_from_the_plan(folder: Path):
    plan = folder / "comparison.toml"
    plan.write_text(plan.read_text() + '[method.voc.method]\nkind = "lora"\n[task.sst2.data]\npath = "mine.csv"\n')
    for path in folder.glob("runs/sst2/*/*/records.jsonl"):
        path.write_text(path.read_text().replace('"task":"sst2","path":null', '"task":null,"path":"/data/other.csv"', 1))
    found = read_comparison(folder)
    assert len(found.runs) == 4 and len(found.problems) == 8
    assert sum("method.kind: got voc, expected lora" in problem for problem in found.problems) == 4
    assert sum("data.path: got other.csv, expected mine.csv" in problem for problem in found.problems) == 6


@pytest.mark.parametrize(
    ("left_out", "sentence"),
    [
        (lambda lines: lines[:4] + lines[5:], "line 5: got an evaluation after 3 rounds, expected one after 2"),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], "line 5: got the round with number 1, expected number 2"),
        (lambda lines: lines[:-1], "the last evaluation after 9, expected 11 rounds and one after 11, as the summary says"),
        (lambda lines: lines[:-4], "got the end after 9 rounds"),
    ],
)
def test_rounds_that_are_missing_or_come_twice_are_named_with_file_and_line(
    folder: Path, left_out: Any, sentence: str, only: Callable[..., tuple[str, ...]]
):
    path = folder / "runs/sst2/fibecfed/1/records.jsonl"
    path.write_text("".join(left_out(path.read_text().splitlines(keepends=True))))
    (problem,) = only(folder)
    assert f"{path}, line " in problem and sentence in problem and problem.endswith("; the next `fibecfed compare` repeats it")


def test_a_header_that_lacks_something_says_what(folder: Path, only: Callable[..., tuple[str, ...]]):
    path = folder / "runs/sst2/voc/1/records.jsonl"
    path.write_text(path.read_text().replace('"partition":{"00"', '"parted":{"00"', 1).replace('"local_epochs":2,', "", 1))
    (problem,) = only(folder)
    assert "records.jsonl, line 1: got a header without configuration.training.local_epochs, partition; the next" in problem
    shutil.copytree(path.parent, folder.parent / "alone")
    with pytest.raises(UserError, match=r"restore the file from a backup, or repeat the run with: fibecfed run \S+alone/config\.toml"):
        read_comparison(folder.parent / "alone")


@pytest.mark.parametrize("text", ['methods = ["fibecfed", "lora"]\ntasks = ["cola", "ss', "", 'methods = 3\ntasks = "sst2"\nseeds = []\n'])
def test_a_plan_that_tells_nothing_is_told(folder: Path, text: str):
    (folder / "comparison.toml").write_text(text)
    shutil.rmtree(folder / "runs/sst2/voc")
    found = read_comparison(folder)
    assert str(folder / "comparison.toml") in found.problems[0] and "cannot be named; restore the file, or remove it" in found.problems[0]
    assert len(found.problems) == 2 and found.problems[1] == "not run yet: voc on sst2 (seed 0, 1)"


def test_a_folder_that_cannot_be_read_is_told_and_its_runs_are_not_called_not_run_yet(folder: Path, monkeypatch: pytest.MonkeyPatch):
    scan = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("sst2/voc"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    (problem,) = read_comparison(folder).problems
    assert problem.startswith(f"{folder}/runs/sst2/voc: cannot be read (Permission denied); make it readable")


def test_a_file_that_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, only: Callable[..., tuple[str, ...]]):
    is_file = Path.is_file

    def closed(path: Path) -> bool:
        if "sst2/voc/1/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", closed)
    (problem,) = only(folder)
    assert "sst2/voc/1/summary.json: cannot be read (Permission denied)" in problem


@pytest.mark.parametrize(
    ("text", "where"), [("{\n", "tuning.json, line 2: cannot be read"), ("[]", "tuning.json: got [], expected a table")]
)
def test_broken_tuning_is_told_and_the_rest_reported(folder: Path, text: str, where: str):
    (folder / "tuning.json").write_text(text)
    found = read_comparison(folder)
    assert len(found.runs) == 12 and where in found.problems[0] and "remove it: the next `fibecfed compare`" in found.problems[0]
    assert dict(conditions(found))["Tuning"].startswith("not known of tuning.json")


ROW = {"tried": [{"rate": 0.0005, "score": 0.81}], "chosen": 0.0005, "source": "a paper"}


@pytest.mark.parametrize(
    "row", [3, {"tried": 3, "chosen": 1.0}, {"tried": [3], "chosen": 1.0}, {**ROW, "chosen": "x"}, {**ROW, "rates": 3}]
)
def test_a_row_of_tuning_that_tells_nothing_is_told(folder: Path, row: Any):
    (folder / "tuning.json").write_text(json.dumps({"lora": row, "voc": ROW}))
    found = read_comparison(folder)
    assert "tuning.json: lora: got " in found.problems[0] and "expected what was tried and chosen" in found.problems[0]
    assert dict(conditions(found))["Tuning"] == (
        "1 rate tried for each of 1 method; see the table; not known of lora: see what is missing from this report; "
        "none recorded of fibecfed, at the rate of their configuration"
    )
    assert len(overview.tuning(standings(found)).rows) == 1


def test_the_tuning_of_comparisons_below_one_folder_is_told_too(tmp_path: Path):
    for name, methods in (("a", ("fibecfed", "lora")), ("b", ("voc", "lora")), ("c", ("slw",))):
        made_runs.write_comparison(tmp_path / name, methods, ("rte",) if name == "a" else ("sst2",), (0,), rounds=2)
    (tmp_path / "a/tuning.json").write_text(json.dumps({"fibecfed": ROW, "lora": ROW}))
    (tmp_path / "b/tuning.json").write_text(json.dumps({"voc": ROW, "lora": ROW}))
    found = read_comparison(tmp_path)
    assert list(found.tuning) == ["fibecfed", "lora", "voc"]
    told = dict(conditions(found))["Tuning"]
    assert told == "1 rate tried for each of 3 methods; see the table; none recorded of slw, at the rate of their configuration"
    (tmp_path / "b/tuning.json").write_text(json.dumps({"lora": {**ROW, "chosen": 1.0}}))
    assert list(read_comparison(tmp_path).tuning) == ["fibecfed", "lora (a)", "lora (b)"]
    assert list(read_comparison(tmp_path / "b/runs/sst2").tuning) == ["lora"]
