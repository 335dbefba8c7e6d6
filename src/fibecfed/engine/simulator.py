"""In-process transport: runs all clients one after the other in this process, or some of them side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ..core.types import ClientId, Failure
from .runtime import ClientRuntime, NoAnswer, NotFinite, TrainedClient
from .transport import Answer, InTurn, Ticket


class Simulator(InTurn):
    """Asks one resident `ClientRuntime` for every client in turn."""

    def __init__(self, runtime: ClientRuntime) -> None:
        super().__init__()
        self.runtime = runtime

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        """The reply of a client, which computes it now."""
        client, now = ticket.client, ticket.now
        try:
            if ticket.action != "train":
                return self.runtime.evaluate(ticket.action, client, blob, now)
            reply, notes = self.runtime.train(client, blob, now)
        except NoAnswer as error:
            return Failure(str(error), repeats=True)
        if notes:
            self._notes[client] = notes
        return reply


class SideBySide(Simulator):
    """Trains up to `size` clients at a time, with their passes joined. A client's state counts when its answer is received."""

    def __init__(self, runtime: ClientRuntime, size: int) -> None:
        super().__init__(runtime)
        self.size = size
        self._trained: dict[Ticket, TrainedClient | NotFinite] = {}

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        """As `Transport.receive`."""
        order = sorted(set(tickets), key=lambda ticket: ticket.number)
        for place, ticket in enumerate(order):
            if ticket.action == "train" and ticket in self._open and ticket not in self._trained and self.runtime.joins(ticket.now):
                self._train([one for one in order[place:] if self._fits(one, ticket)][: self.size])
            yield from super().receive([ticket])

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        """The reply of a client, which has computed it."""
        trained = self._trained.pop(ticket, None)
        if trained is None:
            return super().answer(ticket, blob)
        if isinstance(trained, NotFinite):
            return Failure(str(trained), repeats=True)
        self.runtime.keep(ticket.client, trained, ticket.now)
        if trained.notes:
            self._notes[ticket.client] = trained.notes
        return trained.reply

    def drop(self, tickets: Collection[Ticket]) -> Mapping[ClientId, int]:
        """As `Transport.drop`; what was computed for one was in vain."""
        for ticket in tickets:
            self._trained.pop(ticket, None)
        return super().drop(tickets)

    def _fits(self, one: Ticket, first: Ticket) -> bool:
        return one.action == first.action and one.now == first.now and one in self._open and one not in self._trained

    def _train(self, group: list[Ticket]) -> None:
        requests: dict[ClientId, bytes] = {ticket.client: self._open[ticket][ticket.client] for ticket in group}
        found = self.runtime.train_together(requests, group[0].now)
        self._trained.update({ticket: found[ticket.client] for ticket in group})
