"""Checkpoints and the run's lock between processes: killed ones, and two at once."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from draws import drawn

from fibecfed.core.errors import UserError
from fibecfed.engine.checkpoint import Checkpoints, run_lock

ENVIRONMENT = {"PYTHONPATH": ":".join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}

_LOOP = """
import os, sys, time
from pathlib import Path
from fibecfed.engine.checkpoint import Checkpoints, run_lock

def run(folder):
    with run_lock(folder):
        checkpoints = Checkpoints(folder / "checkpoints", 2)
        latest = checkpoints.load_latest()
        states = checkpoints.open_states(latest, 3000)
        number = latest.number if latest else 0
        until = time.monotonic() + 20
        print(os.getpid(), flush=True)
        while time.monotonic() < until:
            number += 1
            for i in range(10):
                states.put(f"client/{i}", f"{number}:".encode() * (200 + i))
            checkpoints.save(number, f"{number}:".encode() * 300, states, {"number": number})

for _ in sys.stdin:  # a process for each line; what takes long to import is imported once
    if not (child := os.fork()):
        run(Path(sys.argv[1]))
        os._exit(0)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_a_run_killed_at_random_moments_always_finds_server_and_clients_of_one_round(tmp_path: Path) -> None:
    draw = drawn()
    last = 0
    command = [sys.executable, "-c", _LOOP, str(tmp_path)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        for _ in range(20):
            starter.stdin.write("go\n")
            child = int(starter.stdout.readline())
            time.sleep(draw.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)
            assert starter.stdout.readline() == "dead\n"
            with run_lock(tmp_path):
                checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
                latest = checkpoints.load_latest()
                states = checkpoints.open_states(latest, 3000)
            if latest is None:
                assert not len(states)
                continue
            assert latest.warnings == ()
            assert latest.number >= last
            last = latest.number
            number = f"{last}:".encode()
            assert latest.server == number * 300
            assert latest.extra == {"number": last}
            assert {client: states.get(client) for client in states.clients()} == {f"client/{i}": number * (200 + i) for i in range(10)}
        starter.stdin.close()
    assert last > 0


def test_a_second_process_on_the_same_folder_is_refused_with_the_id_of_the_first(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fibecfed.engine.checkpoint import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print(1, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(UserError, match=f"process {process.pid}"), run_lock(tmp_path):
            pytest.fail("two holders")
        process.kill()
    with run_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_is_free_again_after_its_context_even_when_that_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_lock(tmp_path / "new"):
        raise KeyError
    with run_lock(tmp_path / "new"), pytest.raises(UserError, match=f"process {os.getpid()}"), run_lock(tmp_path / "new"):
        pytest.fail("two holders")
    with (tmp_path / "new" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
