"""A whole comparison in one folder: made, gone on with, added to, rejected."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fibecfed.comparison.runner.command import compare_in
from fibecfed.comparison.runner.conduct import Results, gpus, reject_foreign, workers, write_down
from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.plan import job
from fibecfed.comparison.runner.pool import Outcome, Pool, record_failure
from fibecfed.comparison.runner.read import read_back
from fibecfed.config import load
from fibecfed.core.errors import UserError


def shown(comparison: ComparisonOptions, out: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    left = compare_in(comparison, out, console)
    return len(left.failed) + len(left.rejected) + len(left.unusable), console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_comparison_is_made_in_processes_and_reports_what_failed(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    pairs = ("tuning.trials=1", "tuning.extend=false", "method.fibecfed.training.learning_rate=1e30")
    failed, text = shown(compared(*pairs), tmp_path)
    assert failed == 1 and "reviews/lora/rate 0.002: personalised" in text and "reviews/fibecfed/seed 0: failed: client" in text
    assert "reviews/fibecfed/0: no result, diverged: client" in text
    assert re.search(r"2 run now in [^,]+, 1 of 2 runs done, 1 failed; the report", text) and (tmp_path / "report.md").is_file()
    trial, run = tmp_path / "tuning/reviews/lora/0.002", tmp_path / "runs/reviews/lora/0"
    assert (trial / "summary.json").read_bytes() == (run / "summary.json").read_bytes()  # the same run is not made twice
    assert json.loads((tmp_path / "runs/reviews/fibecfed/0/failure.json").read_text())["why"] == "diverged"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, finished: Callable[..., dict[str, Any]]) -> list[Any]:
    """A pool whose runs end at once: the validation score falls with the distance of the rate from 0.0135."""
    made: list[Any] = []

    def run(self: Pool, jobs: Any) -> dict[Any, Outcome]:
        outcomes = {}
        for one in jobs:
            made.append(one.name)
            assert not (one.folder / "config.toml").exists()
            rate = one.config.training.learning_rate
            outcomes[one] = Outcome(finished(one, max(0, 100 - round(abs(rate - 0.0135) * 1000))))
        return outcomes

    monkeypatch.setattr(Pool, "run", run)
    return made


def test_tuning_tries_the_same_rates_and_one_more_at_an_edge_and_is_never_repeated(
    compared: Callable[..., ComparisonOptions], tmp_path: Path, scripted: list[Any]
) -> None:
    both = compared("tuning.trials=3", "seeds=0,1")
    shown(both, tmp_path)
    trials = [name for name in scripted if "rate" in name]
    assert len(trials) == 2 * 4  # 3, and one beyond the highest, which is the best
    tuned = json.loads((tmp_path / "tuning.json").read_text())
    assert {kind: row["rates"]["training.learning_rate"] for kind, row in tuned.items()} == {"fibecfed": 0.018, "lora": 0.018}
    assert load(tmp_path / "runs/reviews/lora/1/config.toml").config.training.learning_rate == 0.018
    assert [name for name in scripted if "rate" not in name] == ["reviews/fibecfed/seed 1", "reviews/lora/seed 1"]
    scripted.clear()
    shown(both, tmp_path)
    assert scripted == []
    shown(compared("methods=local", "tuning.trials=3"), tmp_path)
    assert len(scripted) == 4 and set(json.loads((tmp_path / "tuning.json").read_text())) == {"fibecfed", "lora", "local"}


@pytest.mark.parametrize("name", ["summary.json", "records.jsonl"])
def test_a_damaged_run_is_made_again_and_what_was_there_is_kept(
    name: str, compared: Callable[..., ComparisonOptions], tmp_path: Path, scripted: list[Any]
) -> None:
    assert shown(compared(), tmp_path)[0] == 0
    (tmp_path / "runs/reviews/lora/0" / name).write_text("{")
    scripted.clear()
    failed, text = shown(compared(), tmp_path)
    kept = tmp_path / "damaged/runs/reviews/lora/0"
    assert failed == 0 and scripted == ["reviews/lora/seed 0"] and re.search(r"1 run now in [^,]+, 2 of 2 runs done; the report", text)
    assert f"warning: reviews/lora/seed 0: {tmp_path}/runs/reviews/lora/0/{name}, line 1: " in text
    assert f"; it is repeated, and the old files are kept in {kept}" in text and (kept / name).read_text() == "{"
    scripted.clear()
    assert shown(compared(), tmp_path)[0] == 0 and scripted == []


def test_a_folder_that_cannot_be_used_is_told_with_one_way_out_that_works(
    compared: Callable[..., ComparisonOptions], tmp_path: Path, scripted: list[Any]
) -> None:
    shown(compared(), tmp_path)
    folder = tmp_path / "runs/reviews/lora/0"
    (folder / "config.toml").write_text("seed =\n")
    failed, text = shown(compared(), tmp_path)
    assert failed == 1 and text.count("the same command repeats the run") == 1
    assert re.search(r"0 run now in [^,]+, 1 of 2 runs done, 1 whose folder cannot be used; the report", text)
    folder.rename(tmp_path.with_name(f"{tmp_path.name}-away"))
    assert shown(compared(), tmp_path)[0] == 0


def test_refused_runs_are_counted_apart_and_told_once(compared: Callable[..., ComparisonOptions], tmp_path: Path, monkeypatch: Any) -> None:
    reason = "method.kind: a prefix cannot be used with it; choose another model"

    def run(self: Pool, jobs: Any) -> dict[Any, Outcome]:
        outcomes = {one: Outcome(None, "refused", reason) for one in jobs}
        for one, outcome in outcomes.items():
            self._watcher.started(one)
            record_failure(one, outcome)
            self._watcher.ended(one, outcome)
        return outcomes

    monkeypatch.setattr(Pool, "run", run)
    console = Console(file=io.StringIO(), width=200)
    left = compare_in(compared("methods=lora", "tuning.trials=1"), tmp_path, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert (len(left.failed), len(left.rejected), len(left.unusable)) == (0, 1, 0)
    assert re.search(r"0 run now in [^,]+, 0 of 1 run done, 1 rejected; the report", text)
    assert text.count(reason) == 1 and "not tuned: no rate was chosen, because the trial reviews/lora/rate 0.002 was rejected" in text
    assert left.unfinished("fibecfed compare x") == (
        "1 run rejected: change what the reasons above name, or remove these methods: the same command would reject them again"
    )
    jobs: Any = [object(), object()]
    every = Results({}, dict.fromkeys(jobs, ""), {}, {jobs[0]: ""}).unfinished("fibecfed compare x")
    assert every is not None and every.endswith("2 runs failed, the reasons are above. Try them again with: fibecfed compare x")
    assert every.startswith("1 run whose folder cannot be used: fix what is listed above, then: fibecfed compare x")
    assert Results({}, {}, {}, {}).unfinished("x") is None


def test_a_folder_whose_comparison_was_removed_can_be_gone_on_with(
    compared: Callable[..., ComparisonOptions], tmp_path: Path, scripted: list[Any]
) -> None:
    shown(compared("tuning.trials=1"), tmp_path)
    (tmp_path / "comparison.toml").write_text('methods = ["lora"')
    with pytest.raises(UserError, match=r"comparison\.toml: not what .*remove it: then the configuration of the command line counts"):
        shown(compared("tuning.trials=1"), tmp_path)
    (tmp_path / "comparison.toml").unlink()
    scripted.clear()
    assert shown(compared("tuning.trials=1"), tmp_path)[0] == 0 and scripted == []
    assert read_back(tmp_path / "comparison.toml") == compared("tuning.trials=1")


def test_another_comparison_or_a_foreign_folder_is_refused_and_left_alone(
    compared: Callable[..., ComparisonOptions], tmp_path: Path
) -> None:
    write_down(compared("methods=lora", "seeds=1"), make(tmp_path / "one"))
    with pytest.raises(UserError, match=r"other values of base\.federation\.rounds; set them back"):
        reject_foreign(compared("base.federation.rounds=9"), tmp_path / "one")
    write_down(compared(), tmp_path / "one")
    held = read_back(tmp_path / "one/comparison.toml")
    assert (held.methods, held.seeds) == (("lora", "fibecfed"), (1, 0))
    (make(tmp_path / "killed") / ".comparison.toml.4711.tmp").write_text("")
    reject_foreign(compared(), tmp_path / "killed")
    (make(tmp_path / "two") / "thesis.txt").write_text("mine")
    for folder in ("two", "two/thesis.txt"):
        with pytest.raises(UserError, match="not a comparison's folder"):
            compare_in(compared(), tmp_path / folder, Console())
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["thesis.txt"]


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_run_with_other_keys_than_the_folders_is_refused(
    compared: Callable[..., ComparisonOptions], tmp_path: Path, scripted: list[Any]
) -> None:
    shown(compared("methods=lora"), tmp_path)
    path = job(compared(), tmp_path, "reviews", "lora", 0).folder / "config.toml"
    path.write_text(path.read_text().replace("rounds = 2", "rounds = 3"))
    with pytest.raises(UserError, match=r"federation\.rounds differ"):
        shown(compared("methods=lora"), tmp_path)


def test_a_method_at_a_rate_of_its_own_does_not_stand_for_its_kind(
    compared: Callable[..., ComparisonOptions], tmp_path: Path, scripted: list[Any]
) -> None:
    own = ("tuning.trials=3", "method.lora.training.learning_rate=0.25")
    assert shown(compared("methods=lora", *own), tmp_path)[0] == 0 and scripted == ["reviews/lora/seed 0"]
    row = json.loads((tmp_path / "tuning.json").read_text())["lora"]
    assert row["chosen"] == 0.25 and row["tried"] == []
    assert shown(compared("methods=lora,slow", *own, "method.slow.method.kind=lora"), tmp_path)[0] == 0
    row = json.loads((tmp_path / "tuning.json").read_text())["lora"]
    assert row["chosen"] == 0.018 and len(row["tried"]) == 4
    assert load(tmp_path / "runs/reviews/slow/0/config.toml").config.training.learning_rate == 0.018
    assert shown(compared("methods=fibecfed", *own), tmp_path)[0] == 0
    assert set(json.loads((tmp_path / "tuning.json").read_text())) == {"lora", "fibecfed"}


def test_a_server_rate_of_a_methods_own_is_kept_in_its_trials_and_runs(
    compared: Callable[..., ComparisonOptions], tmp_path: Path, scripted: list[Any]
) -> None:
    own = ("method.moms-adamw.method.server_learning_rate=0.7", "method.slow.method.kind=moms-adamw")
    shown(compared("methods=moms-adamw,slow", "tuning.trials=1", "tuning.extend=false", *own), tmp_path)
    row = json.loads((tmp_path / "tuning.json").read_text())["moms-adamw"]
    assert row["rates"] == row["tried"][0]["rates"] == {"training.learning_rate": 0.04}
    for folder in ("tuning/reviews/moms-adamw/0.04", "runs/reviews/moms-adamw/0"):
        assert load(tmp_path / folder / "config.toml").config.method.model_dump()["server_learning_rate"] == 0.7


def test_a_method_whose_every_trial_diverged_has_its_reason_in_the_folder_until_it_runs(
    compared: Callable[..., ComparisonOptions], tmp_path: Path, scripted: list[Any]
) -> None:
    one = compared("methods=lora,local", "tuning.trials=1", "tuning.extend=false")
    write_down(one, tmp_path)
    trial = tmp_path / "tuning/reviews/lora/0.002"
    trial.mkdir(parents=True)
    (trial / "failure.json").write_text('{"why": "diverged", "reason": "the loss is nan"}')
    failed, text = shown(one, tmp_path)
    assert failed == 1 and "lora/0: no result, not tuned: no rate was chosen: every trial diverged" in text and "not run yet" not in text
    (trial / "failure.json").unlink()
    trial.rmdir()
    (tmp_path / "tuning.json").unlink()
    assert shown(one, tmp_path)[0] == 0
    assert not (tmp_path / "runs/reviews/lora/0/failure.json").exists() and scripted[-1] == "reviews/lora/rate 0.002"  # taken over


@pytest.mark.parametrize(
    ("device", "asked", "visible", "expected"),
    [
        (None, None, None, (2, ["0", "1"])),
        ("cuda", None, "3,5", (2, ["3", "5"])),
        ("cuda:1", None, None, (1, [])),
        ("cpu", None, None, (6, [])),
        (None, 5, None, (5, ["0", "1"])),
    ],
    ids=["all GPUs", "those visible", "one by name", "none used", "as many as asked"],
)
def test_runs_on_gpus_have_a_worker_per_gpu_and_no_more(
    device: str | None,
    asked: int | None,
    visible: str | None,
    expected: tuple[int, list[str]],
    compared: Callable[..., ComparisonOptions],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    comparison = compared()
    training = {"device": device} if device else {}
    resources = comparison.resources.model_copy(update={"workers": asked})
    comparison = comparison.model_copy(update={"base": {**comparison.base, "training": training}, "resources": resources})
    assert (workers(comparison), gpus(comparison)) == expected


def test_runs_are_made_on_the_gpus_that_are_named_or_it_is_said_that_one_is_missing(
    compared: Callable[..., ComparisonOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    comparison = compared()

    def on(*names: str) -> ComparisonOptions:
        return comparison.model_copy(update={"resources": comparison.resources.model_copy(update={"devices": names, "workers": None})})

    assert (workers(on("cuda:0", "cuda:2")), gpus(on("cuda:0", "cuda:2"))) == (2, ["4", "7"])
    with pytest.raises(UserError, match=r"resources\.devices: got cuda:3, expected the 3 GPUs that torch sees, numbered from 0"):
        gpus(on("cuda:3"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="expected none, since torch sees no GPU"):
        gpus(on("cuda:0"))
