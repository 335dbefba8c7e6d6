"""Folders that an earlier version left behind: they are read, or refused in a sentence, and a run's numbers are still those.

tests/helpers/frozen_runs.py says how they were made. Numbers are compared with a tolerance: another processor rounds otherwise.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from frozen_runs import METHODS, ROUNDS_BEFORE_STOP, by_default, config
from safetensors.torch import load_file

from fibecfed import session
from fibecfed.comparison.report.comparison import read_comparison
from fibecfed.comparison.runner.command import compare_in
from fibecfed.comparison.runner.read import load
from fibecfed.core import records
from fibecfed.core.clock import Network
from fibecfed.core.errors import UserError
from fibecfed.core.metrics import offered_by
from fibecfed.core.wire import decode, encode
from fibecfed.engine.evaluation import every_score
from fibecfed.exits import console

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "message.bin").is_file())
TOLERANCE = 2e-3  # of numbers that learning rate 0.05 moved by about 0.5


@pytest.fixture(params=VERSIONS)
def left(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a version left, with the folder that its paths are relative to as the current one."""
    shutil.copytree(HERE / request.param, tmp_path / "left")
    monkeypatch.chdir(tmp_path / "left")
    return tmp_path / "left"


def adapters(run: Path) -> dict[str, torch.Tensor]:
    """Every saved tensor of a run, by folder and name."""
    found = {}
    for file in sorted(run.rglob("adapter*.safetensors")):
        found |= {f"{file.parent.relative_to(run)} {name}": value for name, value in load_file(file).items()}
    return found


def same_numbers(run: Path, then: Path) -> None:
    now, before = adapters(run), adapters(then)
    assert now.keys() == before.keys() and now
    for name, value in now.items():
        torch.testing.assert_close(value, before[name], atol=TOLERANCE, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", METHODS)
def test_a_finished_run_is_read(left: Path, kind: str) -> None:
    summary, was_finished = session.resume(left / "finished" / kind)
    assert was_finished and summary["method"] == kind
    header, rows = records.read(left / "finished" / kind / "records.jsonl")
    assert header["configuration"]["method"]["kind"] == kind
    assert sum(isinstance(row, records.RoundRecord) for row in rows) == summary["scores"]["rounds"]
    assert len(adapters(left / "finished" / kind)) > 0


REFUSED = ("fedpeptao",)
"""Methods whose server's state holds other things now."""


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind not in REFUSED])
def test_an_interrupted_run_goes_on_to_the_numbers_of_the_finished_one(left: Path, kind: str) -> None:
    out = left / "interrupted" / kind
    assert session.completed_rounds(out, config(kind)) == ROUNDS_BEFORE_STOP
    summary, was_finished = session.resume(out)
    assert not was_finished
    then = json.loads((left / "finished" / kind / "summary.json").read_text())
    assert summary["scores"]["rounds"] == then["scores"]["rounds"]
    same_numbers(out, left / "finished" / kind)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_interrupted_run_that_cannot_be_read_is_refused_by_name_and_left_alone(left: Path, kind: str) -> None:
    out = left / "interrupted" / kind
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(
        UserError,
        match=r"checkpoint-00000003\.json: .* as fibecfed 0\.1\.0 wrote it, which this version cannot read .*\(commit dbe878d665e3\)",
    ):
        session.resume(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "lock"} == before


@pytest.mark.parametrize("kind", METHODS)
def test_a_run_of_today_has_the_same_numbers(left: Path, kind: str) -> None:
    summary = session.start(config(kind), left / "today")
    then = json.loads((left / "finished" / kind / "summary.json").read_text())
    same_numbers(left / "today", left / "finished" / kind)
    for name in ("pooled_personalised", "global"):
        assert summary["scores"][name] == pytest.approx(then["scores"][name], abs=0.09)  # one test example in twelve


def test_the_defaults_have_the_same_numbers(left: Path) -> None:
    then = json.loads((HERE / "default.json").read_text())
    now = by_default(left / "today")
    assert now.keys() == then.keys() and now.pop("left_after_round") == then.pop("left_after_round")
    assert {name: pytest.approx(value, abs=0.05) for name, value in then.items()} == now


def test_the_report_of_a_comparison_is_read(left: Path) -> None:
    found = read_comparison(left / "comparison", Network(10.0, 50.0, 30.0, 1.0))
    scores = {(run.method, run.task): run.points[-1].personalised for run in found.runs}
    assert scores.keys() == {("fibecfed", "reviews"), ("lora", "reviews")}


def test_a_comparison_has_nothing_left_to_do(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (left / "comparison").rglob("records.jsonl")}
    results = compare_in(load(left / "compare.toml", ["method.fibecfed.method.preset=paper"]), left / "comparison", console())
    assert results.unfinished("again") is None
    assert {path: path.stat().st_mtime_ns for path in (left / "comparison").rglob("records.jsonl")} == kept


def test_a_comparison_of_the_former_default_says_how_it_goes_on(left: Path) -> None:
    with pytest.raises(UserError, match=r'method\.curriculum\.pace, .* differ; set them back \(method\.fibecfed\.method\.preset = "paper"'):
        compare_in(load(left / "compare.toml", ()), left / "comparison", console())


def test_a_message_is_read_and_written_to_the_same_bytes(left: Path) -> None:
    from fibecfed.methods.fedavg import SharedModel

    blob = (left / "message.bin").read_bytes()
    assert encode(decode(SharedModel, blob)) == blob


RECORDS = sorted(int(path.name.removeprefix("records-")) for path in HERE.glob("records-*"))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("version", RECORDS)
def test_records_of_each_form_are_read_and_give_the_scores_of_their_summary(version: int, kind: str) -> None:
    folder = HERE / f"records-{version}" / kind
    header, rows = records.read(folder / "records.jsonl")
    summary = json.loads((folder / "summary.json").read_text())
    last = [row for row in rows if isinstance(row, records.EvalRecord)][-1]
    assert header["version"] == version
    assert every_score(last, offered_by(last.pooled)) == summary["scores"]["metrics"]
    assert sum(sum(row.bytes_up.values()) for row in rows if isinstance(row, records.RoundRecord)) == summary["bytes_up"]


@pytest.mark.parametrize("kind", METHODS)
def test_a_run_of_today_writes_the_newest_form_with_the_same_bytes_and_near_the_same_sums(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RECORDS[-1] == records.RECORDS_VERSION
    shutil.copytree(HERE / VERSIONS[0], tmp_path / "left")
    monkeypatch.chdir(tmp_path / "left")
    session.start(config(kind), tmp_path / "today", adapters=False)
    then, now = HERE / f"records-{RECORDS[-1]}" / kind, tmp_path / "today"
    for before, line in zip(*(map(json.loads, (folder / "records.jsonl").read_text().splitlines()) for folder in (then, now)), strict=True):
        assert before.keys() <= line.keys()  # a form may gain fields, and loses none
        if line["kind"] == "round":
            assert (line["cohort"], line["bytes_up"], line["bytes_down"]) == (before["cohort"], before["bytes_up"], before["bytes_down"])
            assert line["loss"] == pytest.approx(before["loss"], abs=TOLERANCE)
        elif line["kind"] == "evaluation":
            assert line["pooled"]["nll"] == pytest.approx(before["pooled"]["nll"], abs=0.05)
            assert sum(map(sum, line["pooled"]["confusion"])) == sum(map(sum, before["pooled"]["confusion"]))
