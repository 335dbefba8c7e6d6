"""Sums that a helper takes the masks off (`secure.helper`): the parts of server, client and helper as bytes of an exchange each.

| action | of | to it | from it |
|---|---|---|---|
| key | helper | nothing: before the first round, and after one that failed | its key for the round, signed |
| train | client | `HelpedOpening`: the broadcast, for whom, that key | `Given`: its masked words, and their mask's seed for the helper |
| unmask | helper | the seeds of those that answered | `Masks`: the sum of their masks, and its key for the next round |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import Tensor

from ..core.errors import RunFailed
from ..core.method import Phase
from ..core.types import ClientId, Round
from ..core.wire import WireError, decode, encode, message
from ..privacy.cohorts import Cohorts
from ..privacy.fixed import Adding, Words
from ..privacy.options import HELPER
from ..secure.context import Context, digest_of_broadcast
from ..secure.helper import Limits, Offer, mask, masks_of, offer_of, offered, opened, why_not
from ..secure.signed import BadStatement, Misled
from .checks import OVERHEAD_BYTES
from .gathering import USABLE
from .helped import HelpedSums
from .requests import Requests
from .sum_exchanges import SumPost, as_tensor, begun, own_words, remember, request_of, table_of, told
from .summands import signed_words, summand_bytes, words_in
from .summing import Sum, SumRequest
from .transport import Action, Transport

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HELPS: tuple[Action, ...] = ("key", "unmask")
"""Actions of the helper."""


def statement_bytes(clients: int) -> int:
    """Of a seed or a key with its signature, at most: it names every client of the sum."""
    return 2048 + 400 * clients


@message
class HelpedOpening:
    """Server to client: what it is to train from, and for which sum.

    Attributes:
        broadcast: uint8, the encoded message of the method.
        cohort: every client of the sum, sorted.
        attempt: at this round.
        offer: the helper's key for this round, as it signed it.
    """

    broadcast: Tensor
    cohort: tuple[str, ...]
    attempt: int
    offer: str


@message
class Given:
    """Client to server: what it adds to the sum.

    Attributes:
        words: masked; int32 or int64, of the same bits as the unsigned words.
        seed: of the mask, sealed to the helper and signed.
    """

    words: Tensor
    seed: str


@message
class Masks:
    """Helper to server: the sum of the masks, as `Given.words`, and its key for the next round."""

    words: Tensor
    offer: str


# ---- the server's part


@dataclass
class Helped:
    """Implements `summing.Summing` with a helper.

    Attributes:
        run: its name; clients and helper keep different runs apart.
        pinned: name -> raw public key of each client.
        helper: the helper's raw public key.
        start: a checksum of the tensors that the run started from.
    """

    adding: Adding
    cohorts: Cohorts
    run: str
    pinned: Mapping[ClientId, bytes]
    helper: bytes
    start: str
    _next: tuple[int, str] | None = field(default=None, init=False)  # the helper's key, and for which round

    def __call__(
        self, phase: Phase[Any, Any, Any, Any], transport: Transport, now: Round, asked: SumRequest, timeout_s: float | None, /
    ) -> Sum:
        """As `Summing`; each exchange may take `timeout_s`.

        Raises:
            RunFailed: too few clients answered, one did not where all must, or the helper did not; then nothing was unmasked.
        """
        blob = Requests(phase, asked.server, asked.broadcast, asked.cohort).common
        assert blob is not None, "why_unpooled lets no phase with addressed messages be summed"
        digest = digest_of_broadcast(blob)
        context = Context(self.run, now.number, 0, asked.cohort, digest, self.cohorts.least, self.cohorts.colluders)
        with_helper, post = SumPost(transport, now, timeout_s), SumPost(transport, now, timeout_s)
        with_helper.down[HELPER] = with_helper.up[HELPER] = 0
        came_before = self._next is not None and self._next[0] == now.number
        got = self._sum(asked, blob, context, with_helper, post)
        if got is None and came_before:  # a helper that was started again since then has a new key
            self._next = None
            with_helper.failures.clear()
            post.failures.clear()
            got = self._sum(asked, blob, context, with_helper, post)
        if got is None:
            raise _helpless(with_helper)
        return got

    def _sum(self, asked: SumRequest, blob: bytes, context: Context, with_helper: SumPost, post: SumPost) -> Sum | None:
        """The sum; None: the helper did not add up the masks."""
        now = post.now
        statement, offer = self._offered(with_helper, statement_bytes(len(asked.cohort)))
        clients = [client for client in asked.cohort if not offer.before or client in offer.before]
        wrong = dict.fromkeys(set(asked.cohort) - set(clients), f"round {now.number} was summed before, without it")
        length = self.adding.length(asked.sent)
        at_most, request = statement_bytes(len(asked.cohort)), request_of(now, self.start)
        longest = summand_bytes(self.adding, asked.sent) + at_most + OVERHEAD_BYTES
        total, seeds = np.zeros(length, self.adding.dtype), dict[ClientId, str]()
        opening = encode(HelpedOpening(as_tensor(blob), asked.cohort, context.attempt, statement))
        for client, reply in post.ask("train", dict.fromkeys(clients, opening), longest):
            try:
                given = decode(Given, reply, copy=False)
                words = words_in(given.words, self.adding, length)
            except WireError as error:
                wrong[client] = str(error)
                continue
            long = f"its seed has {len(given.seed):,} characters, expected at most {at_most:,}" if len(given.seed) > at_most else None
            if (why := long or why_not(given.seed, client, self.pinned, context, request, offer, words)) is not None:
                wrong[client] = why
                continue
            total += words
            seeds[client] = given.seed
        failures = {**post.failures, **{client: f"client {client}: {reason}" for client, reason in wrong.items()}}
        survivors = tuple(sorted(seeds))
        asked.reject(failures, now)
        self._reject_other(now, survivors, offer.before, failures)
        masks = self._masks(with_helper, seeds, length, longest)
        if masks is None:
            return None
        total -= masks
        carried = {"bytes_down": with_helper.down[HELPER], "bytes_up": with_helper.up[HELPER]}
        return Sum(total, survivors, failures, post.down, post.up, len(seeds), carried)

    def _reject_other(
        self,
        now: Round,
        survivors: tuple[ClientId, ...],
        before: tuple[str, ...],
        failures: Mapping[ClientId, str],
    ) -> None:
        where = f"{now.phase} round {now.index}: secure aggregation"
        if len(survivors) < self.cohorts.least:
            few = f"{len(survivors)} of {self.cohorts.size} clients, expected at least {self.cohorts.least}"
            first = f"; {failures[min(failures)]}" if failures else ""
            raise RunFailed(f"{where} got the masked answers of {few}{first}. {USABLE}")
        if before and before != survivors:
            raise RunFailed(
                f"{where}: round {now.number} was summed before, over {', '.join(before)}, and now over {', '.join(survivors)}: the helper "
                f"adds up the masks of one sum in a round; have the same clients take part. {USABLE}"
            )

    def _offered(self, post: SumPost, at_most: int) -> tuple[str, Offer]:
        """The helper's key for a round, as it signed it and what it is; it came with the masks of the last one, or is asked for."""
        now = post.now
        if self._next is not None and self._next[0] == now.number:
            statement = self._next[1]
        else:
            reply = _answer(post, "key", b"", at_most)
            if reply is None:
                raise _helpless(post)
            statement = reply.decode(errors="replace")
        self._next = None  # it is for one round, and none of another one's attempts
        try:
            return statement, offer_of(statement, self.helper, self.run, now.number)
        except BadStatement as error:
            raise RunFailed(f"{now.phase} round {now.index}: the helper's key cannot be used: {error}. {USABLE}") from None

    def _masks(self, post: SumPost, seeds: Mapping[ClientId, str], length: int, longest: int) -> Words | None:
        reply, now = _answer(post, "unmask", told(seeds), longest), post.now
        if reply is None:
            return None
        try:
            got = decode(Masks, reply, copy=False)
            words = words_in(got.words, self.adding, length)
        except WireError as error:
            raise RunFailed(f"{now.phase} round {now.index}: the helper's masks cannot be used: {error}. {USABLE}") from None
        self._next = now.number + 1, got.offer
        return words


