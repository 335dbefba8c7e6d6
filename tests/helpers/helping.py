"""A federation whose sums a helper takes the masks off, in this process, and places where a test may lose or change messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from summing import identities, pinned

from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.engine.helped import HelpedSums
from fibecfed.engine.helping import GivenSums, Helped, Helping
from fibecfed.engine.runtime import ClientRuntime
from fibecfed.engine.summing import SumPool
from fibecfed.engine.transport import InTurn, Ticket
from fibecfed.privacy.cohorts import Cohorts
from fibecfed.privacy.fixed import Adding
from fibecfed.privacy.options import HELPER
from fibecfed.secure.helper import Limits
from fibecfed.secure.signed import Misled

RUN = "0123456789abcdef"
START = "as the server"
IDENTITY = Ed25519PrivateKey.from_private_bytes(b"helper".ljust(32, b"x"))
PUBLIC = IDENTITY.public_key().public_bytes_raw()


class Parties(InTurn):
    """Clients and the helper. `change` may lose or change what the server sends them, `back` what they send.

    Attributes:
        refusals: what each party last rejected.
        starts, rounds: what clients are told in place of the truth.
        trained: a client's `Summand`, in place of its training.
    """

    def __init__(self, runtime: ClientRuntime | None, names: tuple[ClientId, ...], folder: Path, adding: Adding, cohorts: Cohorts) -> None:
        super().__init__()
        self.keys = identities(names)
        self.pinned = pinned(self.keys)
        self.runtime, self.folder, self.adding, self.cohorts = runtime, folder, adding, cohorts
        self.sums = {name: GivenSums(name, key, self.pinned, PUBLIC, adding, cohorts) for name, key in self.keys.items()}
        self.restart_helper()
        self.change: Callable[[Ticket, bytes], bytes | Failure] = lambda ticket, blob: blob
        self.back: Callable[[Ticket, bytes], bytes | Failure] = lambda ticket, blob: blob
        self.refusals: dict[ClientId, str] = {}
        self.starts: dict[ClientId, str] = {}
        self.rounds: dict[ClientId, Round] = {}
        self.trained: Callable[[ClientId], bytes] | None = None

    def restart_helper(self) -> None:
        """As a new process does, with what is on its disk."""
        HelpedSums.begin(self.folder / HELPER)
        limits = Limits(self.cohorts.least, self.cohorts.colluders, self.adding.dtype(0).itemsize * 8)
        self.helping = Helping(IDENTITY, self.pinned, limits, HelpedSums(self.folder / HELPER))

    def pool(self) -> SumPool:
        """As a new process of the server has it."""
        return SumPool(self.adding, self.cohorts, Helped(self.adding, self.cohorts, RUN, self.pinned, PUBLIC, START))

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        changed = self.change(ticket, blob)
        if isinstance(changed, Failure):
            return changed
        try:
            return self.back(ticket, self._reply(ticket, changed))
        except Misled as error:
            self.refusals[ticket.client] = str(error)
            return Failure(f"client {ticket.client}: refused: {error}")

    def _reply(self, ticket: Ticket, blob: bytes) -> bytes:
        client, now = ticket.client, self.rounds.get(ticket.client, ticket.now)
        if client == HELPER:
            return self.helping.answer(ticket.action, RUN, now.number, blob)
        return self.sums[client].answer(
            ticket.action,
            RUN,
            now,
            blob,
            self.folder / client,
            lambda: self.starts.get(client, START),
            lambda sent: self._trained(client, sent, now),
        )

    def _trained(self, client: ClientId, sent: bytes, now: Round) -> bytes:
        if self.trained is not None:
            return self.trained(client)
        assert self.runtime is not None
        return self.runtime.train(client, sent, now)[0]
