"""Runs with secure aggregation in the simulator: the server gets sums alone, and what they end in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file
from saved import run_config

from fibecfed import session
from fibecfed.build import prepare
from fibecfed.check import plan_traffic, sums_section
from fibecfed.config import Config
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.types import Failure
from fibecfed.engine.simulator import Simulator
from fibecfed.privacy.statement import cohort_lines

DP = {"unit": "client", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3}


def summed(inputs: Path, **tables: Any) -> Config:
    federation = {"clients_per_round": 4, "rounds": 2, "max_samples": 100, **tables.pop("federation", {})}
    privacy = {"secure_aggregation": True, "dropouts": 0, **tables.pop("privacy", {})}
    return run_config(inputs, federation=federation, privacy=privacy, **{"method": {"kind": "lora"}, **tables})


def adapter(out: Path) -> dict[str, Any]:
    return dict(load_file(out / "global" / "adapter_model.safetensors").items())


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    return [one for one in map(json.loads, (out / "records.jsonl").read_text().splitlines()) if one.get("kind") == kind]


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("summed") / "run"
    session.start(summed(inputs, privacy={"evaluation": "exact"}), out)
    return out


def test_it_ends_beside_the_plain_run(whole: Path, inputs: Path, tmp_path: Path) -> None:
    session.start(run_config(inputs, federation={"clients_per_round": 4, "rounds": 2}, method={"kind": "lora"}), tmp_path / "plain")
    plain, own = adapter(tmp_path / "plain"), adapter(whole)
    assert max(float((own[name] - value).abs().max()) for name, value in plain.items()) < 1e-4


def test_nothing_of_single_clients_is_recorded(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["secure_aggregation"] == {
        "kind": "pairs", "clients_per_round": 4, "least": 4, "colluders": 1, "dropouts": 0, "beyond_range": 0, "evaluation": "exact",
    }  # fmt: skip
    assert summary["clients_that_took_part"] == 4 and summary["scores"]["global"] is not None
    for record in records(whole, "round"):
        assert not (record["steps"] or record["examples"] or record["loss"] or record["compute_s"])
        assert record["notes"]["sum"]["num_samples"] > 0
        assert set(record["fields_up"]) == {"sum", "overhead"} and sum(record["fields_up"].values()) == sum(record["bytes_up"].values())
        assert sum(record["fields_down"].values()) == sum(record["bytes_down"].values())


def test_check_foretells_the_bytes_and_what_a_sum_hides(whole: Path, inputs: Path) -> None:
    prepared = prepare(summed(inputs, privacy={"evaluation": "exact"}))
    assert prepared.cohorts is not None
    (traffic,) = plan_traffic(prepared)
    found = [sum(record["bytes_up"].values()) for record in records(whole, "round")]
    assert sum(found) == traffic.total_up.least == traffic.total_up.most
    ((_, lines),) = sums_section(prepared)
    console = Console(width=120)
    with console.capture() as text:
        console.print(lines)
    assert "at least 4 of 4 clients; with 1 who work with the server, it hides at least 3" in text.get()
    assert "taken off by the clients" in text.get()
    assert "taken off by the helper" in dict(cohort_lines(replace(prepared.cohorts, helped=True), None))["masks"]


def test_by_default_nothing_is_scored(inputs: Path, tmp_path: Path) -> None:
    summary = session.start(summed(inputs), tmp_path / "run")
    assert summary["scores"]["global"] is None and summary["secure_aggregation"]["evaluation"] == "off"


def test_a_resumed_run_ends_in_the_same_bits(whole: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Simulator.answer
    with monkeypatch.context() as patch:
        patch.setattr(
            Simulator, "answer", lambda self, ticket, blob: Failure("gone") if ticket.now.number == 1 else true(self, ticket, blob)
        )
        with pytest.raises(RunFailed, match="gone"):
            session.start(summed(inputs, privacy={"evaluation": "exact"}, resources={"workers": 1}), tmp_path / "run")
    session.resume(tmp_path / "run")
    first, second = (json.loads((out / "summary.json").read_text())["adapters"] for out in (whole, tmp_path / "run"))
    assert first == second


def test_noise_on_a_sum_is_the_noise_of_a_private_run(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fibecfed.privacy.ledger.secrets.token_bytes", lambda size: b"7" * size)
    federation = {"on_failure": "drop", "clients_per_round": 4, "rounds": 2}
    for name, privacy in (("plain", DP), ("summed", {**DP, "secure_aggregation": True, "dropouts": 0})):
        session.start(run_config(inputs, federation=federation, privacy=privacy, method={"kind": "lora"}), tmp_path / name)
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("plain", "summed"))
    assert first["adapters"] == second["adapters"] and {**first["privacy"], "secure_aggregation": True} == second["privacy"]
    cards = [(tmp_path / name / "global" / "README.md").read_text() for name in ("plain", "summed")]
    assert "which sees clipped updates" in cards[0] and "which sees sums of clipped updates" in cards[1]
    assert second["secure_aggregation"]["least"] == 4


def lost(monkeypatch: pytest.MonkeyPatch, clients: set[str]) -> None:
    true = Simulator.answer
    monkeypatch.setattr(
        Simulator, "answer", lambda self, ticket, blob: Failure("gone") if ticket.client in clients else true(self, ticket, blob)
    )


def test_rounds_may_lose_as_many_clients_as_is_said(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost(monkeypatch, {"0"})
    federation, more = {"on_failure": "drop"}, {"dropouts": 1, "min_clients": 3}
    summary = session.start(summed(inputs, federation=federation, privacy=more, resources={"workers": 1}), tmp_path / "run")
    assert summary["clients_that_took_part"] == 3
    lost(monkeypatch, {"0", "1"})
    with pytest.raises(RunFailed, match="2 of 4 clients gave an answer that can be summed, expected at least 3"):
        session.start(summed(inputs, federation=federation, privacy=more, resources={"workers": 1}), tmp_path / "again")


@pytest.mark.parametrize("method", [{"kind": "fibecfed"}, {"kind": "hetlora"}, {"kind": "fedex-lora"}, {"kind": "scaffold"}])
def test_a_method_that_needs_single_answers_is_rejected_by_name(method: dict[str, Any], inputs: Path, tmp_path: Path) -> None:
    kind = method["kind"]
    with pytest.raises(UserError, match=f'secure_aggregation: got "helper", which the method {kind} cannot be run with'):
        session.start(summed(inputs, method=method, privacy={"secure_aggregation": "helper"}), tmp_path / "helped")
    with pytest.raises(UserError, match=f'secure_aggregation: got "pairs", which the method {kind} cannot be run with'):
        session.start(summed(inputs, method=method), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_default_of_fibecfed_is_rejected_with_what_to_set_and_then_accepted(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'in its stage "tune" .*; set `method.layers.rule` = "last" without `method.finetune`, or choose'):
        session.start(summed(inputs, method={"preset": None}), tmp_path / "run")
    prepare(summed(inputs, method={"preset": None, "layers": {"rule": "last"}}), trial=True)


def test_a_cohort_that_is_too_small_is_rejected(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"federation.clients_per_round: got 2, expected at least 4"):
        session.start(summed(inputs, federation={"clients_per_round": 2}), tmp_path / "run")
    with pytest.raises(UserError, match=r"federation.max_samples: got 1000000000 for 4 clients per round, expected at most 536870911"):
        session.start(summed(inputs, federation={"max_samples": 10**9}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"federation": {"max_samples": 0}}, "federation.max_samples: got 0 with `privacy.secure_aggregation`"),
        ({"federation": {"aggregation": "median"}}, "federation.aggregation: got 'median' with `privacy.secure_aggregation`"),
        ({"federation": {"schedule": "buffered"}}, 'federation.schedule: got "buffered" with `privacy.secure_aggregation`'),
        ({"federation": {"max_update_norm": 1.0}}, "federation.max_update_norm: got 1.0 with `privacy.secure_aggregation`"),
        ({"federation": {"quorum": 0.5}}, "federation.quorum: got 0.5 with `privacy.secure_aggregation`"),
        ({"federation": {"exclude_after": 1}}, "federation.exclude_after: got 1 with `privacy.secure_aggregation`"),
        ({"evaluation": {"save": "best"}}, 'evaluation.save: got "best" with `privacy.secure_aggregation`'),
        ({"evaluation": {"patience": 3}}, "evaluation.patience: got 3 with `privacy.secure_aggregation`"),
        ({"tracking_by_client": True}, "tracking_by_client: got true with `privacy.secure_aggregation`"),
        ({"privacy": {"secure_aggregation": False, "range": 0.25, "dropouts": 1}}, "privacy.range: got 0.25 without"),
        ({"privacy": {"clip_norm": 0.5}}, 'privacy.clip_norm: got 0.5 with `privacy.unit` = "none"'),
    ],
)
def test_what_does_not_go_with_sums_is_rejected_in_a_sentence(tables: dict[str, Any], sentence: str, inputs: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        summed(inputs, **tables)
