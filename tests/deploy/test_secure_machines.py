"""Secure aggregation with real processes on 127.0.0.1: a SuperLink, five SuperNodes and five resident clients, a tiny model."""

from __future__ import annotations

import csv
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

import eager_supernode
from machines import BIN, WAIT_S, Machines
from saved import save_backbone, write_reviews
from tiny_federation import COMMON, outcome, rounds_of

pytestmark = [pytest.mark.flower, pytest.mark.machines]

NAMES = ("a", "b", "c", "d", "e")
SECURE = """
[method]
kind = "lora"
[privacy]
secure_aggregation = true
[privacy.keys]
{keys}
"""
FEDERATION = 'rounds = 3\nclients_per_round = 5\nmax_samples = 100\non_failure = "drop"\n'


def write_data(folder: Path) -> None:
    write_reviews(folder / "reviews.csv", 100)
    with (folder / "reviews.csv").open(encoding="utf-8") as file:
        rows = [{**row, "site": NAMES[(i // 2) % 5]} for i, row in enumerate(csv.DictReader(file))]
    for part, some in (("train", rows[:80]), ("test", rows[80:])):
        for name in ("all", *NAMES):
            with (folder / f"{name}-{part}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["review", "verdict", "site"])
                writer.writeheader()
                writer.writerows(row for row in some if name in ("all", row["site"]))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("s")
    here = Machines(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_backbone(folder / "backbone")
    write_data(folder)
    here.make()
    keys = "\n".join(key_of(here, name) for name in NAMES)
    data = f'path = "{folder}/all-train.csv"\ntest_path = "{folder}/all-test.csv"\nclient_column = "site"'
    for path, data_keys, more in (
        (here.app / "federation.toml", "", 'partition = "machines"\nround_timeout_s = 120.0'),
        (folder / "sim.toml", data, 'partition = "column"'),
    ):
        text = COMMON.format(backbone=folder / "backbone", every=3, data=data_keys, federation=FEDERATION + more)
        path.write_text(text.replace("clients = 3", "clients = 5") + SECURE.format(keys=keys))
    try:
        here.link()
        for name in NAMES:
            here.key(name)
            here.client(name)
            here.register(name)
        for name in NAMES:
            here.until(f"client-{name}", "listening at")
            here.node(name, (sys.executable, eager_supernode.__file__))  # a sum takes five exchanges
        yield here
    finally:
        here.close()


def key_of(here: Machines, name: str) -> str:
    """The line that the client prints before there is a configuration with keys."""
    command = ("client", "--config", "fed/federation.toml", "--data", f"{name}-train.csv", "--socket", f"{name}.sock", "--name", name)
    return here.run(sys.executable, "-m", "fibecfed", *command, "--show-key").splitlines()[-1]


def test_masked_sums_are_the_simulators_bit_for_bit_and_a_client_may_be_lost(machines: Machines) -> None:
    machines.run(sys.executable, "-m", "fibecfed", "run", "sim.toml", "--out", "sim")
    shown = machines.run(str(BIN / "flwr"), "run", "fed", "production", "--stream")
    (out,) = (machines.app / "runs").iterdir()
    assert (out / "summary.json").is_file(), shown
    assert outcome(out) == outcome(machines.folder / "sim")
    for one, other in zip(rounds_of(out), rounds_of(machines.folder / "sim"), strict=True):
        assert not one.failures and one.notes == other.notes and not one.steps
    for name in NAMES:
        assert machines.log(f"client-{name}").count("reveal: tune round") == 3
        assert (machines.folder / f"{name}-client" / "identity.key").stat().st_mode & 0o777 == 0o600

    machines.start("flwr", str(BIN / "flwr"), "run", "fed", "production", "--stream")
    machines.before["client-e"] = len(machines.log("client-e"))
    machines.until("client-e", "share: tune round 0: done")
    os.kill(machines.running["client-e"].pid, signal.SIGKILL)
    machines.running.pop("flwr").wait(2 * WAIT_S)
    (again,) = set((machines.app / "runs").iterdir()) - {out}
    assert (again / "summary.json").is_file(), machines.log("flwr")
    assert all(set(record.failures) <= {"e"} for record in rounds_of(again)) and rounds_of(again)[-1].failures
