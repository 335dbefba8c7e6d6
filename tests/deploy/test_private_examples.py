"""Federations across machines that are private for examples: the simulator's bits, and every client its own ledger and its own no."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made_flower import be_an_app, stop_time
from served import residents, serve, write_files
from tiny_federation import NAMES, outcome

from fibecfed import session
from fibecfed.config import load
from fibecfed.core.errors import RunFailed
from fibecfed.engine.flower.resident import Resident
from fibecfed.privacy.ledger import LEDGER

pytestmark = [pytest.mark.flower, pytest.mark.filterwarnings("ignore")]

PRIVATE = """
[method]
kind = "lora"
[privacy]
unit = "example"
epsilon = 4.0
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


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / LEDGER).read_text().splitlines()]


def test_the_simulators_bits_with_a_ledger_on_every_client(here: Path, clients: dict[str, Resident], tmp_path: Path) -> None:
    session.start(load(here / "sim.toml").config, tmp_path / "sim")
    out = serve(here, tmp_path / "runs", clients)
    assert outcome(out)[0] == outcome(tmp_path / "sim")[0]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["privacy"]["epsilon"] == json.loads((tmp_path / "sim" / "summary.json").read_text())["privacy"]["epsilon"] <= 4.0
    for name in NAMES:
        (folder,) = (tmp_path / name / "ledgers").iterdir()
        _, *mine = lines(folder)
        _, *simulated = lines(tmp_path / "sim" / "ledgers" / name)
        assert mine and [line["epsilon_max"] for line in mine] == [line["epsilon_max"] for line in simulated]
        assert not list((tmp_path / name).rglob("noise.secret"))


def test_a_client_rejects_a_second_run_since_it_would_begin_with_a_new_budget(
    here: Path, clients: dict[str, Resident], tmp_path: Path
) -> None:
    serve(here, tmp_path / "runs", clients)
    before = {name: next((tmp_path / name / "ledgers").iterdir()) for name in NAMES}
    charged = {name: (folder / LEDGER).read_bytes() for name, folder in before.items()}
    with pytest.raises(RunFailed):
        serve(here, tmp_path / "more", clients)
    for name, folder in before.items():
        assert list((tmp_path / name / "ledgers").iterdir()) == [folder] and (folder / LEDGER).read_bytes() == charged[name]
