"""What trackers are fed with, on one that only remembers: it cannot change a run, stop it, or get a step twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from saved import interrupted_at, run_config, save_inputs

from fibecfed import session
from fibecfed.core.errors import UserError
from fibecfed.engine.events import Finished, Warned
from fibecfed.tracking import sinks
from fibecfed.tracking.contract import TrackedRun


class Remembers:
    """A tracker in memory, which lasts over processes as a file would."""

    steps: dict[int, dict[str, float]]

    def __init__(self) -> None:
        self.steps, self.runs, self.closed = {}, [], []

    def start(self, run: TrackedRun) -> Remembers:
        self.runs.append(run)
        self.last = max(self.steps, default=-1)
        return self

    def log(self, step: int, values: Mapping[str, float]) -> None:
        assert step not in self.steps
        self.steps[step] = dict(values)

    def close(self, *, finished: bool) -> None:
        self.closed.append(finished)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def plain(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return session.start(run_config(inputs), tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Remembers:
    """It takes the place of TensorBoard."""
    fake = Remembers()
    monkeypatch.setattr(sinks.Sink, "start", lambda row, run: fake.start(run))
    monkeypatch.setattr(sinks, "reject_missing", lambda names: None)
    monkeypatch.setattr(session, "reject_missing", lambda names: None)
    return fake


def test_every_round_and_evaluation_is_a_step_of_a_run_with_the_same_bits(
    tracker: Remembers, inputs: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    summary = session.start(run_config(inputs, tracking=["tensorboard"]), tmp_path / "run")
    assert summary["adapters"] == plain["adapters"] and summary["scores"] == plain["scores"]
    assert list(tracker.steps) == [0, 1, 2, 3, 4, 5] and tracker.closed == [True]
    assert tracker.runs[0].folder == tmp_path / "run" and tracker.runs[0].settings["model.rank"] == 8
    assert tracker.steps[0].keys() >= {"scores/pooled_personalised", "scores/metrics/global/loss"}
    assert tracker.steps[1].keys() >= {"bytes/up", "bytes/down", "seconds/round", "clients/asked", "selected/global_layers"}
    last = tracker.steps[5]
    assert last.keys() >= {"train/loss", "train/examples", "scores/worst_decile", "selected/mean_kept_neurons", "bytes/evaluation"}
    assert last["scores/pooled_personalised"] == summary["scores"]["pooled_personalised"]
    assert last["bytes/total"] == summary["bytes_up"] + summary["bytes_down"]
    assert sum(step.get("train/steps", 0) for step in tracker.steps.values()) == summary["steps"]
    assert [last[f"selected/global_layers/{layer:02}"] for layer in (0, 1)] == [
        float(layer in summary["selected"]["global_layers"]) for layer in (0, 1)
    ]
    assert not any(name.startswith("client/") for name in last)


def test_values_of_each_client_come_where_they_are_asked_for(tracker: Remembers, inputs: Path, tmp_path: Path) -> None:
    session.start(run_config(inputs, tracking=["tensorboard"], tracking_by_client=True), tmp_path)
    names = {name for step in tracker.steps.values() for name in step}
    assert names >= {f"client/{client}/{name}" for client in ("0", "1", "2", "3") for name in ("loss", "accuracy", "bytes_up", "seconds")}


@pytest.mark.parametrize("number", [1, 6])
def test_a_resumed_run_has_each_step_once(tracker: Remembers, inputs: Path, tmp_path: Path, number: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs, tracking=["tensorboard"]), tmp_path, interrupted_at(number))
    summary, _ = session.resume(tmp_path)
    assert sorted(tracker.steps) == [0, 1, 2, 3, 4, 5] and tracker.closed == [False, True]
    assert tracker.steps[5]["bytes/total"] == summary["bytes_up"] + summary["bytes_down"]


def test_one_that_joins_at_a_resumption_is_given_the_rounds_before(tracker: Remembers, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs), tmp_path, interrupted_at(6))
    session.resume(tmp_path, overrides=["tracking=tensorboard"])
    assert sorted(tracker.steps) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("when", ["start", "log", "close"])
def test_one_that_fails_is_a_warning_and_the_run_goes_on(
    tracker: Remembers,
    inputs: Path,
    tmp_path: Path,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("no room\nfor \x1b[2J it")

    monkeypatch.setattr(tracker, when, fail)
    events: list[Any] = []
    with caplog.at_level(logging.WARNING, logger="fibecfed"):
        session.start(run_config(inputs, tracking=["tensorboard"], federation={"rounds": 1}), tmp_path, events.append)
    assert isinstance(events[-1], Warned if when == "close" else Finished) and (tmp_path / "summary.json").is_file()
    (told,) = [event.text for event in events if isinstance(event, Warned)]
    assert told == r"tracking: tensorboard failed (OSError: no room\nfor \x1b[2J it); the run continues without it"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [told]


def test_values_that_cannot_be_made_are_a_warning(
    tracker: Remembers, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "tracked_scores", lambda *_, **__: {}["nothing"])
    events: list[Any] = []
    session.start(run_config(inputs, tracking=["tensorboard"], federation={"rounds": 1}), tmp_path, events.append)
    told = [event.text for event in events if isinstance(event, Warned)]
    assert told[0].startswith("tracking: no values of round 0 (KeyError")


def test_one_that_is_not_installed_is_refused_before_anything_is_written(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sinks.SINKS, "wandb", sinks.Sink("to_wandb", ("no_such_package",), "wandb"))
    with pytest.raises(UserError) as caught:
        session.start(run_config(inputs, tracking=["wandb"]), tmp_path / "run")
    assert str(caught.value) == 'tracking: got "wandb", which is not installed here; install it: pip install wandb'
    assert not (tmp_path / "run").exists()
