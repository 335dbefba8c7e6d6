"""Worker processes: the same answers in the same order as one after the other, whatever happens to the processes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from echoing import BLOBS, CLIENTS, EXPECTED, NOW, Echo, asked, once, started
from made import Spy, federation, made_data, made_method, made_options, made_task, same
from transport_laws import check_transport

from fibecfed.core import process
from fibecfed.core.errors import UserError
from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.core.wire import encode
from fibecfed.engine import worker, workers
from fibecfed.engine.runtime import NotFinite
from fibecfed.engine.scoring import totals
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.workers import Workers

# ---- the same


class Stateless(Echo):
    def train(self, client: ClientId, blob: bytes, now: Round) -> tuple[bytes, dict[str, Any]]:
        return blob, {}


@pytest.mark.parametrize("most", [1, 2, 3])
def test_they_keep_the_laws_of_a_transport(most: int) -> None:
    with started(Stateless(), most) as transport:
        check_transport(transport, BLOBS, NOW)


@pytest.mark.parametrize("most", [2, 3])
def test_answers_states_and_notes_are_those_of_one_after_the_other_in_the_order_of_the_requests(most: int) -> None:
    plain, slow = Echo(), Echo(lambda client, _: time.sleep(0.3 if client == "0" else 0.0))
    one = Simulator(plain)  # pyright: ignore[reportArgumentType]
    with started(slow, most) as several:
        for number in range(2):
            now = replace(NOW, index=number, number=number)
            assert asked(several, "train", now) == asked(one, "train", now)
            assert list(several.notes().items()) == list(one.notes().items())
            assert asked(several, "evaluate", now) == asked(one, "evaluate", now)
        assert len(several.pids) == most
    assert slow.states.blobs == plain.states.blobs and list(slow.states.blobs) == list(CLIENTS)


VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "lora, then personal": {"kind": "lora", "finetune": True},
    "fibecfed": {"layers": {"importance_clients": 2, "spectrum_clients": 1, "importance_examples": 4}},
    "scaffold": {"kind": "scaffold"},
    "fedalt": {"kind": "fedalt"},
    "fedpeptao": {"kind": "fedpeptao"},
    "hetlora": {"kind": "hetlora"},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_method_ends_with_the_same_bits_for_any_number_of_workers(variant: dict[str, Any]) -> None:
    data, task = made_data(examples=6), made_task(options=made_options(**variant))
    found = []
    for most in (1, 2, 3):
        with contextlib.ExitStack() as held:

            def wrap(simulator: Simulator, most: int = most, held: contextlib.ExitStack = held) -> Any:
                transport = Workers(simulator.runtime, most, at_once=True)
                held.callback(transport.close)
                return Spy(transport if most > 1 else simulator)

            world = federation(made_method(rounds=2, **variant), task, data, per_round=4, wrap=wrap)
            records = [replace(step.record, seconds=0.0, compute_s={}) for step in world.finish()]
            assert most == 1 or len(world.transport.inner.pids) == most
            states = {client: world.states.get(client) for client in world.data.clients}
            found.append((records, encode(world.server), states, world.kept()))
    assert found[1] == found[0] and found[2] == found[0]


def test_answers_before_their_turn_are_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WAITING_BYTES", 1)
    with started(Echo(), 3) as transport:
        assert asked(transport) == EXPECTED


def test_the_largest_are_computed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    given, give = list[ClientId](), worker.Worker.give

    def noted(self: worker.Worker, job: worker.Asked) -> None:
        given.append(job.client)
        give(self, job)

    monkeypatch.setattr(worker.Worker, "give", noted)
    with started(Echo()) as transport:
        assert asked(transport) == EXPECTED
    assert given == ["5", "4", "3", "2", "1", "0"]


def test_a_client_stays_with_a_process_that_keeps_something_of_it() -> None:
    class Where(Echo):
        def train(self, client: ClientId, blob: bytes, now: Round) -> tuple[bytes, dict[str, Any]]:
            time.sleep(0.02)
            return str(os.getpid()).encode(), {}

    transport = Workers(Where(), 2, at_once=True, keeps=True)  # pyright: ignore[reportArgumentType]
    with contextlib.closing(transport):
        first = dict(asked(transport))
        later = [dict(asked(transport)) for _ in range(3)]
    moved = sum(one[client] != first[client] for one in later for client in CLIENTS)
    assert len(set(first.values())) == 2 and moved <= 4  # all would, half the time, if it were left to chance: 9 of 18


class Sets:
    """A set of examples with totals that depend on the order of their batches, and how often each process was asked."""

    def __init__(self) -> None:
        task = made_task()
        self.task, self.params = task, task.params()
        self.sets = [made_data(examples=40).train, made_data(examples=9).train, made_data(examples=9).train.select(torch.arange(0))]

    def expected(self) -> list[dict[str, torch.Tensor]]:
        return [totals(self.task, self.params, examples, 4) for examples in self.sets]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_totals_of_the_server_are_shared_out_with_the_same_bits(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, echo = Sets(), Echo()
    echo.task = world.task  # pyright: ignore[reportAttributeAccessIssue]
    expected, here, sums = world.expected(), os.getpid(), type(world.task).sums

    def killed_once(self: Any, *args: Any) -> Any:
        assert os.getpid() != here
        if once(tmp_path / "mark"):
            os.kill(os.getpid(), signal.SIGKILL)
        return sums(self, *args)

    if most > 1:
        monkeypatch.setattr(type(world.task), "sums", killed_once)
    with started(echo, most) as transport:
        for _ in range(2):
            found = transport.totals(world.params, world.sets, 4)
            assert all(same(one, other) for one, other in zip(found, expected, strict=True))
        assert most == 1 or (len(transport.pids) == most and transport.used()[1] == ())
        monkeypatch.undo()
        later = [examples.select(torch.arange(len(examples))) for examples in world.sets]  # which the processes do not know
        assert all(same(one, other) for one, other in zip(transport.totals(world.params, later, 4), expected, strict=True))


# ---- requests that are dropped, or overtaken


def test_what_is_never_received_was_never_computed() -> None:
    with started(Echo()) as transport:
        tickets = transport.send("train", NOW, BLOBS)
        assert next(iter(transport.receive(tickets))).ticket.client == "0"
        time.sleep(0.1)  # the others have something by now
        transport.drop(tickets)
        assert transport.runtime.states.blobs == {"0": b"x"}  # pyright: ignore[reportAttributeAccessIssue]
        assert not transport._done  # nor is it kept for nobody
        later = [("0", b"to 0 after x"), *EXPECTED[1:]]
        assert asked(transport) == later


def test_a_later_request_that_is_received_first_makes_the_earlier_one_start_from_its_state() -> None:
    for make in (Simulator, lambda echo: Workers(echo, 2, at_once=True)):
        echo: Any = Echo()
        transport = make(echo)
        early = transport.send("train", NOW, BLOBS)
        answers = iter(transport.receive(early))
        next(answers)  # workers go on with the others meanwhile
        late = transport.send("train", NOW, BLOBS)
        assert [answer.reply for answer in transport.receive(late)][1:] == [reply for _, reply in EXPECTED[1:]]
        assert [answer.reply for answer in transport.receive(early)] == [b"to %b after x" % client.encode() for client in CLIENTS[1:]]
        getattr(transport, "close", lambda: None)()


# ---- what a client raises, prints and logs


class Odd(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ValueError("no such thing"), ValueError, "no such thing"),
        (UserError("got 1, expected 2"), UserError, "got 1, expected 2"),
        (Odd(1, 2), worker.ComputeError, "Odd: 1 and 2"),
    ],
)
def test_what_is_raised_there_is_raised_here_with_its_traceback(error: Exception, kind: type[Exception], text: str) -> None:
    def fail(client: ClientId, _: bytes) -> None:
        if client == "2":
            raise error

    with started(Echo(fail)) as transport:
        with pytest.raises(kind, match=text) as caught:
            asked(transport)
        assert "in fail" in caught.value.__notes__[0]
        assert transport.runtime.states.blobs == {"0": b"x", "1": b"x"}  # pyright: ignore[reportAttributeAccessIssue]


def test_a_loss_that_is_not_finite_is_a_failure_as_in_this_process() -> None:
    def fail(client: ClientId, _: bytes) -> None:
        if client == "2":
            raise NotFinite("client 2: its loss is nan")

    with started(Echo(fail)) as transport:
        assert dict(asked(transport))["2"] == Failure("client 2: its loss is nan", repeats=True)


def test_what_clients_print_and_log_is_printed_and_logged_here(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def talk(client: ClientId, _: bytes) -> None:
        print("printed by", client)
        print("an error of", client, file=sys.stderr, end="!")
        logging.getLogger("fibecfed.somewhere").info("client %s computes", client, extra={"shown": True})
        logging.getLogger("fibecfed.somewhere").debug("in more detail")

    with caplog.at_level(logging.INFO, "fibecfed"), started(Echo(talk)) as transport:
        asked(transport)
    printed = capsys.readouterr()
    assert sorted(printed.out.splitlines()) == [f"printed by {client}" for client in CLIENTS]
    assert sorted(printed.err.split("!")) == ["", *(f"an error of {client}" for client in CLIENTS)]
    logged = [record for record in caplog.records if record.name == "fibecfed.somewhere"]
    assert sorted(record.getMessage() for record in logged) == [f"client {client} computes" for client in CLIENTS]
    assert all(record.shown and record.process != os.getpid() for record in logged)  # pyright: ignore[reportAttributeAccessIssue]


# ---- when they are started


def test_they_are_not_started_for_work_that_takes_no_time() -> None:
    with started(Echo(), at_once=False) as transport:
        for number in range(20):
            asked(transport, now=replace(NOW, number=number))
        assert not transport.pids


def slow(client: ClientId, _: bytes) -> None:
    time.sleep(0.03)


def test_they_are_started_by_themselves_once_clients_have_taken_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PAYS_AFTER_S", 0.1)
    with started(Echo(slow), at_once=False) as transport:
        assert asked(transport) == EXPECTED
        assert transport.pids


def test_not_where_there_is_no_memory_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PAYS_AFTER_S", 0.1)
    monkeypatch.setattr(workers, "free_memory", lambda: process.resident_memory())
    with started(Echo(slow), 3, at_once=False) as transport:
        assert asked(transport) == EXPECTED
        assert not transport.pids


def test_where_none_can_be_started_clients_are_computed_here_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    with started(Echo()) as transport:
        assert asked(transport) == EXPECTED and not transport.pids
    assert "by 0 worker processes: no more can be started: Resource temporarily unavailable" in caplog.text


def test_a_process_that_cannot_compute_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing")

    monkeypatch.setattr(torch.Tensor, "backward", fail)
    with started(Echo()) as transport:
        assert asked(transport) == EXPECTED and not transport.pids
    assert "fork-based multiprocessing" in caplog.text


def test_a_worker_computes_with_several_threads_after_its_parent_did() -> None:
    def product(client: ClientId, _: bytes) -> None:
        assert torch.get_num_threads() == 2
        (torch.ones(400, 400) @ torch.ones(400, 400)).sum().item()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        product("0", b"")
        with started(Echo(product)) as transport:
            assert asked(transport) == EXPECTED
    finally:
        torch.set_num_threads(before)
