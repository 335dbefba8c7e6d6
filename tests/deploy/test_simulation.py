"""Flower's own simulation, on Ray, in front of resident clients: as docs/deploy.md says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")
pytest.importorskip("ray", reason="needs Ray: pip install 'flwr[simulation]', or make test-flower")

from machines import BIN
from tiny_federation import NAMES, facts, make_tiny, outcome

pytestmark = [pytest.mark.flower, pytest.mark.slow]


def test_flowers_simulation_ends_with_the_bits_of_ours(tmp_path: Path) -> None:
    here = make_tiny(tmp_path, rounds=2, clients_per_round=2)
    try:
        for number, name in enumerate(NAMES):
            here.client(name, socket=f"{number}.sock")
        for name in NAMES:
            here.until(f"client-{name}", "listening at")
        sockets = f'socket="{tmp_path}/{{}}.sock"'
        nodes = f"num-supernodes={len(NAMES)}"
        shown = here.run(str(BIN / "flwr"), "run", "fed", "local", "--stream", "--federation-config", nodes, "--run-config", sockets)
    finally:
        here.close()
    (out,) = (here.app / "runs").iterdir()
    assert (out / "summary.json").is_file(), shown
    here.run(sys.executable, "-m", "fibecfed", "run", "sim.toml", "--out", "sim")
    assert outcome(out) == outcome(tmp_path / "sim") and facts(out) == facts(tmp_path / "sim")
