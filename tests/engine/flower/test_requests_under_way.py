"""Requests of several rounds under way at once: what is answered, late or dropped is known by its ticket."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made_flower import CONFIG, RUN, Clock, Grid, answering, be_an_app, stop_time
from transport_laws import check_transport

from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.engine.flower import transport as transport_module
from fibecfed.engine.flower.transport import FlowerTransport
from fibecfed.engine.transport import Answer, Ticket

pytestmark = pytest.mark.flower

NAMES = ("a", "b", "c", "d")
BLOBS = {name: name.encode() for name in NAMES}
FIRST, SECOND = Round("tune", 0, 2, 0), Round("tune", 1, 2, 1)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    be_an_app()
    return stop_time(monkeypatch)


def connected(*takes_s: float) -> tuple[FlowerTransport, Grid]:
    """A transport to clients that take so long for every answer."""
    grid = Grid({number: answering(name) for number, name in enumerate(NAMES, start=1)})
    transport = FlowerTransport(grid, RUN, CONFIG, {}, 0, lambda text: None, unregistered_names=True)
    transport.start_from({})
    assert transport.wait_for(len(NAMES), NAMES, 5.0) == NAMES
    grid.takes_s = dict(enumerate(takes_s, start=1))
    return transport, grid


def one(transport: FlowerTransport, tickets: Sequence[Ticket]) -> Answer:
    return next(iter(transport.receive(tickets)))


@pytest.mark.parametrize("takes_s", [(), (3.0, 1.0, 0.0, 2.0)])
def test_the_laws_of_transports_hold(takes_s: tuple[float, ...]) -> None:
    check_transport(connected(*takes_s)[0], BLOBS, FIRST)


def test_answers_that_come_together_count_in_the_order_in_which_they_were_asked_for() -> None:
    transport, grid = connected(1.0, 1.0, 1.0, 1.0)
    pull = grid.pull_messages
    grid.pull_messages = lambda numbers: sorted(pull(numbers), key=lambda message: message.metadata.dst_node_id, reverse=True)
    order = ["b", "a", "d", "c"]
    tickets = transport.send("train", FIRST, {name: BLOBS[name] for name in order}, 20.0)
    assert [answer.ticket.client for answer in transport.receive(tickets)] == order


def test_answers_come_in_the_order_of_arrival_and_nobody_waits_for_who_is_not_asked_about(clock: Clock) -> None:
    transport, _ = connected(8.0, 2.0, 0.0, 4.0)
    tickets = transport.send("train", FIRST, BLOBS, 20.0)
    begun = clock.now
    order: list[ClientId] = []
    for answer in transport.receive(tickets):
        order.append(answer.ticket.client)
        if len(order) == 3:
            break
    assert order == ["c", "b", "d"] and clock.now - begun <= 4.0 + 2 * transport_module.POLL_S
    (a,) = (ticket for ticket in tickets if ticket.client == "a")
    later = transport.send("train", SECOND, {"c": b"again"}, 20.0)
    assert one(transport, later).reply == b"again"
    assert [(answer.ticket, answer.reply) for answer in transport.receive([a])] == [(a, b"a")]


def test_each_request_has_its_own_deadline_and_a_late_answer_is_not_read(clock: Clock) -> None:
    transport, grid = connected(10.0, 10.0)
    begun = clock.now
    short = transport.send("train", FIRST, {"a": b"1"}, 5.0)
    long = transport.send("train", FIRST, {"b": b"2"}, 30.0)
    late = one(transport, [*short, *long])
    assert (late.ticket, late.reply) == (short[0], Failure("client a did not answer within 5 s")) and clock.now - begun <= 5.5
    assert one(transport, long).reply == b"2"
    clock.sleep(60.0)
    assert not list(transport.receive([*short, *long]))
    grid.takes_s = {}
    assert one(transport, transport.send("train", SECOND, {"a": b"3"}, 20.0)).reply == b"3"


def test_the_answer_to_a_dropped_request_is_not_taken_for_that_to_a_later_one(clock: Clock) -> None:
    transport, _ = connected(3.0)
    transport.drop(transport.send("train", FIRST, {"a": b"old"}, 20.0))
    (answer,) = transport.receive(transport.send("train", SECOND, {"a": b"new"}, 20.0))
    assert answer.reply == b"new" and answer.ticket.now == SECOND
