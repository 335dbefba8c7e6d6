"""Virtual time: when the answers of simulated clients would arrive, from counted work and bytes at each client's speed and link.

Nothing is measured and nobody waits, so that the same run has the same times on every machine, in whatever order clients are computed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core.clock import transfer_seconds
from ..core.rng import Key
from ..core.types import ClientId, Round
from .counting import TOKEN_BLOCKS
from .held import HeldStates
from .options import FederationOptions, LinkOptions, SpeedOptions
from .transport import Action, Answer, Ticket, Transport


@dataclass(frozen=True)
class Device:
    """A simulated client's machine and link; a bandwidth of None has no limit.

    Attributes:
        tokens_per_s: through one transformer block, forward or backward alike.
        up_mbit, down_mbit: 10^6 bits per second.
        latency_ms: of one message, in one direction.
    """

    tokens_per_s: float
    up_mbit: float | None = None
    down_mbit: float | None = None
    latency_ms: float = 0.0

    def compute_s(self, token_blocks: Sequence[int]) -> float:
        """Seconds of counted work."""
        return sum(token_blocks) / self.tokens_per_s

    def down_s(self, size: int) -> float:
        """Seconds of a message of so many bytes to the client."""
        return transfer_seconds(size, self.down_mbit or math.inf, self.latency_ms)

    def up_s(self, size: int) -> float:
        """Seconds of a message of so many bytes from the client."""
        return transfer_seconds(size, self.up_mbit or math.inf, self.latency_ms)


def devices(options: FederationOptions, clients: Sequence[ClientId], key: Key) -> dict[ClientId, Device]:
    """The machine and the link of each client, drawn from `key` by name: the same whatever computes them.

    Args:
        clients: ids of all clients, in ascending order.
    """
    speeds, links = options.speeds, options.links
    slower = slowness(speeds, clients, key.fold("speeds"))
    narrower = slowness(links, clients, key.fold("links"))
    return {
        client: Device(
            speeds.tokens_per_s / slower[client],
            links.up_mbit and links.up_mbit / narrower[client],
            links.down_mbit and links.down_mbit / narrower[client],
            links.latency_ms,
        )
        for client in clients
    }


def slowness(options: SpeedOptions | LinkOptions, clients: Sequence[ClientId], key: Key) -> dict[ClientId, float]:
    """How many times slower each client is: the factors given, or those drawn.

    A share of s makes round(s K) clients slow, at least one. The log-normal factor of a client is exp(spread z), z its own standard
    normal draw.
    """
    if options.factors is not None:
        return dict(zip(clients, options.factors, strict=True))
    found = dict.fromkeys(clients, 1.0)
    if options.slow_share:
        number = max(1, math.floor(options.slow_share * len(clients) + 0.5))
        for place in key.fold("slow").permutation(len(clients))[:number]:
            found[clients[int(place)]] *= options.slow_factor
    if options.spread:
        for client in clients:
            z = torch.randn((), generator=key.fold("spread", client).generator(), dtype=torch.float64)
            found[client] *= math.exp(options.spread * float(z))
    return found


@dataclass(frozen=True)
class _Computed:
    """An answer, and when the client began and ended computing it."""

    answer: Answer
    begin_s: float
    end_s: float
    at_s: float
    notes: Mapping[str, Any]


class VirtualTime:
    """A transport around another one, whose answers arrive in the order of virtual time. Implements `engine.transport.Transport`.

    A request takes its bytes over the client's link, waits until the client has finished what it was asked before, and takes the counted
    work at the client's speed; then the answer takes its bytes over the link. The server takes no time, nor does an evaluation, which a
    federation in use would not need [C]. Where times are equal, who was asked in an earlier round is first, then the lower id.

    The clock stands at the arrival of the last answer that was received. A client's own state is the one before a training until its
    answer is received: an evaluation in between sees that one, and a stopped run computes the training again. Whoever is dropped while it
    computes goes on: it sends its answer in vain, and its state counts from then on [C]. One that had not begun yet never does.

    Args:
        states: where the transport's clients keep their states.
        before: what `table` gave in a run that is resumed.
    """

    def __init__(
        self, inner: Transport, states: HeldStates, machines: Mapping[ClientId, Device], before: Mapping[str, Any] | None = None
    ) -> None:
        table: Mapping[str, Any] = before or {}
        self.inner = inner
        self.now_s: float = table.get("now_s", 0.0)
        self._states = states
        self._machines = machines
        self._free: dict[ClientId, float] = dict(table.get("free_s", {}))  # when each has finished what it was asked
        self._again: dict[ClientId, float] = dict(table.get("begun_s", {}))  # of requests that will be sent again: when they began
        self._sent: dict[Ticket, tuple[float, _Weighed]] = {}  # when, of requests that are not computed yet
        self._computed: dict[Ticket, _Computed] = {}
        self._notes: dict[ClientId, Mapping[str, Any]] = {}

    def table(self) -> dict[str, Any]:
        """As JSON values: the clock, and when those who are at work began or will be done.

        Requests whose answers were not received have to be sent again by whoever resumes; they keep the times that they had.
        """
        begun = {ticket.client: computed.begin_s for ticket, computed in self._computed.items()}
        free = {client: end for client, end in self._free.items() if end > self.now_s and client not in begun}
        return {"now_s": self.now_s, "free_s": free, "begun_s": begun}

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        """As `Transport.send`. Nobody is late: `timeout_s` is not looked at."""
        if action != "train":
            return self.inner.send(action, now, requests, timeout_s, max_bytes)
        self._notes = {}
        weighed = _Weighed(requests)
        tickets = self.inner.send(action, now, weighed, timeout_s, max_bytes)
        self._sent.update(dict.fromkeys(tickets, (self.now_s, weighed)))
        return tickets

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        """As `Transport.receive`; all of them are computed before the first is known to be the first."""
        wanted = set(tickets)
        if others := [ticket for ticket in tickets if ticket.action != "train"]:
            yield from self.inner.receive(others)
        for answer in self.inner.receive(wanted & self._sent.keys()):
            self._computed[answer.ticket] = self._timed(answer)
        self._sent = {ticket: sent for ticket, sent in self._sent.items() if ticket not in wanted}
        for ticket in sorted(wanted & self._computed.keys(), key=self._place):
            if (computed := self._computed.pop(ticket, None)) is not None:
                self.now_s = max(self.now_s, computed.at_s)
                self._states.release(ticket.client)
                if computed.notes:
                    self._notes[ticket.client] = computed.notes
                yield replace(computed.answer, at_s=self.now_s)

    def drop(self, tickets: Collection[Ticket]) -> Mapping[ClientId, int]:
        """As `Transport.drop`."""
        self.inner.drop(tickets)
        sent: dict[ClientId, int] = {}
        for ticket in tickets:
            self._sent.pop(ticket, None)
            if (computed := self._computed.pop(ticket, None)) is None:
                continue
            if computed.begin_s >= self.now_s:  # what it was asked before was not done yet, or the message had not arrived
                self._states.discard(ticket.client)
                self._free[ticket.client] = computed.begin_s
                continue
            self._states.release(ticket.client)
            if isinstance(computed.answer.reply, bytes):
                sent[ticket.client] = len(computed.answer.reply)
        return sent

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """As `Transport.notes`, of the clients whose answers were received."""
        return self._notes

    def _place(self, ticket: Ticket) -> tuple[float, int, ClientId]:
        return self._computed[ticket].at_s, ticket.now.number, ticket.client

    def _timed(self, answer: Answer) -> _Computed:
        client, machine, reply = answer.ticket.client, self._machines[answer.ticket.client], answer.reply
        sent_s, requests = self._sent[answer.ticket]
        notes = self.inner.notes().get(client, {})
        arrives = sent_s + machine.down_s(requests.sizes.get(client, 0))
        begin = self._again.pop(client, max(arrives, self._free.get(client, 0.0)))
        end = begin + machine.compute_s(notes.get(TOKEN_BLOCKS, ()))
        self._free[client] = end
        return _Computed(answer, begin, end, end + machine.up_s(len(reply) if isinstance(reply, bytes) else 0), notes)


class _Weighed(Mapping[ClientId, bytes]):
    """Requests that remember how long each was when it was asked for, so that none has to be made twice."""

    def __init__(self, requests: Mapping[ClientId, bytes]) -> None:
        self._requests = requests
        self.sizes: dict[ClientId, int] = {}

    def __getitem__(self, client: ClientId) -> bytes:
        blob = self._requests[client]
        self.sizes[client] = len(blob)
        return blob

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)
