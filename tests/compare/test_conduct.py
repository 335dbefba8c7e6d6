"""A whole comparison in one folder: made, gone on with, added to, refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fibecfed.compare.command import compare_in
from fibecfed.compare.conduct import refuse_foreign, write_down
from fibecfed.compare.options import Comparison
from fibecfed.compare.plan import job
from fibecfed.compare.pool import Outcome, Pool
from fibecfed.compare.read import read_back
from fibecfed.config import load
from fibecfed.core.errors import UserError
from fibecfed.core.files import write_atomically


def shown(comparison: Comparison, out: Path) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    failed = compare_in(comparison, out, console)
    return failed, console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_comparison_is_made_in_processes_and_reports_what_failed(compared: Callable[..., Comparison], tmp_path: Path) -> None:
    pairs = ("tuning.trials=1", "tuning.extend=false", "method.fibecfed.training.learning_rate=1e30")
    failed, text = shown(compared(*pairs), tmp_path)
    assert failed == 1 and "reviews/lora/rate 0.0005: personalised" in text and "reviews/fibecfed/seed 0 failed: client" in text
    assert "2 made now, 1 of 2 runs done" in text and (tmp_path / "report.md").is_file()
    trial, run = tmp_path / "tuning/reviews/lora/0.0005", tmp_path / "runs/reviews/lora/0"
    assert (trial / "summary.json").read_bytes() == (run / "summary.json").read_bytes()  # the same run is not made twice
    assert json.loads((tmp_path / "runs/reviews/fibecfed/0/failure.json").read_text())["why"] == "diverged"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A pool whose runs end at once: the validation score falls with the distance of the rate from 0.0135."""
    made: list[Any] = []

    def run(self: Pool, jobs: Any) -> dict[Any, Outcome]:
        from fibecfed.config import to_toml
        from fibecfed.core.records import EvalRecord, to_line

        outcomes = {}
        for one in jobs:
            made.append(one.name)
            one.folder.mkdir(parents=True)
            rate = one.config.training.learning_rate
            right = max(0, 100 - round(abs(rate - 0.0135) * 1000))
            table = [[right, 0], [100 - right, 0]]
            record = EvalRecord(1, {}, table, table, table, table, 0.0, 0.0, 0, 0, 0.0)
            summary = {"scores": {"pooled_personalised": right / 100}, "seconds": 1.0, "evaluation": {"seconds": 0.0}}
            (one.folder / "records.jsonl").write_text(to_line({}) + to_line(record))
            write_atomically(one.folder / "config.toml", to_toml(one.config).encode())
            write_atomically(one.folder / "summary.json", json.dumps(summary).encode())
            outcomes[one] = Outcome(summary)
        return outcomes

    monkeypatch.setattr(Pool, "run", run)
    return made


def test_tuning_tries_the_same_rates_and_one_more_at_an_edge_and_is_never_repeated(
    compared: Callable[..., Comparison], tmp_path: Path, scripted: list[Any]
) -> None:
    both = compared("tuning.trials=3", "seeds=0,1")
    shown(both, tmp_path)
    trials = [name for name in scripted if "rate" in name]
    assert len(trials) == 2 * 4  # 3, and one beyond the highest, which is the best
    tuned = json.loads((tmp_path / "tuning.json").read_text())
    assert {kind: row["rates"]["training.learning_rate"] for kind, row in tuned.items()} == {"fibecfed": 0.0045, "lora": 0.0045}
    assert load(tmp_path / "runs/reviews/lora/1/config.toml").config.training.learning_rate == 0.0045
    assert [name for name in scripted if "rate" not in name] == ["reviews/fibecfed/seed 1", "reviews/lora/seed 1"]
    scripted.clear()
    shown(both, tmp_path)
    assert scripted == []
    shown(compared("methods=local", "tuning.trials=3"), tmp_path)
    assert len(scripted) == 4 and set(json.loads((tmp_path / "tuning.json").read_text())) == {"fibecfed", "lora", "local"}


def test_a_damaged_run_is_reported_and_the_others_count(compared: Callable[..., Comparison], tmp_path: Path, scripted: list[Any]) -> None:
    assert shown(compared(), tmp_path)[0] == 0
    (tmp_path / "runs/reviews/lora/0/summary.json").write_text("{")
    failed, text = shown(compared(), tmp_path)
    assert failed == 1 and "summary.json, line 1: not JSON" in text and "1 of 2 runs done" in text


