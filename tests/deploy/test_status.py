"""What a client is doing, told by its file, to a terminal, as JSON, and to Prometheus."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from fibecfed.cli import app
from fibecfed.core.errors import UserError
from fibecfed.deploy.metrics import served
from fibecfed.deploy.status import FILE, IDLE, Status
from fibecfed.engine.checkpoint import run_lock
from fibecfed.engine.flower.envelope import Request, packed

TRAIN = Request("train", "0" * 16, "a", "", "tune", 3, 5, 4, packed(b""))


@pytest.fixture
def status(tmp_path: Path) -> Status:
    found = Status(tmp_path, name="a", superlink="server.example:8000", connected=True)
    found.update(examples={"train": 56}, doing=IDLE)
    for state in ("done", "done", "failed"):
        found.begun(TRAIN)
        found.ended(TRAIN, state, 1000, 10)
    return found


@pytest.fixture
def metrics(status: Status) -> Iterator[str]:
    with served(status, 0) as port:
        yield f"http://127.0.0.1:{port}/metrics"


def asked(folder: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["client", "--status", "--folder", str(folder), *options])
    return done.exit_code, done.output


def test_a_client_that_runs_says_what_it_does_and_is_well(status: Status, tmp_path: Path) -> None:
    with run_lock(tmp_path):
        status.begun(TRAIN)
        code, shown = asked(tmp_path)
        assert code == 0
        for part in ("Client a", "train: tune round 3", "server.example:8000: connected", "2 done, 1 failed", "last request"):
            assert part in shown
        code, text = asked(tmp_path, "--json")
    table = json.loads(text)
    assert code == 0 and table["running"] and table["well"] and table["requests"]["train"] == {"done": 2, "failed": 1, "rejected": 0}
    assert (table["received_bytes"], table["sent_bytes"]) == (3000, 30)


def test_a_client_that_ended_or_is_not_connected_is_not_well(status: Status, tmp_path: Path) -> None:
    code, shown = asked(tmp_path)
    assert code == 1 and "not running" in shown
    status.update(connected=False, restarts=2)
    with run_lock(tmp_path):
        code, shown = asked(tmp_path)
    assert code == 1 and "not connected; the SuperNode was started again 2 times" in shown


def test_a_folder_without_a_client_and_a_damaged_file_are_told(tmp_path: Path) -> None:
    code, shown = asked(tmp_path)
    assert code == 2 and "does not exist: no client has run there" in shown
    (tmp_path / FILE).write_text("{}")
    code, shown = asked(tmp_path)
    assert code == 2 and "got other keys than expected; remove it" in shown


def test_a_server_cannot_add_names_to_what_is_counted(status: Status) -> None:
    for number in range(100):
        request = replace(TRAIN, action=f"invented-{number}")
        status.begun(request)
        status.ended(request, "refused", 1, 1)
    assert set(status.table()["requests"]) == {"train", "other"}


def test_prometheus_reads_the_state_as_it_is_now(status: Status, metrics: str) -> None:
    def read() -> dict[str, float]:
        with urllib.request.urlopen(metrics, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return {f"{s.name}{sorted(s.labels.values()) if s.labels else ''}": s.value for family in families for s in family.samples}

    found = read()
    assert found["fibecfed_client_requests_total['done', 'train']"] == 2 and found["fibecfed_client_busy"] == 0
    assert found["fibecfed_client_info['a']"] == 1 and found["fibecfed_client_examples['train']"] == 56
    assert found["fibecfed_client_supernode_connected"] == 1 and "fibecfed_client_certificate_expiry_timestamp_seconds" not in found
    status.begun(TRAIN)
    status.update(certificate_ends=2e9, connected=False)
    found = read()
    assert found["fibecfed_client_busy"] == 1 and found["fibecfed_client_supernode_connected"] == 0
    assert found["fibecfed_client_certificate_expiry_timestamp_seconds"] == 2e9


def test_metrics_are_for_this_machine_alone_and_a_port_in_use_is_told(status: Status) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=r"--metrics-port: \d+ cannot be opened"),
    ):
        port = taken.getsockname()[1]
        with served(status, port):
            pass


def test_who_asks_every_minute_loads_no_library_that_computes() -> None:
    code = "import sys, fibecfed.cli, fibecfed.deploy.status; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'flwr')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
