"""Between the server and the clients: requests go out, answers come in as they arrive, all of it bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..core.types import ClientId, Failure, Round

Action = Literal["train", "share", "mask", "confirm", "reveal", "key", "unmask", "evaluate", "evaluate_both", "evaluate_global"]
"""What a client is asked for: to train; to take a step of a masked sum (`masking`; the helper of `helping`: to give its key, or to add up
masks); or to count, for its own model, for that and the global one, or for the global one alone."""


@dataclass(frozen=True)
class Ticket:
    """A request that was sent. Its answer carries it, so that an answer of an earlier round is recognised, and known for what it answers.

    Attributes:
        number: counts the requests of one transport, from 0.
        now: the round that it was sent in.
    """

    number: int
    client: ClientId
    action: str
    now: Round


@dataclass(frozen=True)
class Answer:
    """What became of a request: the client's reply, or why there is none.

    Attributes:
        at_s: virtual time of its arrival, in seconds; None where time is not modelled.
    """

    ticket: Ticket
    reply: bytes | Failure
    at_s: float | None = None


class Transport(Protocol):
    """Both halves of an exchange, apart, so that a server can go on before the slowest client has answered.

    A synchronous round sends, and receives until every ticket has its answer (`exchange`). One that asks more clients than it needs stops
    receiving when it has enough, and drops the other tickets. One that aggregates every k answers keeps its open tickets, and receives
    for those and new ones together.
    """

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        """Send each client its bytes, without waiting for an answer; a ticket for each, in the order of `requests`.

        Args:
            requests: may make the bytes of each client when they are asked for; take a few at a time.
            timeout_s: a client that has not answered so many seconds later has failed. None: wait until each has answered or failed.
            max_bytes: a longer reply need not be taken in; the loop rejects it in any case.
        """
        ...

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        """Answers to `tickets` in the order in which they arrive, each at most once; waits for them, and ends when none is to come.

        Whoever has enough may stop at any time: the other answers stay for a later call, until they are dropped. So do answers to tickets
        that are not among these.
        """
        ...

    def drop(self, tickets: Collection[Ticket]) -> Mapping[ClientId, int]:
        """Forget tickets: no answer to them will be received any more. Those that were answered already are passed over.

        Returns:
            The bytes of those of their answers that were sent in vain, as far as they are known.
        """
        ...

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """What clients wrote down about themselves since requests were last sent; empty where it stays with them."""
        ...


def exchange(
    transport: Transport,
    action: Action,
    now: Round,
    requests: Mapping[ClientId, bytes],
    timeout_s: float | None = None,
    max_bytes: int | None = None,
) -> Iterator[tuple[ClientId, bytes | Failure]]:
    """Send each client its bytes and yield its reply, or why there is none: at most once for each client, in the order of arrival.

    Whoever stops early does not get the other replies any more.

    Args:
        requests, timeout_s, max_bytes: as for `Transport.send`.
    """
    tickets = transport.send(action, now, requests, timeout_s, max_bytes)
    try:
        for answer in transport.receive(tickets):
            yield answer.ticket.client, answer.reply
    finally:
        transport.drop(tickets)


class InTurn:
    """A transport whose clients answer one after the other, in the order in which they were asked, each when its answer is received.

    A class to inherit from. Nobody is late here, and nothing is too long: `timeout_s` and `max_bytes` are not looked at.
    """

    def __init__(self) -> None:
        self._count = 0
        self._open: dict[Ticket, Mapping[ClientId, bytes]] = {}
        self._notes: dict[ClientId, Mapping[str, Any]] = {}

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        """What a client replies to the bytes it was sent; it may add to `_notes`."""
        raise AssertionError("every transport has answers of its own")

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        """As `Transport.send`; a client computes when its answer is received."""
        self._notes = {}
        tickets = [Ticket(number, client, action, now) for number, client in enumerate(requests, self._count)]
        self._count += len(tickets)
        self._open.update(dict.fromkeys(tickets, requests))
        return tickets

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        """As `Transport.receive`."""
        for ticket in sorted(set(tickets) & self._open.keys(), key=lambda ticket: ticket.number):
            requests = self._open.pop(ticket, None)
            if requests is not None:
                yield Answer(ticket, self.answer(ticket, requests[ticket.client]))

    def drop(self, tickets: Collection[Ticket]) -> Mapping[ClientId, int]:
        """As `Transport.drop`; the client does not compute."""
        for ticket in tickets:
            self._open.pop(ticket, None)
        return {}

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """As `Transport.notes`."""
        return self._notes
