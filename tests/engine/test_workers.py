"""Worker processes: the same answers in the same order as one after the other, whatever happens to the processes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made import Spy, federation, made_data, made_method, made_options, made_task, same
from transport_laws import check_transport

from fibecfed.core import process
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.types import ClientData, ClientId, Failure, Round
from fibecfed.core.wire import encode
from fibecfed.engine import worker, worker_count, workers
from fibecfed.engine.options import ResourceOptions
from fibecfed.engine.runtime import NotFinite
from fibecfed.engine.scoring import totals
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.transport import exchange
from fibecfed.engine.worker_count import most_workers
from fibecfed.engine.workers import Workers

CLIENTS = tuple(str(number) for number in range(6))
NOW = Round("tune", 0, 3, 0)
BLOBS = {client: b"to " + client.encode() for client in CLIENTS}
WHATEVER: Callable[[ClientId, bytes], Any] = lambda client, blob: None  # noqa: E731


class Store:
    """States in a table."""

    def __init__(self) -> None:
        self.blobs: dict[ClientId, bytes] = {}

    def get(self, client: ClientId) -> bytes | None:
        return self.blobs.get(client)

    before = get

    def put(self, client: ClientId, blob: bytes) -> None:
        self.blobs[client] = blob

    def begin(self, number: int) -> None:
        pass


class Echo:
    """In place of a `ClientRuntime`: answers with the request, the client's state and the round; a state counts the rounds of a client."""

    def __init__(self, does: Callable[[ClientId, bytes], Any] = WHATEVER) -> None:
        self.states: Any = Store()
        self.does = does
        self.parent = os.getpid()

    def data(self, client: ClientId) -> ClientData:
        size: Any = range(int(client))
        return ClientData(size, size, size)

    def train(self, client: ClientId, blob: bytes, now: Round) -> tuple[bytes, dict[str, Any]]:
        before = self.states.before(client) or b""
        self.does(client, blob)
        self.states.put(client, before + b"x")
        return b"%b after %b" % (blob, before), {"n": int(client)}

    def evaluate(self, action: str, client: ClientId, blob: bytes, now: Round) -> bytes:
        self.does(client, blob)
        return b"%b of %b" % (action.encode(), self.states.get(client) or b"")


@contextlib.contextmanager
def started(echo: Echo, most: int = 2, at_once: bool = True) -> Iterator[Workers]:
    transport = Workers(echo, most, at_once=at_once)  # pyright: ignore[reportArgumentType]
    with contextlib.closing(transport):
        yield transport


def asked(transport: Any, action: Any = "train", now: Round = NOW) -> list[tuple[ClientId, bytes | Failure]]:
    return list(exchange(transport, action, now, BLOBS))


EXPECTED = [(client, blob + b" after ") for client, blob in BLOBS.items()]


def once(mark: Path) -> bool:
    """Whether this is the first time, over all processes."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


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


# ---- how many


def most(cores: int, clients: int = 10, device: str = "cpu", by_itself: bool = True, **resources: Any) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_count, "cores", lambda: cores)
        return most_workers(ResourceOptions(**resources), torch.device(device), clients, by_itself=by_itself)


def test_by_default_there_is_one_for_each_core_and_no_more_than_clients() -> None:
    assert (most(1), most(4), most(4, clients=3), most(8, threads=2), most(2, threads=4)) == (1, 4, 3, 4, 1)
    assert most(4, device="cuda") == 1 and most(4, by_itself=False) == 1
    assert most(4, workers=1) == 1 and most(4, workers=3) == 3 and most(4, by_itself=False, workers=3) == 3 and most(1, workers=1) == 1


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"cores": 2, "workers": 3}, r"resources\.workers: got 3, expected at most 2, the CPU cores that this process may use; lower it"),
        ({"cores": 4, "workers": 3, "threads": 2}, r"got 3, expected at most 2, .* over `resources\.threads` = 2"),
        ({"cores": 1, "workers": 2, "threads": 2}, r"got 2, expected at most 1"),
        ({"cores": 4, "workers": 2, "device": "cuda"}, r'got 2, expected 1 on `training\.device` = "cuda"'),
    ],
)
def test_more_than_there_can_be_are_a_sentence(found: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        most(**found)


def test_on_another_system_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert most(4) == 1
    with pytest.raises(UserError, match="expected 1 on this system, where processes cannot be forked safely"):
        most(4, workers=2)