def _answer(post: SumPost, action: Action, blob: bytes, longest: int) -> bytes | None:
    """The helper's; None: it did not answer, or rejected the request."""
    return dict(post.ask(action, {HELPER: blob}, longest)).get(HELPER)


def _helpless(post: SumPost) -> RunFailed:
    where, why = f"{post.now.phase} round {post.now.index}", post.failures[HELPER].removeprefix("client ")
    return RunFailed(f"{where}: the helper did not help, and without it nothing of the round can be used: {why}. {USABLE}")


# ---- a client's part


@dataclass(frozen=True)
class GivenSums:
    """A client's part of sums with a helper.

    Attributes:
        identity: its pinned key.
        pinned: name -> raw public key of each client of the federation, from its own configuration.
        helper: the helper's raw public key, from there as well.
        adding, cohorts: from its own configuration as well.
    """

    name: ClientId
    identity: Ed25519PrivateKey
    pinned: Mapping[ClientId, bytes]
    helper: bytes
    adding: Adding
    cohorts: Cohorts

    actions = ("train",)

    def answer(
        self, action: str, run: str, now: Round, payload: bytes, folder: Path, start: Callable[[], str], train: Callable[[bytes], bytes]
    ) -> bytes:
        """As `summing.ClientSums`.

        Raises:
            Misled: the server asks for what an honest one would not; nothing was sent.
            WireError: bytes that are not the action's.
        """
        opening = decode(HelpedOpening, payload)
        broadcast = opening.broadcast.numpy().tobytes()
        digest, known = begun(folder, now, broadcast, opening.cohort, self.cohorts)
        context = Context(run, now.number, opening.attempt, opening.cohort, digest, self.cohorts.least, self.cohorts.colluders)
        offer = self._may(context, opening.offer)
        words, about = own_words(folder, train(broadcast), self.adding, now, digest, known)
        remember(folder, now.number, about, ())  # before anything of it leaves
        try:
            seed = mask(words, self.name, self.identity, context, request_of(now, start()), offer)
        except ValueError:
            raise Misled("the helper signed a key with which nothing can be agreed") from None
        return encode(Given(signed_words(words), seed))

    def _may(self, context: Context, offer: str) -> Offer:
        """The helper's key, if this client may be in such a sum."""
        if (problem := context.problem()) is not None:
            raise Misled(f"the server asks for what may not be: {problem}")
        if self.name not in context.cohort:
            raise Misled(f"the server asks client {self.name} for a sum of others")
        if unknown := [client for client in context.cohort if client not in self.pinned]:
            raise Misled(f"the server named client {unknown[0][:80]}, whose key is not pinned (privacy.keys)")
        try:
            return offer_of(offer, self.helper, context.run, context.round)
        except BadStatement as error:
            raise Misled(f"the server hands on a key as the helper's, but {error}") from None


