"""Sums by the protocol of `secure`: its two halves as bytes of an exchange each, over any transport.

| action | to the client | from the client |
|---|---|---|
| train | `Opening`: the broadcast, for whom, and which attempt | its keys, once it has trained |
| share | `Told`: everybody's keys | shares for each other client |
| mask | shares for it | a `Summand`: its masked words |
| confirm | the survivors | a signature of them |
| reveal | everybody's signatures | shares that take the masks off |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.errors import RunFailed
from ..core.method import Phase
from ..core.types import ClientId, Round
from ..core.wire import WireError, decode, encode, message
from ..privacy.cohorts import Cohorts
from ..privacy.fixed import Adding, Words
from ..secure.client import SumClient
from ..secure.context import Context, digest_of_broadcast
from ..secure.server import NoSum, SumServer
from ..secure.signed import Misled
from .checks import OVERHEAD_BYTES
from .gathering import USABLE
from .requests import OnDemand, Requests
from .sum_exchanges import SumPost, Told, as_tensor, begun, own_words, remember, request_of, table_of, told
from .summands import summand, summand_bytes, words_of
from .summing import Sum, SumRequest
from .transport import Action, Transport

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

STEPS: tuple[Action, ...] = ("share", "mask", "confirm", "reveal")
"""Actions after "train"."""


@message
class Opening:
    """Server to client: what it is to train from, and for which sum.

    Attributes:
        broadcast: uint8, the encoded message of the method.
        cohort: every client of the sum, sorted.
        attempt: at this round.
    """

    broadcast: Tensor
    cohort: tuple[str, ...]
    attempt: int


# ---- the server's half


@dataclass(frozen=True)
class Masked:
    """Implements `summing.Summing` by the protocol.

    Attributes:
        run: its name; a client keeps different runs apart.
        pinned: name -> raw public key of each client.
    """

    adding: Adding
    cohorts: Cohorts
    run: str
    pinned: Mapping[ClientId, bytes]

    def __call__(
        self, phase: Phase[Any, Any, Any, Any], transport: Transport, now: Round, asked: SumRequest, timeout_s: float | None, /
    ) -> Sum:
        """As `Summing`; each exchange may take `timeout_s`.

        Raises:
            RunFailed: too few clients answered one of them, or one did not where all must; in that case nothing was unmasked.
        """
        blob = Requests(phase, asked.server, asked.broadcast, asked.cohort).common
        assert blob is not None, "why_unpooled lets no phase with addressed messages be summed"
        digest = digest_of_broadcast(blob)
        context = Context(self.run, now.number, 0, asked.cohort, digest, self.cohorts.least, self.cohorts.colluders)
        sum_ = SumServer(context, self.pinned)
        post = SumPost(transport, now, timeout_s)
        opening = encode(Opening(as_tensor(blob), asked.cohort, context.attempt))
        longest, length = summand_bytes(self.adding, asked.sent) + OVERHEAD_BYTES, self.adding.length(asked.sent)
        summands = 0
        try:
            roster = told(sum_.advertised(post.texts("train", dict.fromkeys(asked.cohort, opening))))
            sealed = sum_.shared(post.tables("share", dict.fromkeys(sum_.roster, roster)))
            for client, reply in post.ask("mask", OnDemand(list(sealed), lambda to: told(sealed[to])), longest):
                try:
                    sum_.add(client, words_of(reply, self.adding, length))
                    summands += 1
                except WireError as error:
                    sum_.wrong[client] = str(error)
            survivors = encode(Told(sum_.arrived()))
            asked.reject(_failed(post, sum_), now)
            signed = sum_.confirmed(post.texts("confirm", dict.fromkeys(sum_.survivors, survivors)))
            total = sum_.total(post.tables("reveal", dict.fromkeys(signed, told(signed))))
        except NoSum as error:
            first = f"; {post.failures[min(post.failures)]}" if post.failures else ""
            raise RunFailed(f"{now.phase} round {now.index}: secure aggregation {error}{first}. {USABLE}") from None
        return Sum(total, sum_.survivors, _failed(post, sum_), post.down, post.up, summands)


def _failed(post: SumPost, sum_: SumServer) -> dict[ClientId, str]:
    return {**post.failures, **{client: f"client {client}: {reason}" for client, reason in sum_.wrong.items()}}


# ---- a client's half


@dataclass
class OwnSums:
    """A client's part of the sums of a run: one at a time.

    Attributes:
        identity: its pinned key.
        pinned: name -> raw public key of each client of the federation, from its own configuration.
        adding, cohorts: from its own configuration as well.
    """

    name: ClientId
    identity: Ed25519PrivateKey
    pinned: Mapping[ClientId, bytes]
    adding: Adding
    cohorts: Cohorts
    _open: _Open | None = None

    actions = ("train", *STEPS)

    def answer(
        self, action: str, run: str, now: Round, payload: bytes, folder: Path, start: Callable[[], str], train: Callable[[bytes], bytes]
    ) -> bytes:
        """As `summing.ClientSums`.

        Raises:
            Misled: the server asks for what an honest one would not; nothing was revealed, and this sum is over for the client.
            WireError: bytes that are not the action's.
        """
        if action == "train":
            self._open = None
            self._open = self._begin(run, now, payload, folder, start(), train)
            return self._open.sum.advertise().encode()
        held = self._open
        if held is None or (held.sum.context.run, held.sum.context.round) != (run, now.number):
            raise Misled(f"the server asks for step {action!r} of a sum of round {now.number} that this client is in no more, or never was")
        if action == "share":
            return told(held.sum.share(table_of(payload)))
        if action == "mask":
            return summand(held.sum.masked(held.taken(), table_of(payload)))
        if action == "confirm":
            return held.sum.confirm(decode(Told, payload).names).encode()
        found = held.sum.reveal(table_of(payload))
        remember(folder, now.number, held.about, held.sum.survivors)  # before anything of it leaves
        self._open = None
        return told(found)

    def _begin(self, run: str, now: Round, payload: bytes, folder: Path, start: str, train: Callable[[bytes], bytes]) -> _Open:
        opening = decode(Opening, payload)
        broadcast = opening.broadcast.numpy().tobytes()
        digest, known = begun(folder, now, broadcast, opening.cohort, self.cohorts)
        least, colluders = self.cohorts.least, self.cohorts.colluders
        context = Context(run, now.number, opening.attempt, opening.cohort, digest, least, colluders)
        before = tuple(known.get("survivors", ()))
        sum_ = SumClient(self.name, self.identity, self.pinned, context, before, request_of(now, start))
        words, about = own_words(folder, train(broadcast), self.adding, now, digest, known)
        return _Open(sum_, words, about)


@dataclass
class _Open:
    """A sum that a client is in."""

    sum: SumClient
    words: Words | None
    about: Mapping[str, str]

    def taken(self) -> Words:
        """The words, once."""
        words, self.words = self.words, None
        if words is None:
            raise Misled("the server asks for masked words a second time")
        return words
