"""In-process transport: runs all clients one after the other in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.types import ClientId, Failure, Round
from .runtime import ClientRuntime, NotFinite
from .transport import Action, InTurn, Ticket


class Simulator(InTurn):
    """Asks one resident `ClientRuntime` for every client in turn."""

    def __init__(self, runtime: ClientRuntime) -> None:
        super().__init__()
        self.runtime = runtime
        self._notes: dict[ClientId, Mapping[str, Any]] = {}

    def send(
        self,
        action: Action,
        now: Round,
        requests: Mapping[ClientId, bytes],
        timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> Sequence[Ticket]:
        """As `Transport.send`; a client computes when its answer is received."""
        self._notes = {}
        return super().send(action, now, requests, timeout_s, max_bytes)

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

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """Notes of the clients that trained since requests were last sent."""
        return self._notes
