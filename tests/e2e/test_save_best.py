"""`evaluation.save` = "best": the models of the round that was best by validation are what a run leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ran import counted_by_plain_peft
from safetensors.torch import load_file
from saved import adapter_files, interrupted_at, run_config
from sums import matrix

from fibecfed import session
from fibecfed.config import Config
from fibecfed.core.errors import UserError
from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, read
from fibecfed.engine.checkpoint import Checkpoint, Checkpoints
from fibecfed.engine.events import Evaluated, Finished, RoundDone, Warned

ROUNDS = 6


def config(inputs: Path, save: str = "best", **tables: Any) -> Config:
    """A run that learns in its first rounds and is ruined later by its rate, so that its best round is not the last."""
    return run_config(
        inputs,
        **{
            "federation": {"rounds": ROUNDS, "clients_per_round": 3},
            "training": {"learning_rate": 0.3},
            "evaluation": {"every": 1, "save": save},
            "data": {"validation_fraction": 0.3},
            **tables,
        },
    )


@pytest.fixture(scope="module")
def best(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("best") / "run"
    summary = session.start(config(inputs), out)
    assert 1 < summary["saved"]["rounds"] < summary["rounds"], "the best round is the first or the last: the tests would see nothing"
    return out, summary


def test_the_adapters_are_those_of_a_run_that_ended_with_the_best_round(best: Any, inputs: Path, tmp_path: Path) -> None:
    out, summary = best
    evaluations = [one for one in read(out / "records.jsonl")[1] if isinstance(one, EvalRecord) and one.rounds]
    right = [sum(matrix(one.pooled_validation)[i][i] for i in range(2)) for one in evaluations]
    chosen = evaluations[right.index(max(right))]
    assert summary["saved"]["rounds"] == chosen.rounds == summary["scores"]["best_by_validation"]["rounds"]
    assert summary["scores"]["rounds"] == evaluations[-1].rounds
    for client, sums in chosen.clients.items():
        counts = sums["confusion"]
        assert summary["clients"][client]["score"] == (counts[0][0] + counts[1][1]) / sum(map(sum, counts))

    # the same run, stopped as soon as that round's checkpoint lay there, with the states that it then had
    def stop(event: object) -> None:
        if isinstance(event, RoundDone) and event.index == chosen.rounds - 1:
            raise KeyboardInterrupt

    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        session.start(config(inputs, "last"), stopped, stop)
    then = Checkpoints(stopped / "checkpoints", 2).load_latest()
    assert isinstance(then, Checkpoint) and then.number == chosen.rounds
    kept = Checkpoints(out / "checkpoints", 2).load(chosen.rounds)
    assert (kept.server, kept.where.keys()) == (then.server, then.where.keys())
    found = load_file(out / "global" / "adapter_model.safetensors")
    last = tmp_path / "last"
    assert session.start(config(inputs, "last"), last)["adapters"] != summary["adapters"]
    assert any(not value.equal(load_file(last / "global" / "adapter_model.safetensors")[name]) for name, value in found.items())


@pytest.mark.parametrize("checkpoint_every", [1, 4])
def test_a_run_that_is_killed_and_resumed_leaves_the_same_bits(best: Any, inputs: Path, tmp_path: Path, checkpoint_every: int) -> None:
    out, summary = best
    resources = {"checkpoint_every": checkpoint_every, "keep_checkpoints": 1}
    seen: list[object] = []
    session.start(config(inputs, resources=resources), tmp_path / "whole", seen.append)
    assert adapter_files(tmp_path / "whole") == adapter_files(out)
    for number, event in enumerate(seen):
        if isinstance(event, Evaluated | Finished) and number > 4:
            again = tmp_path / str(number)
            with pytest.raises(KeyboardInterrupt):
                session.start(config(inputs, resources=resources), again, interrupted_at(number))
            (again / "summary.json").unlink(missing_ok=True)  # of one that was stopped behind its very end
            found, _ = session.resume(again)
            assert adapter_files(again) == adapter_files(out), number
            assert found["adapters"] == summary["adapters"] and found["saved"] == summary["saved"]


def test_the_best_rounds_models_are_scored_as_they_were_then(best: Any, inputs: Path) -> None:
    out, summary = best
    chosen = next(one for one in read(out / "records.jsonl")[1] if isinstance(one, EvalRecord) and one.rounds == summary["saved"]["rounds"])
    server, clients = counted_by_plain_peft(config(inputs), inputs, out)
    assert server == matrix(chosen.server) and clients == {client: matrix(sums) for client, sums in chosen.clients.items()}


def test_a_best_checkpoint_that_was_damaged_gives_way_to_the_last_round_with_a_warning(inputs: Path, tmp_path: Path) -> None:
    events: list[object] = []

    def damage(event: object) -> None:
        events.append(event)
        if isinstance(event, Evaluated) and event.is_last:
            kept = sorted((tmp_path / "checkpoints").glob("checkpoint-*.json"))
            os.truncate(kept[0], 20)

    summary = session.start(config(inputs, resources={"keep_checkpoints": 1}), tmp_path, damage)
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    assert "cannot be used: it is not JSON" in warning and "those of the last round are saved instead" in warning
    assert summary["saved"]["rounds"] == summary["rounds"]


def test_without_validation_examples_or_across_machines_it_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'evaluation.save: got "best" with `data.validation_fraction` = 0'):
        config(inputs, data={"validation_fraction": 0.0})
    with pytest.raises(UserError, match=r"data.validation_fraction: got 0.001, which leaves no validation example"):
        session.start(config(inputs, data={"validation_fraction": 0.001}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r'evaluation.save: got "best" with `federation.partition` = "machines"'):
        run_config(
            inputs,
            data={"path": None, "labels": ["bad", "good"]},
            federation={"partition": "machines"},
            evaluation={"save": "best"},
        )


def test_the_primary_metric_chooses_the_round_and_fills_summary_and_card(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = run_config(inputs, evaluation={"every": 1, "metric": "loss", "save": "best"}, federation={"rounds": 3})
    summary = session.start(config, out)
    records = [record for record in read(out / "records.jsonl")[1] if isinstance(record, EvalRecord)]
    losses = {record.rounds: METRICS["loss"].of(record.pooled_validation) for record in records if record.rounds}
    assert (summary["metric"], summary["higher_is_better"]) == ("loss", False)
    assert summary["saved"]["rounds"] == min(losses, key=lambda rounds: (losses[rounds], rounds))
    assert summary["scores"]["pooled_personalised"] == METRICS["loss"].of(records[-1].pooled)
    assert "| loss |" in (out / "global" / "README.md").read_text()


@pytest.mark.parametrize(
    ("metric", "text"), [("acuracy", "expected 'accuracy'"), ("f1:goood", "expected a class of the data after the colon: 'good'")]
)
def test_a_metric_that_is_not_to_be_had_stops_before_anything_is_written(inputs: Path, tmp_path: Path, metric: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        session.start(run_config(inputs, evaluation={"metric": metric}), tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
