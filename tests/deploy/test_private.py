"""Federations across machines that are private for clients: the simulator's bits, nothing else of a client, and no charge twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made_flower import be_an_app, stop_time
from served import Killed, residents, serve, write_files
from tiny_federation import facts, outcome

from fibecfed import session
from fibecfed.config import load
from fibecfed.core.wire import decode, encode
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.flower.agreement import digest
from fibecfed.engine.flower.envelope import Reply, Request, packed
from fibecfed.engine.flower.resident import FAILED_IN_PRIVATE, Resident
from fibecfed.engine.runtime import ClientRuntime
from fibecfed.privacy.ledger import LEDGER, Ledger

pytestmark = [pytest.mark.flower, pytest.mark.filterwarnings("ignore")]

PRIVATE = """
[method]
kind = "lora"
[privacy]
unit = "client"
noise_multiplier = 1.0
clip_norm = 1.0
delta = 1e-3
"""
KEYS = 'rounds = 3\nclients_per_round = 2\non_failure = "drop"\n'


@pytest.fixture(autouse=True)
def _one_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fibecfed.privacy.ledger.secrets.token_bytes", lambda size: b"7" * size)
    be_an_app()
    stop_time(monkeypatch)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the data, sim.toml for the simulator and federation.toml for machines."""
    return write_files(tmp_path_factory.mktemp("private"), KEYS, PRIVATE)


@pytest.fixture
def clients(here: Path, tmp_path: Path) -> dict[str, Resident]:
    return residents(here, tmp_path)


@pytest.fixture(scope="module")
def simulated(here: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fibecfed.privacy.ledger.secrets.token_bytes", lambda size: b"7" * size)
        session.start(load(here / "sim.toml").config, here / "sim")
    return here / "sim"


def charges(out: Path) -> list[dict[str, Any]]:
    """The ledger without its codes: the clients' data is not known to a server of machines."""
    lines = [json.loads(line) for line in (out / LEDGER).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("code", "data_code")} for line in lines]


def test_the_simulators_bits_and_charges_and_nothing_else_of_a_client(
    here: Path, clients: dict[str, Resident], simulated: Path, tmp_path: Path
) -> None:
    out = serve(here, tmp_path / "runs", clients)
    assert outcome(out) == outcome(simulated) and charges(out) == charges(simulated)
    assert facts(out) == facts(simulated)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["privacy"] == json.loads((simulated / "summary.json").read_text())["privacy"]
    assert summary["adapters"]["personal"] == 0 and summary["clients"] == {} and not (out / "checkpoints" / "noise.secret").exists()
    for record in map(json.loads, (out / "records.jsonl").read_text().splitlines()[1:]):
        assert not any(record.get(name) for name in ("steps", "examples", "loss", "compute_s", "notes", "failures"))


def test_noised_scores_are_the_simulators_and_charged_alike(here: Path, tmp_path: Path) -> None:
    for name in ("federation", "sim"):
        (here / f"{name}-scored.toml").write_text((here / f"{name}.toml").read_text() + 'evaluation = "noised"\n')
    session.start(load(here / "sim-scored.toml").config, tmp_path / "sim")
    scored = residents(here, tmp_path, "federation-scored.toml")
    out = serve(here, tmp_path / "runs", scored, file="federation-scored.toml")
    assert outcome(out) == outcome(tmp_path / "sim") and charges(out) == charges(tmp_path / "sim")
    one, other = (json.loads((folder / "summary.json").read_text())["scores"] for folder in (out, tmp_path / "sim"))
    assert one == other and one["global"] is not None and [line["phase"] for line in charges(out)[1:]] == 3 * ["tune", "evaluation"]


@pytest.mark.parametrize("gap", ["before the line", "after the line", "before the checkpoint", "after the checkpoint"])
def test_a_server_that_is_killed_charges_once_and_makes_the_same_releases(
    gap: str, here: Path, clients: dict[str, Resident], simulated: Path, tmp_path: Path
) -> None:
    owner, name = (Ledger, "charge") if "line" in gap else (Checkpoints, "save")
    true, calls = getattr(owner, name), list[int]()

    def dies(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            if gap.startswith("after"):
                true(*args, **named)
            raise Killed
        return true(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            serve(here, tmp_path / "runs", clients)
    (out,) = (tmp_path / "runs").iterdir()
    serve(here, tmp_path / "runs", clients, again=out)
    assert outcome(out) == outcome(simulated) and charges(out) == charges(simulated)


def test_a_failure_has_one_sentence_whatever_happened_and_the_divisor_stays(
    here: Path, clients: dict[str, Resident], simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, replies, train = list[str](), list[Reply](), ClientRuntime.train
    (silent, *_) = charges(simulated)[1]["charged"]
    client = replace(clients[silent], say=told.append)

    def fails(runtime: Any, name: str, blob: bytes, now: Any) -> Any:
        if name == silent:
            raise ValueError("patient 7 has the token 4711")
        return train(runtime, name, blob, now)

    def answer(blob: bytes) -> bytes:
        replies.append(decode(Reply, client.answer(blob)))
        return encode(replies[-1])

    monkeypatch.setattr(ClientRuntime, "train", fails)
    out = serve(here, tmp_path / "runs", clients, instead={silent: answer})
    failed = [reply.reason for reply in replies if reply.status == "failed"]
    assert failed and set(failed) == {FAILED_IN_PRIVATE} and any("4711" in text for text in told)
    assert "4711" not in (out / "records.jsonl").read_text()
    assert {line["divisor"] for line in charges(out)[1:]} == {2} and len(charges(out)) == 4


def test_a_client_of_a_run_that_is_not_scored_answers_no_evaluation(clients: dict[str, Resident]) -> None:
    client = clients["a"]
    request = Request("evaluate_global", "0123456789abcdef", "a", digest(client.config), "tune", 0, 3, 0, packed(b""))
    reply = decode(Reply, client.answer(encode(request)))
    assert reply.status == "refused" and 'privacy.evaluation` = "off"' in reply.reason
