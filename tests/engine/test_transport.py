"""Laws of the two halves of an exchange, and the schedules that they must serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import KEY, Around, Shuffled, Spy
from toy import Number, Reply, Scripted, Toy, numbered
from transport_laws import Delayed, check_transport

from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.core.wire import decode, encode
from fibecfed.engine.loop import run
from fibecfed.engine.options import FederationOptions
from fibecfed.engine.runtime import unframe
from fibecfed.engine.transport import Answer, Ticket, Transport, exchange

CLIENTS = tuple(str(number) for number in range(6))
NOW = Round("tune", 0, 3, 0)
BLOBS = dict.fromkeys(CLIENTS, b"")


def delays(seconds: Mapping[ClientId, float]) -> dict[tuple[ClientId, int], float]:
    return {(client, number): value for client, value in seconds.items() for number in range(3)}


def value(reply: bytes | Failure) -> float:
    assert isinstance(reply, bytes)
    return float(decode(Reply, unframe(reply)[0]).shared["w"][0])


MAKERS: dict[str, Callable[[], Transport]] = {
    "in turn": lambda: Scripted({}),
    "handed on": lambda: Around(Scripted({})),
    "spied": lambda: Spy(Scripted({})),
    "shuffled": lambda: Delayed(Scripted({}), delays({"0": 5.0, "3": 0.5, "5": 0.1})),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_transport_keeps_the_laws(make: Callable[[], Transport]) -> None:
    check_transport(make(), BLOBS, NOW)


class Forgetful(Scripted):
    """Hands out the same tickets again and again."""

    def send(self, *more: Any) -> Any:
        self._count = 0
        return super().send(*more)


class Impatient(Scripted):
    """Answers whatever is open, asked for or not."""

    def receive(self, tickets: Any) -> Any:
        return super().receive(list(self._open))


class Stubborn(Scripted):
    """Does not let go of a ticket."""

    def drop(self, tickets: Any) -> None:
        pass


@pytest.mark.parametrize("broken", [Forgetful, Impatient, Stubborn])
def test_the_laws_notice_a_transport_that_breaks_them(broken: type[Scripted]) -> None:
    with pytest.raises(AssertionError):
        check_transport(broken({}), BLOBS, NOW)


# ---- any order of arrival gives the same bits


def final(transport: Transport) -> tuple[list[Any], bytes]:
    """Records without what a clock says, and the server's state at the end."""
    start, tolerance = Number({"w": torch.zeros(3)}), FederationOptions(on_failure="drop", exclude_after=2)
    steps = list(run(Toy(), transport, CLIENTS, per_round=5, key=KEY, server=start, tolerance=tolerance))
    return [replace(step.record, seconds=0.0) for step in steps], encode(steps[-1].server)


def script() -> dict[tuple[ClientId, int], Any]:
    """Values whose sum depends on its order, a client that fails, and one that answers with what is refused."""
    values = {(client, number): 10.0 ** (7 - 3 * int(client)) / 3 for client in CLIENTS for number in range(3)}
    return {**values, ("1", 1): Failure("client 1 is gone"), ("4", 0): float("nan"), ("4", 1): float("nan")}


@given(st.dictionaries(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 2)), st.floats(0, 10)))
def test_any_order_of_arrival_gives_the_same_bits_and_records(seconds: dict[tuple[ClientId, int], float]) -> None:
    assert final(Delayed(Scripted(script()), seconds)) == final(Scripted(script()))


def test_the_order_of_the_sum_would_be_seen() -> None:
    """The planted values do depend on it, so that the law above can fail."""
    values = [torch.full((3,), 10.0 ** (7 - 3 * n) / 3) for n in (0, 1, 2, 3, 5)]
    assert not torch.equal(sum(values), sum(reversed(values)))  # pyright: ignore[reportArgumentType]


def test_asked_in_any_order_too() -> None:
    assert final(Shuffled(Scripted(script()))) == final(Scripted(script()))


# ---- schedules


def test_a_server_that_has_enough_answers_closes_the_round_and_never_sees_the_others() -> None:
    transport = Delayed(Scripted({}), delays({"1": 9.0, "4": 7.0}))
    tickets = transport.send("train", NOW, BLOBS)
    got: list[Answer] = []
    for answer in transport.receive(tickets):
        got.append(answer)
        if len(got) == 4:
            break
    transport.drop(tickets)
    assert {answer.ticket.client for answer in got} == set("0235") and transport.clock == 1.0
    assert not list(transport.receive(tickets))


def test_a_server_that_aggregates_every_two_answers_knows_what_each_late_one_answers() -> None:
    answers = {(client, number): 10.0 * number + int(client) for client in CLIENTS for number in range(3)}
    transport = Delayed(Scripted(answers), delays({"0": 2.5}))
    open_tickets: list[Ticket] = []
    seen: list[tuple[int, ClientId, int, float]] = []
    for number in range(3):
        now = replace(NOW, index=number, number=number)
        busy = {ticket.client for ticket in open_tickets}
        asked = [client for client in "012" if client not in busy]
        open_tickets += transport.send("train", now, dict.fromkeys(asked, b""))
        for count, answer in enumerate(transport.receive(open_tickets), start=1):
            open_tickets.remove(answer.ticket)
            seen.append((number, answer.ticket.client, answer.ticket.now.number, value(answer.reply)))
            if count == 2:
                break
    assert seen == [(0, "1", 0, 1.0), (0, "2", 0, 2.0), (1, "1", 1, 11.0), (1, "2", 1, 12.0), (2, "0", 0, 0.0), (2, "1", 2, 21.0)]
    assert [ticket.client for ticket in open_tickets] == ["2"]


def test_who_stops_an_exchange_early_has_dropped_the_rest() -> None:
    transport = Scripted({})
    answers = exchange(transport, "train", NOW, BLOBS)
    assert next(answers) == ("0", numbered(1.0))
    answers.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not list(transport.receive([Ticket(number, str(number), "train", NOW) for number in range(6)]))


def test_a_client_computes_when_its_answer_is_received_and_not_before() -> None:
    computed: list[ClientId] = []

    class Watched(Scripted):
        def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
            computed.append(ticket.client)
            return super().answer(ticket, blob)

    transport = Watched({})
    tickets = transport.send("train", NOW, BLOBS)
    assert not computed
    next(iter(transport.receive(tickets)))
    assert computed == ["0"]
