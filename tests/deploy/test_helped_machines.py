"""Secure aggregation with a helper in real processes on 127.0.0.1: a SuperLink, three clients, the helper with its own SuperNode."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from machines import BIN, Machines
from tiny_federation import NAMES, make_tiny, outcome, rounds_of, start_tiny

pytestmark = [pytest.mark.flower, pytest.mark.machines]

HELPER = "helper"
HELPED_BY = """
[method]
kind = "lora"
[privacy]
secure_aggregation = "helper"
min_clients = 3
dropouts = 0
[privacy.keys]
{keys}
"""


def helper(*more: str) -> tuple[str, ...]:
    """The command of the helper."""
    own = ("--config", "fed/federation.toml", "--socket", "helper.sock", "--folder", HELPER)
    return sys.executable, "-m", "fibecfed", "helper", *own, *more


def key_of(here: Machines, name: str) -> str:
    own = ("--config", "fed/federation.toml", "--data", f"{name}-train.csv", "--socket", f"{name}.sock", "--name", name)
    command = helper() if name == HELPER else (sys.executable, "-m", "fibecfed", "client", *own)
    return here.run(*command, "--show-key").splitlines()[-1]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("h")
    here = make_tiny(folder, method="", rounds=2, clients_per_round=3, max_samples=100)
    keys = "\n".join(key_of(here, name) for name in (*NAMES, HELPER))
    for path in (here.app / "federation.toml", folder / "sim.toml"):
        path.write_text(path.read_text() + HELPED_BY.format(keys=keys))
    try:
        start_tiny(here, eager=True)
        here.key(HELPER)
        here.register(HELPER)
        link = ("--superlink", f"{here.host}:{here.port}", "--key", f"{HELPER}-key")
        here.start(HELPER, *helper(*link, "--root-certificates", str(here.app / "certificates" / "ca.crt")))
        here.until(HELPER, "listening at")
        yield here
    finally:
        here.close()


def test_sums_with_a_helper_are_the_simulators_bit_for_bit(machines: Machines) -> None:
    machines.run(sys.executable, "-m", "fibecfed", "run", "sim.toml", "--out", "sim")
    shown = machines.run(str(BIN / "flwr"), "run", "fed", "production", "--stream")
    (out,) = (machines.app / "runs").iterdir()
    assert (out / "summary.json").is_file(), shown
    assert outcome(out) == outcome(machines.folder / "sim")
    for one, other in zip(rounds_of(out), rounds_of(machines.folder / "sim"), strict=True):
        assert not one.failures and not one.steps and one.notes["sum"] == other.notes["sum"] and one.notes[HELPER]["bytes_up"] > 0
    assert machines.log(HELPER).count("unmask: tune round") == 2 and "key: tune round 0: done" in machines.log(HELPER)
    machines.run(*helper("--status"))
    assert Path(machines.folder / HELPER / "identity.key").stat().st_mode & 0o777 == 0o600
