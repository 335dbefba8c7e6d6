"""Real processes on 127.0.0.1: a SuperLink with TLS and registered keys, three SuperNodes, three resident clients, a tiny model."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from machines import BIN, WAIT_S, Machines
from tiny_federation import NAMES, facts, make_tiny, outcome, rounds_of, start_tiny

pytestmark = [pytest.mark.flower, pytest.mark.slow]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    here = make_tiny(tmp_path_factory.mktemp("f"), rounds=3, clients_per_round=2)
    try:
        here.key("stranger")
        start_tiny(here)
        here.node("stranger")
        yield here
    finally:
        here.close()


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


def test_over_tls_with_keys_state_records_and_adapters_are_the_simulators_byte_for_byte(finished: Path, simulated: Path) -> None:
    assert facts(finished) == facts(simulated)
    assert outcome(finished) == outcome(simulated)


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
    for name in NAMES:
        assert "SuperNode ID" in machines.log(f"node-{name}")
    assert machines.log("node-stranger") and "SuperNode ID" not in machines.log("node-stranger")


def test_a_client_killed_in_the_middle_of_a_round_and_started_again_is_asked_again_in_it(finished: Path, machines: Machines) -> None:
    gone, other = next(r for r in rounds_of(finished) if r.number == 2).cohort
    out = machines.begun(2)
    for name in (gone, other):  # so that neither has answered when one of them dies
        machines.running[f"client-{name}"].send_signal(signal.SIGSTOP)
    time.sleep(12)  # Flower asks for messages every few seconds and starts a relay, which hands the message over
    machines.stop(f"client-{gone}", signal.SIGKILL)
    machines.client(gone)
    machines.until(f"client-{gone}", "listening at")
    machines.running[f"client-{other}"].send_signal(signal.SIGCONT)
    machines.running.pop("flwr").wait(2 * WAIT_S)
    assert (out / "summary.json").is_file(), machines.log("flwr")
    assert not any(record.failures for record in rounds_of(out))
    assert facts(out) == facts(finished)
    assert outcome(out) == outcome(finished)


def test_a_killed_server_app_and_then_resume_end_with_the_same_adapters(finished: Path, machines: Machines) -> None:
    out = machines.begun(2)
    (server,) = machines.pids("flwr-serverapp")
    os.kill(server, signal.SIGKILL)
    assert not (out / "summary.json").exists()
    machines.stop("flwr", signal.SIGKILL)
    machines.run(sys.executable, "-m", "fibecfed", "resume", str(out))
    assert facts(out) == facts(finished)
    assert outcome(out) == outcome(finished)


def test_a_killed_superlink_and_client_and_then_resume_end_with_the_same_adapters(finished: Path, machines: Machines) -> None:
    out = machines.begun(2)
    machines.stop("link", signal.SIGKILL)
    machines.stop("client-a", signal.SIGKILL)
    machines.stop("flwr", signal.SIGKILL)
    assert not (out / "summary.json").exists()
    time.sleep(6)  # the server app sees within seconds that its SuperLink is gone
    machines.link()
    machines.client("a")
    machines.until("client-a", "listening at")
    machines.run(sys.executable, "-m", "fibecfed", "resume", str(out))  # SuperNodes and keys are still there
    for name in NAMES:
        assert machines.running[f"node-{name}"].poll() is None
    assert facts(out) == facts(finished)
    assert outcome(out) == outcome(finished)
