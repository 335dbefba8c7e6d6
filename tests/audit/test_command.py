"""`fibecfed audit` on runs of a tiny model: what it sees is what was sent, and mistakes are sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import run_config, save_inputs
from typer.testing import CliRunner

from fibecfed import cli, session
from fibecfed.audit.replay import observed
from fibecfed.build import prepare
from fibecfed.core.wire import decode
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.events import RoundDone


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def made(inputs: Path, out: Path, kind: str, **tables: Any) -> Path:
    session.start(run_config(inputs, method={"kind": kind}, **tables), out)
    return out


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["audit", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["lora", "fibecfed", "fedpeptao"])
def test_the_rounds_it_sees_are_those_of_the_run(kind: str, inputs: Path, tmp_path: Path) -> None:
    run = made(inputs, tmp_path / "run", kind)
    before = files(run)
    prepared = prepare(run_config(inputs, method={"kind": kind}))
    rounds, server, missing = observed(prepared, run)
    assert missing is None and files(run) == before
    first, last = rounds
    kept = Checkpoints(run / "checkpoints", 2).load(last.now.number)
    params = prepared.method.server_params(decode(prepared.method.server_state, kept.server))
    assert all(torch.equal(params[name], tensor) for name, tensor in last.before.items())
    end = prepared.method.server_params(server)
    assert all(torch.equal(end[name], tensor) for name, tensor in last.after.items())
    begin = prepared.method.server_params(prepared.method.init(prepared.task, prepared.inputs.key.fold("run").fold("init")))
    assert all(torch.equal(begin[name], tensor) for name, tensor in first.before.items())
    for one in rounds:
        assert one.updates and all(update and set(update) <= set(prepared.task.names) for update in one.updates.values())
        if kind == "lora":  # the mean of what was sent is what the round made of the model
            sizes = {client: len(prepared.inputs.data.client(client).train) for client in one.updates}
            for name, change in one.mean.items():
                mean = sum(one.updates[client][name].double() * sizes[client] for client in sizes) / sum(sizes.values())
                torch.testing.assert_close(change.double(), mean, rtol=1e-4, atol=1e-6)


def test_a_table_at_80_columns_and_the_same_as_json(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = made(inputs, tmp_path / "run", "lora")
    code, out, said = call(run)
    assert (code, said) == (0, "") and max(map(len, out.splitlines())) <= 80
    found = json.loads((run / "audit.json").read_text())
    for row in found["rows"]:
        assert row["name"] in out and row["unit"] in " ".join(out.split())
        for figure in row["views"].values():
            assert figure["low"] <= figure["value"] <= figure["high"] or row["name"] == "members named"
            assert figure["guessing"] == pytest.approx(row["guessing"], abs=0.5)
            assert figure["better_than_guessing"] in (False, not figure["low"] <= figure["guessing"] <= figure["high"])
    names = [row["name"] for row in found["rows"]]
    assert names == ["label shares", "members by loss", "members by angle", "members named", "words", "canaries"]
    assert [row["guessing"] for row in found["rows"][1:5]] == [0.5, 0.5, 0.01, 0.5]
    code, again, _ = call(run, "--json")
    assert code == 0 and json.loads(again) == found


def test_an_adapter_whose_gradients_are_no_linear_maps_is_not_tried_by_direction(inputs: Path, tmp_path: Path) -> None:
    run = made(inputs, tmp_path / "run", "fedprompt")
    assert call(run, "--clients", "1")[0] == 0
    rows = {row["name"]: row for row in json.loads((run / "audit.json").read_text())["rows"]}
    assert rows["members by angle"]["views"] == {} and "not a linear map" in rows["members by angle"]["why_empty"]
    assert rows["members by loss"]["views"] and "is not sent" in rows["words"]["why_empty"]


def test_without_the_checkpoint_before_the_last_round_the_first_is_audited_alone(inputs: Path, tmp_path: Path) -> None:
    run = made(inputs, tmp_path / "run", "lora", resources={"keep_checkpoints": 1})
    code, out, _ = call(run, "--clients", "1")
    found = json.loads((run / "audit.json").read_text())
    assert code == 0 and found["rounds"] == [0] and "resources.keep_checkpoints" in found["note"] and "note: round" in " ".join(out.split())


def test_what_cannot_be_audited_is_told_in_a_sentence(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, out, said = call(tmp_path / "empty")
    assert (code, out) == (2, "") and said.endswith("got a folder without config.toml, expected the folder of a run, as given to --out")

    def stop(event: object) -> None:
        if isinstance(event, RoundDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs, method={"kind": "lora"}), tmp_path / "half", stop)
    assert "is not finished; finish it with: fibecfed resume" in call(tmp_path / "half")[2]
    buffered = made(inputs, tmp_path / "buffered", "lora", federation={"schedule": "buffered"})
    code, _, said = call(buffered)
    assert code == 2 and 'federation.schedule: got "buffered"' in said


def test_a_private_run_is_audited_without_a_charge_and_by_what_it_released(inputs: Path, tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "federation": {"on_failure": "drop"},
        "privacy": {"unit": "client", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3},
    }
    run = made(inputs, tmp_path / "run", "lora", **tables)
    before = files(run)
    prepared = prepare(run_config(inputs, method={"kind": "lora"}, **tables))
    (_, last), server, _ = observed(prepared, run)
    assert files(run) == before  # its ledger above all
    end = prepared.method.server_params(server)
    assert all(torch.equal(end[name], tensor) for name, tensor in last.after.items())
    assert call(run, "--clients", "1")[0] == 0
    assert "not covered by its guarantee" in json.loads((run / "audit.json").read_text())["note"]
    short = {**tables, "federation": {"on_failure": "drop", "rounds": 1}}
    once = made(inputs, tmp_path / "once", "lora", **short)
    (only,), server, _ = observed(prepare(run_config(inputs, method={"kind": "lora"}, **short)), once)
    end = prepared.method.server_params(server)
    assert all(torch.equal(end[name], tensor) for name, tensor in only.after.items())  # the noise that was released
