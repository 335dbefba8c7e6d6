"""Real processes on 127.0.0.1: a SuperLink with TLS and registered keys, three SuperNodes, three resident clients, a tiny model."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from saved import save_backbone, write_reviews

from fibecfed.core.records import EvalRecord, RoundRecord, read

pytestmark = [pytest.mark.flower, pytest.mark.slow]

NAMES = ("a", "b", "c")
BIN = Path(sys.executable).parent
WAIT_S = 240

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Machines:
    """The processes of a federation, each with a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.app = folder, folder / "fed"
        self.port = free_port()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.before: dict[str, int] = {}
        source = str(Path(__file__).resolve().parents[2] / "src")
        self.environment = {
            **os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "RAY_USAGE_STATS_ENABLED": "0",
            "FLWR_HOME": str(self.app / ".flwr"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=2 * WAIT_S
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout

    def start(self, name: str, *command: str) -> None:
        path = self.folder / f"{name}.log"
        self.before[name] = len(self.log(name)) if path.exists() else 0
        with path.open("ab") as log:
            self.running[name] = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self.running.pop(name)
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def until(self, name: str, text: str) -> None:
        """Wait for a text in what a process has said since it was last started."""
        end = time.monotonic() + WAIT_S
        while text not in self.log(name)[self.before[name] :]:
            assert time.monotonic() < end, f"{name} does not say {text!r}: {self.log(name)[-2000:]}"
            time.sleep(0.2)

    def link(self) -> None:
        certificates = self.app / "certificates"
        self.start(
            "link", str(BIN / "flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port), "--enable-supernode-auth",
            "--ssl-ca-certfile", str(certificates / "ca.crt"), "--ssl-certfile", str(certificates / "server.crt"),
            "--ssl-keyfile", str(certificates / "server.key"),
        )  # fmt: skip
        self.until("link", "Starting Flower SuperExec")

    def client(self, name: str) -> None:
        self.start(
            f"client-{name}", sys.executable, "-m", "fibecfed", "client", "--config", "fed/federation.toml", "--data", f"{name}-train.csv",
            "--test-data", f"{name}-test.csv", "--socket", f"{name}.sock", "--name", name,
        )  # fmt: skip

    def node(self, name: str) -> None:
        self.start(
            f"node-{name}", str(BIN / "flower-supernode"), "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()),
            "--root-certificates", str(self.app / "certificates" / "ca.crt"), "--auth-supernode-private-key", f"{name}-key",
            "--node-config", f'socket="{name}.sock"',
        )  # fmt: skip


def certificates(folder: Path, run: Any) -> None:
    """As in docs/deploy.md."""
    folder.mkdir()
    curve = ("ec", "-pkeyopt", "ec_paramgen_curve:P-384")
    ca, server = folder / "ca", folder / "server"
    (folder / "san.cnf").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    run(
        "openssl", "req", "-x509", "-newkey", *curve, "-nodes", "-days", "2", "-keyout", f"{ca}.key", "-out", f"{ca}.crt", "-subj", "/CN=ca"
    )
    run("openssl", "req", "-newkey", *curve, "-nodes", "-keyout", f"{server}.key", "-out", f"{server}.csr", "-subj", "/CN=localhost")
    run(
        "openssl", "x509", "-req", "-in", f"{server}.csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "2",
        "-extfile", str(folder / "san.cnf"), "-out", f"{server}.crt",
    )  # fmt: skip


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
    here.run(sys.executable, "-m", "fibecfed", "flower", "init", "fed")
    connections = here.app / ".flwr" / "config.toml"
    connections.write_text(connections.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{here.port}"))
    machines_only = 'partition = "machines"\non_failure = "drop"\nround_timeout_s = 120.0'
    (here.app / "federation.toml").write_text(COMMON.format(backbone=folder / "backbone", data="", federation=machines_only))
    data = f'path = "{folder}/all-train.csv"\ntest_path = "{folder}/all-test.csv"\nclient_column = "site"'
    (folder / "sim.toml").write_text(COMMON.format(backbone=folder / "backbone", data=data, federation='partition = "column"'))
    certificates(here.app / "certificates", here.run)
    try:
        here.link()
        for name in (*NAMES, "stranger"):
            here.run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "", "-f", f"{name}-key")
        for name in NAMES:
            here.client(name)
            here.run(str(BIN / "flwr"), "supernode", "register", f"{name}-key.pub", "production", "--name", name)
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


def test_a_killed_superlink_and_client_and_then_resume_end_with_the_same_adapters(finished: Path, machines: Machines) -> None:
    before = set((machines.app / "runs").iterdir())
    machines.start("flwr", str(BIN / "flwr"), "run", "fed", "production", "--stream")
    end = time.monotonic() + WAIT_S
    while not (new := set((machines.app / "runs").iterdir()) - before) or not list(next(iter(new)).glob("checkpoints/*00002.json")):
        assert time.monotonic() < end, machines.log("flwr")
        time.sleep(0.2)
    (out,) = new
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
        machines.run(str(BIN / "flwr"), "supernode", "register", f"{name}-key.pub", "production", "--name", name)
        machines.node(name)
    machines.run(sys.executable, "-m", "fibecfed", "resume", str(out))
    assert outcome(out) == outcome(finished) and facts(out) == facts(finished)
