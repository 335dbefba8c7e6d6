"""Clients on several devices, a process each: the bits of one process, whatever happens to the others; or a sentence."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from resumed import facts
from saved import adapter_files, run_config

from fibecfed import session
from fibecfed.build import prepare
from fibecfed.client_manager import orders, simulated
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.engine import spawned
from fibecfed.engine.events import RoundDone
from fibecfed.engine.spawned import Launcher
from fibecfed.engine.worker import Unable
from fibecfed.engine.workers import Workers

TWO = {"resources": {"devices": ["cpu", "cpu"]}, "training": {"device": "auto"}}


@pytest.mark.slow
def test_a_run_on_two_devices_has_the_bits_of_one_though_a_process_dies(inputs: Path, whole: Any, tmp_path: Path) -> None:
    crews = list[Workers]()

    def connect(*arguments: Any) -> Any:
        clients = simulated(*arguments)
        assert isinstance(clients.transport, Workers)
        crews.append(clients.transport)
        return clients

    used = set[int]()

    def listen(event: object) -> None:
        used.update(crews[0].pids)
        if isinstance(event, RoundDone) and event.index == 1:
            os.kill(crews[0].pids[0], signal.SIGKILL)

    summary = session.start(run_config(inputs, **TWO), tmp_path / "run", listen, connect=connect)
    folder, expected, _ = whole
    assert adapter_files(tmp_path / "run") == adapter_files(folder) and summary["adapters"] == expected["adapters"]
    assert summary["scores"] == expected["scores"]
    alike = [[{**one, "recomputed": ()} for one in facts(run)] for run in (tmp_path / "run", folder)]
    assert alike[0] == alike[1]
    assert len(used) == 3 and os.getpid() not in used
    assert not any(Path(f"/proc/{pid}").exists() for pid in used)


def stub(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """In place of the program one that says this, and then waits."""
    lines = ["import sys", "from multiprocessing.connection import Connection", "pipe = Connection(int(sys.argv[1]))", "pipe.recv_bytes()"]
    (folder / "stub_of_a_worker.py").write_text("\n".join([*lines, f"pipe.send_bytes({says!r}.encode())", "pipe.recv_bytes()"]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(spawned, "PROGRAM", "stub_of_a_worker")


def test_all_begin_at_once_and_one_that_ended_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path, monkeypatch, json.dumps({"kind": "ready"}))
    launcher = Launcher([{}, {}])
    first = launcher.start()
    second = launcher.start()
    assert first.pid != second.pid
    first.end()
    third = launcher.start()
    assert third.pid not in (first.pid, second.pid)
    second.end()
    third.end()
    other = Launcher([{}, {}])
    held = other.start()
    other.close()
    held.end()


def test_why_a_process_is_of_no_use_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path, monkeypatch, json.dumps({"kind": "unable", "text": "CUDA out of memory"}))
    with pytest.raises(Unable, match="CUDA out of memory"):
        Launcher([{}]).start()


def test_a_process_that_finds_other_data_does_not_compute(inputs: Path) -> None:
    from fibecfed.device_worker import prepared

    made = prepare(run_config(inputs, **TWO))
    order, other = orders(made, 0, inputs / "run")
    assert order == other and 'device = "cpu"' in order["config"] and prepared(order)
    with pytest.raises(UserError, match="got other data or another model than the run began with"):
        prepared({**order, "fingerprint": "other"})


def test_a_run_whose_processes_cannot_start_stops_in_a_sentence(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(tmp_path, monkeypatch, json.dumps({"kind": "unable", "text": "no room"}))
    with pytest.raises(RunFailed, match=r"resources\.devices: a worker process cannot be started: no room; choose others"):
        session.start(run_config(inputs, **TWO), tmp_path / "run")


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"resources": {"devices": []}}, "resources.devices: got .*, expected a list of devices such as"),
        ({"resources": {"devices": ["gpu"]}}, "resources.devices: got .*, expected a list of devices such as"),
        ({"resources": {"devices": ["cuda:0", "cuda:0"]}}, "expected devices of one kind, each once"),
        ({"resources": {"devices": ["cuda:0", "cpu"]}}, "expected devices of one kind, each once"),
        ({"training": {"device": "cpu"}}, 'with `training.device` = "cpu", expected one of them alone'),
        ({"resources": {"devices": ["cpu", "cpu"], "workers": 2}}, "with `resources.workers`"),
        ({"resources": {"devices": ["cpu", "cpu"], "cohort_batch": 2}}, "with `resources.cohort_batch`"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(tables: dict[str, Any], sentence: str, inputs: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        run_config(inputs, **{**TWO, **tables})


def test_a_device_that_is_not_there_is_named_before_anything_is_written(inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, resources={"devices": ["cuda:98", "cuda:99"]}, training={"device": "auto"})
    with pytest.raises(UserError, match=r"resources\.devices: 'cuda:98' cannot be used here"):
        session.start(config, tmp_path / "run")
    assert not (tmp_path / "run" / "records.jsonl").exists()
