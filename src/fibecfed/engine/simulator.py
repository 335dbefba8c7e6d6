"""In-process transport: runs all clients one after the other in this process."""

from __future__ import annotations

from ..core.types import Failure
from .runtime import ClientRuntime, NotFinite
from .transport import InTurn, Ticket


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
        except NotFinite as error:
            return Failure(str(error), repeats=True)
        if notes:
            self._notes[client] = notes
        return reply
