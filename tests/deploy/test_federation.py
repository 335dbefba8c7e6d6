"""Real processes on 127.0.0.1: a SuperLink with TLS and registered keys, three SuperNodes, three resident clients, a tiny model."""

from __future__ import annotations

import csv
import json
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from machines import BIN, WAIT_S, Machines
from saved import save_backbone, write_reviews

from fibecfed.core.records import EvalRecord, RoundRecord, read

pytestmark = [pytest.mark.flower, pytest.mark.slow]

NAMES = ("a", "b", "c")

COMMON = """
[model]
name = "{backbone}"
rank = 4
[training]
batch_size = 4
learning_rate = 0.02
precision = "float32"
device = "cpu"
[evaluation]
every = 2
[data]
labels = ["bad", "good"]
validation_fraction = 0.0
text_column = "review"
label_column = "verdict"
{data}
[federation]
clients = 3
clients_per_round = 2
rounds = 3
{federation}
"""


def write_data(folder: Path) -> None:
    """One file of reviews for the simulator, and each client's part of it."""
    write_reviews(folder / "reviews.csv", 180)
    with (folder / "reviews.csv").open(encoding="utf-8") as file:
        rows = [{**row, "site": NAMES[(i // 2) % 3 if i % 5 else 0]} for i, row in enumerate(csv.DictReader(file))]
    for part, some in (("train", rows[:120]), ("test", rows[120:])):
        for name in ("all", *NAMES):
            with (folder / f"{name}-{part}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["review", "verdict", "site"])
                writer.writeheader()
                writer.writerows(row for row in some if name in ("all", row["site"]))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("f")
    here = Machines(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_backbone(folder / "backbone")
    write_data(folder)
    here.make()
    machines_only = 'partition = "machines"\non_failure = "drop"\nround_timeout_s = 120.0'
    (here.app / "federation.toml").write_text(COMMON.format(backbone=folder / "backbone", data="", federation=machines_only))
    data = f'path = "{folder}/all-train.csv"\ntest_path = "{folder}/all-test.csv"\nclient_column = "site"'
    (folder / "sim.toml").write_text(COMMON.format(backbone=folder / "backbone", data=data, federation='partition = "column"'))
    try:
        here.link()
        for name in (*NAMES, "stranger"):
            here.key(name)
        for name in NAMES:
            here.client(name)
            here.register(name)
        here.node("stranger")
        for name in NAMES:
            here.until(f"client-{name}", "listening at")
            here.node(name)
        yield here
    finally:
        for name in list(here.running):
            here.stop(name)


@pytest.fixture(scope="module")
def simulated(machines: Machines) -> Path:
    machines.run(sys.executable, "-m", "fibecfed", "run", "sim.toml", "--out", "sim")
    return machines.folder / "sim"


@pytest.fixture(scope="module")
def finished(machines: Machines) -> Path:
    """The folder of a run that nothing interrupted."""
    shown = machines.run(str(BIN / "flwr"), "run", "fed", "production", "--stream")
    (out,) = (machines.app / "runs").iterdir()
    assert (out / "summary.json").is_file(), shown
    return out


def facts(out: Path) -> list[Any]:
    """What was recorded, but for times and the server's own counts: it has no test examples across machines."""
    found: list[Any] = []
    for record in read(out / "records.jsonl")[1]:
        if isinstance(record, RoundRecord):
            found.append(
                (record.cohort, record.bytes_down, record.bytes_up, record.fields_down, record.fields_up, record.steps, record.loss)
            )
        elif isinstance(record, EvalRecord) and record.rounds:
            found.append((record.clients, record.loss_pooled, record.bytes_down, record.bytes_up))
    return found


def outcome(out: Path) -> tuple[bytes, Any]:
    last = sorted((out / "checkpoints").glob("server-*.state"))[-1]
    return last.read_bytes(), json.loads((out / "summary.json").read_text())["adapters"]


def test_over_tls_with_keys_state_records_and_adapters_are_the_simulators_byte_for_byte(finished: Path, simulated: Path) -> None:
    assert outcome(finished) == outcome(simulated)
    assert facts(finished) == facts(simulated)


def test_each_client_loaded_its_model_once_while_flower_started_a_process_for_every_message(finished: Path, machines: Machines) -> None:
    for name in NAMES:
        assert machines.log(f"client-{name}").count(": loaded ") == 1
        assert machines.log(f"node-{name}").count("Start `flwr-clientapp` process") >= 5


def test_personal_models_lie_with_their_clients_alone(finished: Path, machines: Machines) -> None:
    run = json.loads((finished / "flower.json").read_text())["run"]
    assert not (finished / "clients").exists()
    for name in NAMES:
        assert (machines.folder / f"{name}-client" / run / "adapter" / "adapter_model.safetensors").is_file()


def test_a_node_whose_key_is_not_registered_gets_nothing(finished: Path, machines: Machines) -> None:
    assert "SuperNode ID" not in machines.log("node-stranger")


def begun(machines: Machines, rounds: int) -> Path:
    """The folder of a new run, as soon as so many of its rounds are in a checkpoint."""
    runs = machines.app / "runs"
    before = set(runs.glob("*"))
    machines.start("flwr", str(BIN / "flwr"), "run", "fed", "production", "--stream")
    end = time.monotonic() + WAIT_S
    while not (new := set(runs.glob("*")) - before) or not list(next(iter(new)).glob(f"checkpoints/*{rounds:05}.json")):
        assert time.monotonic() < end, machines.log("flwr")
        time.sleep(0.2)
    return new.pop()


def test_a_client_killed_in_the_middle_of_a_round_is_left_out_of_it_and_takes_part_again(simulated: Path, machines: Machines) -> None:
    gone, other = next(r for r in rounds_of(simulated) if r.number == 2).cohort
    out = begun(machines, 2)
    for name in (gone, other):  # so that neither has answered when one of them dies
        machines.running[f"client-{name}"].send_signal(signal.SIGSTOP)
    time.sleep(12)  # Flower asks for messages every few seconds and starts a relay, which hands the message over
    machines.stop(f"client-{gone}", signal.SIGKILL)
    machines.client(gone)
    machines.until(f"client-{gone}", "listening at")
    machines.running[f"client-{other}"].send_signal(signal.SIGCONT)
    machines.running.pop("flwr").wait(2 * WAIT_S)
    assert (out / "summary.json").is_file(), machines.log("flwr")
    first, second, third, fourth = rounds_of(out)
    assert set(third.failures) == {gone} and set(third.steps) == {other} and not first.failures | second.failures
    assert not fourth.failures and fourth.cohort == rounds_of(simulated)[3].cohort
    last = [record for record in read(out / "records.jsonl")[1] if isinstance(record, EvalRecord)][-1]
    assert set(last.clients) == set(NAMES) and not last.failures


def rounds_of(out: Path) -> list[RoundRecord]:
    return [record for record in read(out / "records.jsonl")[1] if isinstance(record, RoundRecord)]


def test_a_killed_superlink_and_client_and_then_resume_end_with_the_same_adapters(finished: Path, machines: Machines) -> None:
    out = begun(machines, 2)
    machines.stop("link", signal.SIGKILL)
    machines.stop("client-a", signal.SIGKILL)
    machines.stop("flwr", signal.SIGKILL)
    for name in (*NAMES, "stranger"):
        machines.stop(f"node-{name}", signal.SIGKILL)
    assert not (out / "summary.json").exists()
    time.sleep(6)  # the server app sees within seconds that its SuperLink is gone
    machines.link()
    machines.client("a")
    machines.until("client-a", "listening at")
    for name in NAMES:
        machines.register(name)
        machines.node(name)
    machines.run(sys.executable, "-m", "fibecfed", "resume", str(out))
    assert outcome(out) == outcome(finished) and facts(out) == facts(finished)
