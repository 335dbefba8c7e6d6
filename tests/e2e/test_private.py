"""Runs that are private for clients, on disk: what they charge, tell and leave, and what an interruption changes (nothing)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from saved import run_config

from fibecfed import session
from fibecfed.config import Config, to_toml
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.types import Failure
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.log import Log
from fibecfed.privacy.gaussian import epsilon_of
from fibecfed.privacy.ledger import LEDGER, Ledger, Release

PRIVACY = {"unit": "client", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3}


def private(inputs: Path, **tables: Any) -> Config:
    federation = {"on_failure": "drop", **tables.pop("federation", {})}
    more = {"method": {"kind": "lora"}, **tables, "privacy": {**PRIVACY, **tables.pop("privacy", {})}}
    return run_config(inputs, federation=federation, **more)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LEDGER).read_text().splitlines()]


def adapter(out: Path) -> dict[str, Any]:
    return {name: value.tolist() for name, value in load_file(out / "global" / "adapter_model.safetensors").items()}


@pytest.fixture(autouse=True)
def _one_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fibecfed.privacy.ledger.secrets.token_bytes", lambda size: b"7" * size)


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fibecfed.privacy.ledger.secrets.token_bytes", lambda size: b"7" * size)
        out = tmp_path_factory.mktemp("private") / "run"
        session.start(private(inputs), out)
    return out


def test_every_release_is_charged_to_those_whose_turn_it_was(whole: Path) -> None:
    summary, (_, *charges) = json.loads((whole / "summary.json").read_text()), lines(whole)
    assert [line["round"] for line in charges] == [0, 1, 2, 3] and {line["divisor"] for line in charges} == {2}
    assert charges[0]["charged"] == charges[2]["charged"] != charges[1]["charged"] == charges[3]["charged"]
    assert charges[-1]["epsilon_max"] == summary["privacy"]["epsilon"] == epsilon_of(2.0, 1e-3)
    assert charges[-1]["delta"] == summary["privacy"]["delta"] == 1e-3 and summary["privacy"]["unit"] == "client"
    assert summary["privacy"]["ended"] == "after its last round" and summary["clients_that_took_part"] == 4
    assert not (whole / "checkpoints" / "noise.secret").exists()


def test_nothing_else_follows_from_data(whole: Path) -> None:
    """What is written for others to read has neither counts nor losses, times, scores, notes or checksums of what is private."""
    header, *records = [json.loads(line) for line in (whole / "records.jsonl").read_text().splitlines()]
    assert header["partition"] == {} and header["warnings"] == [] and header["read"] == [] and "data" not in header
    rounds = [record for record in records if record["kind"] == "round"]
    for record in rounds:
        assert not any(record[name] for name in ("steps", "examples", "loss", "compute_s", "notes", "failures", "seconds", "cpu_s"))
    assert len({json.dumps([sorted(r["bytes_up"].values()), r["fields_up"]]) for r in rounds}) == 1
    for record in records:
        if record["kind"] == "evaluation":
            assert record["clients"] == {} and not any(map(sum, record["pooled"]["confusion"])) and record["server"] == record["pooled"]
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["clients"] == {} and summary["adapters"]["personal"] == 0 and summary["scores"]["global"] is None
    assert summary["steps"] == summary["examples"] == 0


def test_the_card_states_the_guarantee(whole: Path) -> None:
    card = (whole / "global" / "README.md").read_text()
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["privacy"]["statement"] in card and "(4.846, 0.001)-differentially private" in card
    assert "the server itself, which sees clipped updates" in card and "optimiser steps" not in card


class Killed(BaseException):
    """A process that dies: nothing catches it."""


def _dies(before: bool, method: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    def call(*args: Any, **named: Any) -> Any:
        if when(*args):
            if not before:
                method(*args, **named)
            raise Killed
        return method(*args, **named)

    return call


def _half(ledger: Ledger, line: dict[str, Any]) -> None:
    with ledger.path.open("ab") as file:
        file.write(json.dumps(line).encode()[:60])


def _is_round(log: Any, record: Any) -> bool:
    return getattr(record, "number", None) == 1


GAPS: dict[str, tuple[Any, str, bool, Callable[..., bool]]] = {
    "before the line": (Ledger, "charge", True, lambda ledger, release: release.round == 1),
    "in the line": (Ledger, "_write", True, lambda ledger, line: line.get("round") == 1),
    "after the line": (Ledger, "charge", False, lambda ledger, release: release.round == 1),
    "after the release": (Log, "write", True, _is_round),
    "after the record": (Log, "write", False, _is_round),
    "before the checkpoint": (Checkpoints, "save", True, lambda checkpoints, number, *rest: number == 2),
    "after the checkpoint": (Checkpoints, "save", False, lambda checkpoints, number, *rest: number == 2),
}


@pytest.mark.parametrize("gap", GAPS)
def test_killed_in_any_gap_a_run_charges_once_and_makes_the_same_releases(
    gap: str, inputs: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, before, when = GAPS[gap]
    with monkeypatch.context() as patch:
        if gap == "in the line":
            true = Ledger._write
            patch.setattr(Ledger, "_write", lambda ledger, line: _half(ledger, line) if when(ledger, line) else true(ledger, line))
            patch.setattr(Ledger, "_take", _dies(True, Ledger._take, lambda ledger, line, spent: line["round"] == 1))
        else:
            patch.setattr(owner, name, _dies(before, getattr(owner, name), when))
        with pytest.raises(Killed):
            session.start(private(inputs), tmp_path / "run")
    session.resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole)
    assert adapter(tmp_path / "run") == adapter(whole)


def test_killed_before_the_first_checkpoint_a_run_charges_once(inputs: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", _dies(True, Checkpoints.save, lambda *args: True))
        with pytest.raises(Killed):
            session.start(private(inputs), tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 2
    session.resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole)


def test_another_sum_in_a_repeated_round_is_charged_and_noised_anew(
    inputs: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", _dies(True, Log.write, _is_round))
        with pytest.raises(Killed):
            session.start(private(inputs), tmp_path / "run")
    true = Ledger.charge

    def other(ledger: Ledger, release: Release) -> bytes:
        return true(ledger, Release(**{**release.__dict__, "sum": b"another sum of 32 bytes in length"}))

    monkeypatch.setattr(Ledger, "charge", other)
    summary, _ = session.resume(tmp_path / "run")
    first, again = [line for line in lines(tmp_path / "run") if line.get("round") == 1]
    assert (first["attempt"], again["attempt"]) == (0, 1) and first["charged"] == again["charged"]
    assert summary["privacy"]["epsilon"] == epsilon_of(3.0, 1e-3)  # round 1 twice, and round 3
    assert adapter(tmp_path / "run") != adapter(whole)


_RUN_THAT_KILLS_ITSELF = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
from saved import run_config
from fibecfed import session
from fibecfed.engine import pooled
from fibecfed.config import load
import fibecfed.privacy.ledger as ledger
ledger.secrets.token_bytes = lambda size: b"7" * size
true = pooled.noised
rounds = []
def noised(*args):
    rounds.append(1)
    if len(rounds) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return true(*args)
pooled.noised = noised
session.start(load(Path(sys.argv[1])).config, Path(sys.argv[2]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_sigkill_between_the_charge_and_the_release(inputs: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(to_toml(private(inputs)))
    code = _RUN_THAT_KILLS_ITSELF.format(helpers=str(Path(__file__).parents[1] / "helpers"))
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run.toml", tmp_path / "run"], env=os.environ, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert len(lines(tmp_path / "run")) == 3
    session.resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(whole) and adapter(tmp_path / "run") == adapter(whole)


def test_a_run_ends_before_its_budget_is_passed(inputs: Path, tmp_path: Path) -> None:
    config = private(inputs, privacy={"max_epsilon": epsilon_of(1.0, 1e-3) * 1.001})
    summary = session.start(config, tmp_path / "run")
    assert summary["rounds"] == 2 and summary["privacy"]["ended"] == "stopped by its budget after 2 of 4 rounds"
    assert summary["privacy"]["epsilon"] == epsilon_of(1.0, 1e-3) and len(lines(tmp_path / "run")) == 3
    assert session.resume(tmp_path / "run") == (summary, True)


def test_an_epsilon_is_kept_over_all_planned_rounds(inputs: Path, tmp_path: Path) -> None:
    summary = session.start(private(inputs, privacy={"noise_multiplier": None, "epsilon": 3.0}), tmp_path / "run")
    assert summary["rounds"] == 4 and 2.999 < summary["privacy"]["epsilon"] <= 3.0


def test_fibecfed_with_the_last_layers(inputs: Path, tmp_path: Path) -> None:
    method = {"kind": "fibecfed", "layers": {"rule": "last", "value": 1}}
    summary = session.start(private(inputs, method=method, privacy={"evaluation": "exact"}), tmp_path / "run")
    assert summary["scores"]["global"] is not None and len(lines(tmp_path / "run")) == 5
    card = (tmp_path / "run" / "global" / "README.md").read_text()
    assert "does not cover the evaluation" in card
    own = next((tmp_path / "run" / "clients").iterdir())
    assert "This adapter is the client's own" in (own / "README.md").read_text()


def test_scores_with_noise_are_charged_and_nothing_else_is_told(inputs: Path, tmp_path: Path) -> None:
    config = private(inputs, privacy={"evaluation": "noised", "max_epsilon": epsilon_of(3.0, 1e-3) * 1.001}, evaluation={"every": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", _dies(True, Checkpoints.save, lambda checkpoints, number, *rest: number == 2))
        with pytest.raises(Killed):
            session.start(config, tmp_path / "run")
    before = lines(tmp_path / "run")
    assert [line["phase"] for line in before[1:]] == ["tune", "tune", "evaluation"] and len(before[-1]["charged"]) == 4
    summary, _ = session.resume(tmp_path / "run")
    after = lines(tmp_path / "run")
    assert after[: len(before)] == before  # the same noise, and no charge twice
    assert [line["phase"] for line in after[1:]] == ["tune", "tune", "evaluation", "tune", "tune"]  # the last one is not affordable
    assert summary["privacy"]["epsilon"] == epsilon_of(3.0, 1e-3) and summary["rounds"] == 4
    header, *records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert header["partition"] == {} and "data" not in header and summary["clients"] == {}
    scored = {record["rounds"]: record for record in records if record["kind"] == "evaluation"}
    assert 9_990 < sum(map(sum, scored[2]["pooled"]["confusion"])) < 10_010 and set(scored[2]["pooled"]) == {"confusion"}
    assert not any(map(sum, scored[4]["pooled"]["confusion"])) and not any(map(sum, scored[0]["pooled"]["confusion"]))
    assert "the global model and the scores, which follow from 5 noised means" in (tmp_path / "run" / "global" / "README.md").read_text()


def test_an_adaptive_clip_norm_is_that_of_the_checkpoint_when_a_run_is_resumed(inputs: Path, tmp_path: Path) -> None:
    config = private(
        inputs, privacy={"clipping": "adaptive", "clip_norm": 0.01, "noise_multiplier": 0.1}, federation={"clients_per_round": 4}
    )
    whole = session.start(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", _dies(False, Checkpoints.save, lambda checkpoints, number, *rest: number == 2))
        with pytest.raises(Killed):
            session.start(config, tmp_path / "run")
    summary, _ = session.resume(tmp_path / "run")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole") and adapter(tmp_path / "run") == adapter(tmp_path / "whole")
    assert summary["privacy"] == whole["privacy"] and len({line["clip"] for line in lines(tmp_path / "run")[1:]}) == 4
    assert summary["privacy"]["clip_norm_last"] > 0.01  # all are clipped, so it grows
    assert "a clip norm that begins at 0.01" in summary["privacy"]["statement"]


def test_an_edited_ledger_ends_a_resumed_run(inputs: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "write", _dies(True, Log.write, _is_round))
        with pytest.raises(Killed):
            session.start(private(inputs), tmp_path / "run")
    path = tmp_path / "run" / LEDGER
    blob = path.read_bytes()
    path.write_bytes(blob.replace(b'"z": 1.0', b'"z": 5.0'))
    with pytest.raises(UserError, match="line 2 was changed"):
        session.resume(tmp_path / "run")
    path.unlink()
    with pytest.raises(UserError, match="charges of this run are missing"):
        session.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("privacy", "text"),
    [
        ({"delta": 0.3}, r"privacy.delta: got 0.3 for 4 clients, expected at most 0.25"),
        ({"max_epsilon": 1.0}, r"privacy.max_epsilon: got 1, expected at least 3.139, which one round costs"),
        ({"noise_multiplier": None, "epsilon": 1e-7, "delta": 1e-12}, "privacy.epsilon: got 1e-07, which needs noise"),
    ],
)
def test_what_cannot_be_promised_is_rejected_before_anything_is_written(
    privacy: dict[str, Any], text: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=text):
        session.start(private(inputs, privacy=privacy), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", [{"kind": "fibecfed"}, {"kind": "hetlora"}, {"kind": "fedex-lora"}, {"kind": "scaffold"}])
def test_a_method_that_needs_more_than_a_mean_is_rejected_by_name(method: dict[str, Any], inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f'"client", which the method {method["kind"]} cannot be run with'):
        session.start(private(inputs, method=method), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_default_of_fibecfed_is_rejected_with_what_to_set_and_can_be_run_so(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'in its stage "tune" .*; set `method.layers.rule` = "last" without `method.finetune`, or choose'):
        session.start(private(inputs, method={"preset": None}), tmp_path / "run")
    summary = session.start(private(inputs, method={"preset": None, "layers": {"rule": "last"}}), tmp_path / "run")
    assert summary["rounds"] == 4


def test_nobody_who_answers_ends_a_run_uncharged(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fibecfed.engine.simulator.Simulator.answer", lambda self, ticket, blob: Failure("x"))
    with pytest.raises(RunFailed, match="none of 2 clients answered"):
        session.start(private(inputs, resources={"workers": 1}), tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 1
