"""What every transport must keep to, and one on which answers take as long as a table says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fibecfed.core.types import ClientId, Round
from fibecfed.engine.transport import Action, Answer, InTurn, Ticket, Transport, exchange
from fibecfed.testing.federation import Around


class Delayed(Around):
    """Clients answer after so many virtual seconds each; nobody waits for real.

    Args:
        delays: seconds by client and round; 1 for the others.
    """

    def __init__(self, inner: InTurn, delays: Mapping[tuple[ClientId, int], float]) -> None:
        super().__init__(inner)
        self.delays = delays
        self.clock = 0.0
        self._due: dict[Ticket, float] = {}

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        tickets = super().send(action, now, requests, timeout_s, max_bytes)
        self._due.update({ticket: self.clock + self.delays.get((ticket.client, now.number), 1.0) for ticket in tickets})
        return tickets

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        for ticket in sorted(tickets, key=lambda ticket: (self._due[ticket], ticket.number)):
            self.clock = max(self.clock, self._due[ticket])
            yield from super().receive((ticket,))


def check_transport(transport: Transport, requests: Mapping[ClientId, bytes], now: Round) -> None:
    """All laws, for clients that answer `requests` with the same bytes whenever they are asked in round `now`.

    Raises:
        AssertionError: a law is broken.
    """
    first = transport.send("train", now, requests)
    assert [ticket.client for ticket in first] == list(requests) and all(ticket.now == now for ticket in first)
    answers = list(transport.receive(first))
    replies = _replies(answers)
    assert {answer.ticket for answer in answers} == set(first) and len(answers) == len(first)  # each once, with the ticket of its request
    assert all(isinstance(reply, bytes) for reply in replies.values())
    assert not list(transport.receive(first))  # and not again

    later = Round(now.phase, now.index, now.num_rounds + 1, now.number)  # the same work under another name
    old = transport.send("train", now, requests)
    early = next(iter(transport.receive(old)))  # whoever has enough may stop
    new = transport.send("train", later, requests)
    assert len({*first, *old, *new}) == len(first) + len(old) + len(new)  # no ticket is given twice
    assert _replies(list(transport.receive(new))) == replies  # answers to others do not come in between
    rest = list(transport.receive([*old, *new]))  # those stay, and are recognised
    assert {answer.ticket for answer in rest} == set(old) - {early.ticket} and all(answer.ticket.now == now for answer in rest)
    assert _replies([early, *rest]) == replies

    dropped = transport.send("train", now, requests)
    transport.drop(dropped[:1])
    transport.drop(dropped[:1])
    assert {answer.ticket for answer in transport.receive(dropped)} == set(dropped[1:])
    assert dict(exchange(transport, "train", now, requests)) == replies
    assert not list(transport.receive([])) and not list(exchange(transport, "train", now, {}))


def _replies(answers: Sequence[Answer]) -> dict[ClientId, Any]:
    return {answer.ticket.client: answer.reply for answer in answers}
