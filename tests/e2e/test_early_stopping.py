"""`evaluation.patience`: a run that no longer gets better ends, with the bits of one that was asked for no more rounds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from saved import adapter_files, interrupted_at, run_config

from fibecfed import session
from fibecfed.audit.replay import observed
from fibecfed.comparison.report.comparison import read_report
from fibecfed.config import Config, load
from fibecfed.core.errors import UserError
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.engine.checkpoint import Checkpoint, Checkpoints
from fibecfed.engine.events import Evaluated, RoundDone, StoppedEarly
from fibecfed.progress import show_summary

ROUNDS = 8


def config(inputs: Path, patience: int | None = 2, **tables: Any) -> Config:
    """A run that is soon ruined by its rate."""
    evaluation = {"every": 1, "patience": patience, **tables.pop("evaluation", {})}
    return run_config(
        inputs,
        **{
            "federation": {"rounds": ROUNDS, "clients_per_round": 3},
            "training": {"learning_rate": 0.3},
            "data": {"validation_fraction": 0.3},
            "evaluation": evaluation,
            **tables,
        },
    )


@pytest.fixture(scope="module")
def stopped(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    out, events = tmp_path_factory.mktemp("stopped") / "run", []
    summary = session.start(config(inputs), out, events.append)
    assert summary["stopped_early"]["tune"]["left_out"] > 0, "the run used all of its rounds: the tests would see nothing"
    return out, summary, events


def test_it_is_the_same_run_up_to_there(stopped: Any, inputs: Path, tmp_path: Path) -> None:
    out, summary, events = stopped
    (told,) = [event for event in events if isinstance(event, StoppedEarly)]
    row = summary["stopped_early"]["tune"]
    last = row["rounds"]
    assert told.left_out == row["left_out"] == events[0].total_rounds - last

    def stop(event: object) -> None:
        if isinstance(event, Evaluated) and event.rounds == last + 1:
            raise KeyboardInterrupt

    whole = tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        session.start(config(inputs, None), whole, stop)
    then, ended = (Checkpoints(run / "checkpoints", 2).load_latest() for run in (whole, out))
    assert isinstance(then, Checkpoint) and isinstance(ended, Checkpoint) and then.number == ended.number == last == summary["rounds"]
    assert (then.server, then.where.keys()) == (ended.server, ended.where.keys())
    assert [event.is_last for event in events if isinstance(event, Evaluated)][-2:] == [False, True]
    right = {
        one.rounds: one.pooled_validation["confusion"][0][0] + one.pooled_validation["confusion"][1][1]
        for one in read(out / "records.jsonl")[1]
        if isinstance(one, EvalRecord) and one.rounds
    }
    assert row["best"] == last - 2 == min(rounds for rounds, number in right.items() if number == max(right.values()))


def test_killed_anywhere_and_resumed_it_leaves_the_same_bits(stopped: Any, inputs: Path, tmp_path: Path) -> None:
    out, summary, events = stopped
    for number, event in enumerate(events):
        if number > 2 and isinstance(event, RoundDone | Evaluated | StoppedEarly):
            again = tmp_path / str(number)
            with pytest.raises(KeyboardInterrupt):
                session.start(config(inputs), again, interrupted_at(number))
            found, _ = session.resume(again)
            assert adapter_files(again) == adapter_files(out), number
            assert (found["stopped_early"], found["scores"]) == (summary["stopped_early"], summary["scores"])


def test_a_last_local_training_is_still_held_and_the_best_round_is_saved(inputs: Path, tmp_path: Path) -> None:
    summary = session.start(config(inputs, method={"kind": "lora", "finetune": True}), tmp_path / "last")
    rounds = [one for one in read(tmp_path / "last" / "records.jsonl")[1] if isinstance(one, RoundRecord)]
    assert summary["stopped_early"]["tune"]["left_out"] == ROUNDS + 1 - len(rounds) > 0
    assert rounds[-1].phase == "finetune" and [one.number for one in rounds] == list(range(summary["rounds"]))
    assert summary["scores"]["rounds"] == summary["saved"]["rounds"] == summary["rounds"]
    assert read_report(tmp_path / "last").comparison.problems == ()
    seen, _, missing = observed(session.prepare(load(tmp_path / "last" / "config.toml").config), tmp_path / "last")
    assert missing is None and seen[-1].now.phase == "finetune"
    best = session.start(config(inputs, evaluation={"save": "best"}, method={"kind": "lora"}), tmp_path / "best")
    assert best["saved"]["rounds"] == best["stopped_early"]["tune"]["best"]


def test_the_end_of_the_run_says_so(stopped: Any) -> None:
    out, summary, _ = stopped
    console = Console(file=io.StringIO(), width=80)
    show_summary(console, json.loads((out / "summary.json").read_text()), out)
    assert summary["stopped_early"]["tune"]["text"] in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"data": {"validation_fraction": 0.0}}, "evaluation.patience: got 2 with `data.validation_fraction` = 0"),
        ({"evaluation": {"generate": 3}}, "evaluation.patience: got 2 with `evaluation.generate` = 3"),
        ({"federation": {"schedule": "buffered"}}, 'evaluation.patience: got 2 with `federation.schedule` = "buffered"'),
        ({"evaluation": {"patience": 0}}, "evaluation.patience: got 0, expected an integer, at least 1"),
    ],
)
def test_where_nothing_tells_when_to_end_it_is_rejected(inputs: Path, tables: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        config(inputs, **tables)


def test_without_a_validation_example_nothing_begins(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.validation_fraction: got 0.001, which leaves no validation example"):
        session.start(config(inputs, data={"validation_fraction": 0.001}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