def test_another_comparison_or_a_foreign_folder_is_refused_and_left_alone(compared: Callable[..., Comparison], tmp_path: Path) -> None:
    write_down(compared("methods=lora", "seeds=1"), make(tmp_path / "one"))
    with pytest.raises(UserError, match=r"other values of base\.federation\.rounds; set them back"):
        refuse_foreign(compared("base.federation.rounds=9"), tmp_path / "one")
    write_down(compared(), tmp_path / "one")
    held = read_back(tmp_path / "one/comparison.toml")
    assert (held.methods, held.seeds) == (("lora", "fibecfed"), (1, 0))
    (make(tmp_path / "killed") / ".comparison.toml.4711.tmp").write_text("")
    refuse_foreign(compared(), tmp_path / "killed")
    (make(tmp_path / "two") / "thesis.txt").write_text("mine")
    for folder in ("two", "two/thesis.txt"):
        with pytest.raises(UserError, match="not a comparison's folder"):
            compare_in(compared(), tmp_path / folder, Console())
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["thesis.txt"]


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_run_with_other_keys_than_the_folders_is_refused(
    compared: Callable[..., Comparison], tmp_path: Path, scripted: list[Any]
) -> None:
    shown(compared("methods=lora"), tmp_path)
    path = job(compared(), tmp_path, "reviews", "lora", 0).folder / "config.toml"
    path.write_text(path.read_text().replace("rounds = 2", "rounds = 3"))
    with pytest.raises(UserError, match=r"federation\.rounds differ"):
        shown(compared("methods=lora"), tmp_path)


def test_a_method_at_a_rate_of_its_own_does_not_stand_for_its_kind(
    compared: Callable[..., Comparison], tmp_path: Path, scripted: list[Any]
) -> None:
    own = ("tuning.trials=3", "method.lora.training.learning_rate=0.25")
    assert shown(compared("methods=lora", *own), tmp_path)[0] == 0 and scripted == ["reviews/lora/seed 0"]
    row = json.loads((tmp_path / "tuning.json").read_text())["lora"]
    assert row["chosen"] == 0.25 and row["tried"] == []
    assert shown(compared("methods=lora,slow", *own, "method.slow.method.kind=lora"), tmp_path)[0] == 0
    row = json.loads((tmp_path / "tuning.json").read_text())["lora"]
    assert row["chosen"] == 0.0045 and len(row["tried"]) == 4
    assert load(tmp_path / "runs/reviews/slow/0/config.toml").config.training.learning_rate == 0.0045
    assert shown(compared("methods=fibecfed", *own), tmp_path)[0] == 0
    assert set(json.loads((tmp_path / "tuning.json").read_text())) == {"lora", "fibecfed"}


def test_a_server_rate_of_a_methods_own_is_kept_in_its_trials_and_runs(
    compared: Callable[..., Comparison], tmp_path: Path, scripted: list[Any]
) -> None:
    own = ("method.moms-adamw.method.server_learning_rate=0.7", "method.slow.method.kind=moms-adamw")
    shown(compared("methods=moms-adamw,slow", "tuning.trials=1", "tuning.extend=false", *own), tmp_path)
    row = json.loads((tmp_path / "tuning.json").read_text())["moms-adamw"]
    assert row["rates"] == row["tried"][0]["rates"] == {"training.learning_rate": 0.04}
    for folder in ("tuning/reviews/moms-adamw/0.04", "runs/reviews/moms-adamw/0"):
        assert load(tmp_path / folder / "config.toml").config.method.model_dump()["server_learning_rate"] == 0.7


def test_a_method_whose_every_trial_diverged_has_its_reason_in_the_folder_until_it_runs(
    compared: Callable[..., Comparison], tmp_path: Path, scripted: list[Any]
) -> None:
    one = compared("methods=lora,local", "tuning.trials=1", "tuning.extend=false")
    write_down(one, tmp_path)
    trial = tmp_path / "tuning/reviews/lora/0.0005"
    trial.mkdir(parents=True)
    (trial / "failure.json").write_text('{"why": "diverged", "reason": "the loss is nan"}')
    failed, text = shown(one, tmp_path)
    assert failed == 1 and "lora/0: no result, not tuned: no rate was chosen: every trial diverged" in text and "not run yet" not in text
    (trial / "failure.json").unlink()
    trial.rmdir()
    (tmp_path / "tuning.json").unlink()
    assert shown(one, tmp_path)[0] == 0
    assert not (tmp_path / "runs/reviews/lora/0/failure.json").exists() and scripted[-1] == "reviews/lora/rate 0.0005"  # taken over