# ---- the helper's part


@dataclass
class Helping:
    """The helper's part: it answers one request after the other.

    Attributes:
        identity: its pinned key.
        pinned: name -> raw public key of each client, from its own configuration.
        limits: from there as well.
        sums: what it has answered, on its disk.
    """

    identity: Ed25519PrivateKey
    pinned: Mapping[ClientId, bytes]
    limits: Limits
    sums: HelpedSums
    _keys: dict[str, tuple[int, X25519PrivateKey]] = field(default_factory=dict[str, tuple[int, X25519PrivateKey]], init=False)

    def answer(self, action: str, run: str, round_number: int, payload: bytes) -> bytes:
        """The reply to an action.

        Raises:
            Misled: the server asks for what an honest one would not; nothing was revealed.
            WireError: bytes that are not the action's.
        """
        if action == "key":
            return self._offer(run, round_number).encode()
        at, key = self._keys.get(run, (-1, None))
        before = self.sums.of(run, round_number)
        asked = opened(table_of(payload), self.pinned, self.limits, run, round_number, key if at == round_number else None, before)
        self.sums.add(run, round_number, asked.answered)  # before anything of it leaves
        masks = masks_of(asked)
        return encode(Masks(signed_words(masks), self._offer(run, round_number + 1)))

    def _offer(self, run: str, round_number: int) -> str:
        """A new key; that of the round before is gone, and with it whatever was sealed to it."""
        key, before = X25519PrivateKey.generate(), self.sums.of(run, round_number)
        self._keys[run] = round_number, key
        return offered(self.identity, run, round_number, key, () if before is None else before.survivors)
