"""Worker processes that die are replaced, and none is left behind."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from echoing import BLOBS, CLIENTS, NOW, Echo, asked, once, started

from fibecfed.core.errors import RunFailed
from fibecfed.core.types import ClientData, ClientId, Round
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.workers import Workers

# ---- processes that die


@pytest.mark.parametrize("action", ["train", "evaluate"])
def test_a_client_whose_process_is_killed_is_computed_again_and_that_is_said(action: str, tmp_path: Path) -> None:
    def die(client: ClientId, _: bytes) -> None:
        if client == "3" and once(tmp_path / "mark"):
            os.kill(os.getpid(), signal.SIGKILL)

    expected = asked(Simulator(Echo()), action)  # pyright: ignore[reportArgumentType]
    with started(Echo(die)) as transport:
        assert asked(transport, action) == expected
        assert transport.used()[1] == ("3",) and transport.used() == (0.0, ())
        assert asked(transport, "train", replace(NOW, number=1))[0][0] == "0" and transport.used()[1] == ()


def test_one_that_is_killed_in_the_middle_of_a_long_answer_is_noticed(tmp_path: Path) -> None:
    class Long(Echo):
        def train(self, client: ClientId, blob: bytes, now: Round) -> tuple[bytes, dict[str, Any]]:
            return blob * 10**6, {}

        def data(self, client: ClientId) -> ClientData:
            return super().data(str(9 - int(client)))  # the first is the largest

    with started(Long()) as transport:
        tickets = transport.send("train", NOW, BLOBS)
        answers = iter(transport.receive(tickets))
        next(answers)
        os.kill(transport.pids[0], signal.SIGKILL)  # it is writing the next one, of which a pipe does not hold a tenth
        rest = list(answers)
        assert [answer.reply for answer in rest] == [BLOBS[client] * 10**6 for client in CLIENTS[1:]]
        assert len(transport.used()[1]) == 1


def test_one_that_dies_with_nothing_to_do_is_replaced_and_nothing_was_computed_again() -> None:
    with started(Echo()) as transport:
        asked(transport)
        for pid in transport.pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        assert len(asked(transport, "evaluate")) == 6 and transport.used()[1] == ()


def test_a_client_on_which_processes_die_again_and_again_stops_the_run_in_a_sentence() -> None:
    def die(client: ClientId, _: bytes) -> None:
        if client == "3":
            os.kill(os.getpid(), signal.SIGKILL)

    sentence = r"client 3, tune round 0: 3 worker processes .* died.* signal 9, perhaps for want of memory\. Lower resources\.workers"
    with started(Echo(die)) as transport, pytest.raises(RunFailed, match=sentence):
        asked(transport)


# ---- no process is left behind


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_closing_ends_them_also_in_the_middle_of_a_client() -> None:
    with started(Echo(lambda client, _: time.sleep(60 if client == "5" else 0))) as transport:
        tickets = transport.send("train", NOW, BLOBS)
        next(iter(transport.receive(tickets)))
        pids = transport.pids
        assert len(pids) == 2
    assert all(map(gone, pids))
    transport.drop(tickets[-1:])
    assert len(list(transport.receive(tickets))) == 4  # computed here


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_none_outlives_a_parent_that_is_killed(number: signal.Signals) -> None:
    ours, theirs = os.pipe()
    if not (parent := os.fork()):
        transport = Workers(Echo(lambda client, _: time.sleep(60 if client == "5" else 0)), 2, at_once=True)  # pyright: ignore[reportArgumentType]
        next(iter(transport.receive(transport.send("train", NOW, BLOBS))))
        os.write(theirs, " ".join(map(str, transport.pids)).encode())
        time.sleep(60)
        os._exit(0)
    pids = [int(pid) for pid in os.read(ours, 100).split()]
    assert len(pids) == 2 and not any(map(gone, pids))
    os.kill(parent, number)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 10
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(map(gone, pids))
