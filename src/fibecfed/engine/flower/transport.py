"""The server's side of an exchange: carries bytes to resident clients through Flower's grid, and brings their answers or failures back."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ...core.errors import RunFailed
from ...core.types import ClientId, Failure, Params, Round
from ...core.wire import encode
from ..failures import printable
from ..requests import OnDemand
from ..transport import Action, Answer, Ticket
from . import connections
from .envelope import Finish, Request
from .post import Grid, Letter, Post

POLL_S = 0.5
DAY_S = 86400.0
"""How long an answer is waited for where no deadline is set."""

AT_ONCE = 16
"""Messages that are made and handed to Flower together."""

HANDSHAKE_SHARE = 0.1
"""At most this fraction of an exchange's time is waited for clients that are not known to be there, while others can be asked."""


@dataclass(frozen=True)
class _Errand:
    """A request that has no answer yet.

    Attributes:
        blobs: what is sent to each client of the same call of `send`.
        timeout_s, end: how long its answer is waited for, and until when, by time.monotonic().
        patience: until when a client is waited for that is not there.
    """

    ticket: Ticket
    blobs: Mapping[ClientId, bytes]
    timeout_s: float
    end: float
    patience: float


class FlowerTransport:
    """Clients by their stable names, wherever Flower says they are now. Implements `engine.transport.Transport`.

    There is a handshake with a client before it is first asked, and after each failure: what is behind a SuperNode may have changed.
    Clients that are there are asked at once; the others get a handshake meanwhile (see `connections`), and are asked as soon as they have
    answered it, if that is within `HANDSHAKE_SHARE` of the time and within `connections.HANDSHAKE_S`. Whatever is under way moves on only
    while answers are received.

    Args:
        run: 16 hexadecimal digits, the same over all resumptions.
        config: the configuration's keys and values that a client must share.
        completed: rounds completed before.
        say: called with a sentence that the user should know.
        unregistered_names: whether clients may choose their names where Flower's database has none for their keys.
    """

    def __init__(
        self,
        grid: Grid,
        run: str,
        config: Mapping[str, Any],
        versions: Mapping[str, str],
        completed: int,
        say: Callable[[str], None],
        unregistered_names: bool = False,
    ) -> None:
        self.say: Callable[[str], None] = lambda text: say(printable(text))  # clients chose parts of it
        self._post = Post(grid, run, config)
        self._connections = connections.Connections(self._post, versions, completed, lambda text: self.say(text), unregistered_names)
        self._count = 0
        self._waiting: dict[Ticket, _Errand] = {}  # not sent yet: their clients are not there
        self._asked: dict[str, tuple[Letter, _Errand]] = {}  # by Flower's number
        self._came: dict[Ticket, bytes | Failure] = {}  # answers that nobody has received yet

    def wait_for(self, clients: int, names: Sequence[ClientId] | None, wait_s: float) -> tuple[ClientId, ...]:
        """The ids of the federation's clients, sorted: `names` if given, else those of the first `clients` that introduce themselves.

        Args:
            names: all of them are waited for; after `wait_s` one is enough, and the others may come later. Who is missing is reported once.

        Raises:
            RunFailed: too few; with what was said to those that were rejected.
        """
        begun = time.monotonic()
        told = False
        while True:
            self._connections.handshake()
            self._fetch()
            here = [name for name in self._connections.names() if names is None or name in names]
            late = time.monotonic() > begun + wait_s
            if names is not None and (len(here) == len(names) or (late and here)):
                self._connections.stop_waiting()
                return tuple(sorted(names))
            if names is None and len(here) >= clients:
                self._connections.stop_waiting()
                return tuple(here[:clients])
            if late:
                refused = "".join(f". Rejected: {reason}" for reason in self._connections.strangers.values())
                raise RunFailed(
                    printable(f"after {wait_s:g} s {len(here)} of {clients} clients are here ({', '.join(here) or 'none'}){refused}")
                )
            if (
                names is not None and not told and time.monotonic() > begun + connections.HANDSHAKE_S / 6
            ):  # by then an idle client has answered
                self.say(f"waiting up to {wait_s:g} s for {', '.join(sorted(set(names) - set(here)))}")
                told = True
            time.sleep(POLL_S)

    def start_from(self, params: Params) -> None:
        """Set the trainable tensors that every client must start from."""
        self._connections.start_from(params)

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        """As `Transport.send`. The answer of a client that is not connected, rejects, fails, or is late is a `Failure`.

        Args:
            timeout_s: an answer that comes later is never read.
            max_bytes: not used: Flower has taken in the whole reply before it shows it.
        """
        at = now.number + 1 if action.startswith("evaluate") else now.number
        self._connections.at = max(self._connections.at, at)  # an older round is asked for again where its answers were under way
        return self._ask(action, now, requests, DAY_S if timeout_s is None else timeout_s)

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        """As `Transport.receive`. Bytes that are no reply of ours are handed on as they are, for the loop to reject and to count."""
        wanted = self._open() & set(tickets)
        while wanted:
            for ticket in [ticket for ticket in self._came if ticket in wanted]:
                wanted.remove(ticket)
                if ticket in self._came:
                    yield Answer(ticket, self._came.pop(ticket))
            wanted &= self._open()
            if not wanted:
                return
            self._hand_out()
            idle = not self._fetch()
            self._give_up()
            if idle and not wanted & self._came.keys():
                time.sleep(min(POLL_S, max(0.0, min(errand.end for errand in self._errands()) - time.monotonic())))

    def drop(self, tickets: Collection[Ticket]) -> Mapping[ClientId, int]:
        """As `Transport.drop`. A client that was asked goes on computing; an answer that comes later is never read, nor known."""
        dropped = set(tickets)
        came = {ticket.client: reply for ticket, reply in self._came.items() if ticket in dropped}
        self._waiting = {ticket: errand for ticket, errand in self._waiting.items() if ticket not in dropped}
        self._asked = {number: held for number, held in self._asked.items() if held[1].ticket not in dropped}
        self._came = {ticket: reply for ticket, reply in self._came.items() if ticket not in dropped}
        return {client: len(reply) for client, reply in came.items() if isinstance(reply, bytes)}

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """Bytes of initial tensors that clients had to be sent since this was last asked; their own notes stay with them."""
        notes, self._connections.notes = self._connections.notes, {}
        return notes

    def finish(self, last: Mapping[ClientId, Finish], now: Round, timeout_s: float) -> Mapping[ClientId, str]:
        """Have each client save its own adapter; the checksum of each that has one. Who does not answer is only told to the user."""
        self._connections.at = now.number + 1
        digests: dict[ClientId, str] = {}
        for answer in self.receive(self._ask("finish", now, OnDemand(list(last), lambda client: encode(last[client])), timeout_s)):
            client, reply = answer.ticket.client, answer.reply
            if isinstance(reply, Failure):
                self.say(f"client {client} may not have saved its own model: {reply.reason}")
            elif reply:
                digests[client] = reply.decode(errors="replace")
        return digests

    # ---- requests under way

    def _errands(self) -> list[_Errand]:
        return [*self._waiting.values(), *(errand for _, errand in self._asked.values())]

    def _open(self) -> set[Ticket]:
        """Tickets whose answers nobody has received yet."""
        return {errand.ticket for errand in self._errands()} | self._came.keys()

    def _ask(self, action: str, now: Round, blobs: Mapping[ClientId, bytes], timeout_s: float) -> list[Ticket]:
        """Send a request to each client that is there, and let the others wait for theirs."""
        end = time.monotonic() + timeout_s
        self._connections.handshake()
        self._fetch()  # handshakes that were answered since answers were last received
        share = HANDSHAKE_SHARE if any(self._connections.node_of(client) is not None for client in blobs) else 1.0
        patience = time.monotonic() + min(connections.HANDSHAKE_S, share * (end - time.monotonic()))
        tickets = [Ticket(number, client, action, now) for number, client in enumerate(blobs, self._count)]
        self._count += len(tickets)
        self._waiting.update({ticket: _Errand(ticket, blobs, timeout_s, end, patience) for ticket in tickets})
        self._hand_out()
        return tickets

    def _hand_out(self) -> None:
        """Send what waits for clients that are there by now; who has been waited for long enough is absent."""
        self._connections.start_alike(ticket.client for ticket in self._waiting)
        here = [errand for ticket, errand in self._waiting.items() if self._connections.node_of(ticket.client) is not None]
        for _, batch in groupby(here, key=lambda errand: (errand.ticket.action, errand.end)):
            errands = list(batch)
            for some in range(0, len(errands), AT_ONCE):
                self._push(errands[some : some + AT_ONCE])
        now, expecting = time.monotonic(), self._connections.is_expecting()
        absent = [errand for errand in self._waiting.values() if now >= errand.patience or not expecting]
        if absent:
            self._connections.stop_waiting()
            self._absent(absent)

    def _push(self, errands: Sequence[_Errand]) -> None:
        """Send some of one call of `send`, whose clients are there."""
        of_node = {node: errand for errand in errands if (node := self._connections.node_of(errand.ticket.client)) is not None}
        requests = {node: self._request(errand) for node, errand in of_node.items()}
        for (node, errand), letter in zip(of_node.items(), self._post.send(requests, errands[0].end - time.monotonic()), strict=True):
            client = errand.ticket.client
            del self._waiting[errand.ticket]
            if isinstance(letter, Failure):
                self._connections.lose(client, node)
                self._came[errand.ticket] = Failure(f"client {client}: {letter.reason}")
            else:
                self._asked[letter.number] = letter, errand

    def _request(self, errand: _Errand) -> Request:
        ticket = errand.ticket
        return self._post.request(ticket.action, ticket.client, ticket.now, errand.blobs[ticket.client])

    def _fetch(self) -> bool:
        """Take in what has come: answers to requests, and to handshakes, which go to where they belong. Whether an answer was among it.

        Answers that have come together count in the order in which they were asked for, as in the simulator.
        """
        found = False
        for number, reply in self._post.arrived([*self._asked, *self._connections.under_way()]):
            if number in self._asked:
                letter, errand = self._asked.pop(number)
                self._came[errand.ticket] = self._judged(letter, reply)
                found = True
            else:
                self._connections.take(number, reply)
        return found

    def _judged(self, letter: Letter, blob: bytes | Failure) -> bytes | Failure:
        """The payload of a client's reply. One that fails gets a handshake before it is asked again."""
        client = letter.request.client
        reply = blob if isinstance(blob, Failure) else self._post.opened(letter.request, blob)
        if not isinstance(reply, Failure):
            return reply
        self._connections.lose(client, letter.node)
        return Failure(f"client {client}: {reply.reason}")

    def _give_up(self) -> None:
        """Requests whose time is over have failed. Who is late gets a handshake before it is asked again."""
        now = time.monotonic()
        over = [(number, letter, errand) for number, (letter, errand) in self._asked.items() if now >= errand.end]
        for number, letter, errand in sorted(over, key=lambda entry: entry[2].ticket.client):
            del self._asked[number]
            late = f"did not answer within {errand.timeout_s:g} s"
            self._connections.lose(errand.ticket.client, letter.node, late)
            self._came[errand.ticket] = Failure(f"client {errand.ticket.client} {late}")
        self._absent([errand for errand in self._waiting.values() if now >= errand.end])

    def _absent(self, errands: Iterable[_Errand]) -> None:
        """Clients that could not be asked."""
        for errand in sorted(errands, key=lambda errand: errand.ticket.client):
            del self._waiting[errand.ticket]
            self._came[errand.ticket] = self._connections.absence(errand.ticket.client)
