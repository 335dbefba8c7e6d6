"""A client's half of the protocol. It trusts nobody's word about others: what the server hands on is signed by them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from . import shamir
from .context import Context
from .masks import Words, add_mask, agreed, derived
from .signed import BadStatement, Misled, keys_in, read, stated, transcript_of

STEPS = ("advertise", "share", "masked", "confirm", "reveal")
_ONCE = bytes(12)
"""The nonce of keys that seal one message each."""

P = ParamSpec("P")
R = TypeVar("R")


def _once(
    step: str,
) -> Callable[[Callable[Concatenate[SumClient, P], R]], Callable[Concatenate[SumClient, P], R]]:
    """A step that is taken in its turn and once; when it fails, none follows."""

    def wrapped(take: Callable[Concatenate[SumClient, P], R]) -> Callable[Concatenate[SumClient, P], R]:
        @functools.wraps(take)
        def turn(client: SumClient, *args: P.args, **kwargs: P.kwargs) -> R:
            expected, client.expects = client.expects, None
            if expected != step:
                raise Misled(
                    f"the server asked for step {step!r} of round {client.context.round} out of turn, expected "
                    f"{'nothing more' if expected is None else repr(expected)}: each is answered once"
                )
            result = take(client, *args, **kwargs)
            client.expects = STEPS[STEPS.index(step) + 1] if step != STEPS[-1] else None
            return result

        return turn

    return wrapped


class SumClient:
    """One client in one sum; each step is taken once, in order, and none after a rejected one.

    Args:
        name: the client's.
        identity: its pinned key.
        pinned: name -> raw public key of every client of the cohort, from the configuration.
        before: survivors of the sum that the client helped to unmask in this round before, with the same words; empty: it did not.
        request: all else that the server told the client and that its words depend on. It must have told everybody the same: else it could
            have one client train so that its words are known.

    Attributes:
        expects: the step to come; None: no more.
        survivors: U3, from step 3 on.

    Raises:
        Misled: the cohort cannot be summed so.
    """

    def __init__(
        self,
        name: str,
        identity: Ed25519PrivateKey,
        pinned: Mapping[str, bytes],
        context: Context,
        before: Sequence[str] = (),
        request: str = "",
    ) -> None:
        if (problem := context.problem() or context.two_sets()) is not None:
            raise Misled(f"the server asks for what may not be: {problem}")
        if name not in context.cohort:
            raise Misled(f"the server asks client {name} for a sum of others")
        if unknown := [client for client in context.cohort if client not in pinned]:
            raise Misled(f"the server named client {unknown[0]}, whose key is not pinned (privacy.keys)")
        self.name, self.context, self.before, self.request = name, context, tuple(before), request
        self._identity, self._pinned = identity, pinned
        self.expects: str | None = STEPS[0]
        self._sealing = X25519PrivateKey.generate()
        self._masking = shamir.drawn()
        self._own = shamir.drawn()
        self._statement = ""
        self._keys: dict[str, tuple[bytes, bytes]] = {}  # of U1: for sealing, for masking
        self._transcript = b""
        self._shares: dict[str, tuple[str, str]] = {}  # of U2: of the masking key, of the own mask
        self.survivors: tuple[str, ...] = ()

    @_once("advertise")
    def advertise(self) -> str:
        """Step 0: the client's keys, signed."""
        private = X25519PrivateKey.from_private_bytes(self._masking.to_bytes(shamir.SIZE, "little"))
        sealing, masking = (key.public_key().public_bytes_raw().hex() for key in (self._sealing, private))
        table = {**self._about(self.name), "sealing": sealing, "masking": masking}
        self._statement = stated(self._identity, {**table, "before": list(self.before)})
        return self._statement

    @_once("share")
    def share(self, roster: Mapping[str, str]) -> dict[str, str]:
        """Step 1: a share of the client's two secrets for each other client, sealed to it.

        Args:
            roster: U1, what each client advertised.

        Raises:
            Misled: somebody's keys are not for this sum, or are not theirs.
        """
        self._enough(roster, "keys")
        if roster.get(self.name) != self._statement:
            raise Misled(f"the server hands out other keys of client {self.name} than it made")
        for client, statement in sorted(roster.items()):
            self._keys[client] = self._read_keys(client, statement)
        self._transcript = transcript_of(roster)
        clients = sorted(roster)
        points = [self.context.point(client) for client in clients]
        of_key, of_mask = (shamir.shares_of(secret, self.context.least, points) for secret in (self._masking, self._own))
        sealed: dict[str, str] = {}
        for client, *pair in zip(clients, of_key, of_mask, strict=True):
            both = b"".join(share.to_bytes(shamir.SIZE, "big") for share in pair)
            if client == self.name:
                self._shares[client] = _halves(both)
            else:
                sealed[client] = self._box(client, self.name, client).encrypt(_ONCE, both, None).hex()
        return sealed

    @_once("masked")
    def masked(self, words: Words, sealed: Mapping[str, str]) -> Words:
        """Step 2: the client's words, masked.

        Args:
            words: changed in place.
            sealed: what each other client of U2 sealed for this one.

        Raises:
            Misled: too few of them, or one that cannot be opened.
        """
        if unknown := sorted(sealed.keys() - (self._keys.keys() - {self.name})):
            raise Misled(f"the server hands on shares of client {unknown[0]}, of whom there are no keys")
        for client, text in sorted(sealed.items()):
            try:
                self._shares[client] = _halves(self._box(client, client, self.name).decrypt(_ONCE, bytes.fromhex(text), None))
            except (InvalidTag, ValueError):
                raise Misled(
                    f"the shares of client {client} for {self.name} cannot be opened: the server changed them, or that client"
                ) from None
        self._enough(self._shares, "shares")
        private = X25519PrivateKey.from_private_bytes(self._masking.to_bytes(shamir.SIZE, "little"))
        for client in sorted(sealed):
            try:
                key = pair_key(private, self._keys[client][1], self._transcript, self.name, client)
            except ValueError:
                raise Misled(f"client {client} signed a key with which nothing can be agreed") from None
            add_mask(words, key, subtract=client < self.name)
        add_mask(words, own_key(self._own, self._transcript, self.name))
        return words

    @_once("confirm")
    def confirm(self, survivors: Sequence[str]) -> str:
        """Step 3: a signature of U3, the clients whose words are in the sum.

        Raises:
            Misled: not this client, too few, others than those who shared, or a second sum of other clients in one round.
        """
        self.survivors = tuple(sorted(set(survivors)))
        self._enough(self.survivors, "answers")
        if self.name not in self.survivors or not set(self.survivors) <= self._shares.keys():
            raise Misled("the server names survivors that cannot be those of this sum")
        if self.before and self.before != self.survivors:
            raise Misled(
                f"the server asks for a second sum of round {self.context.round}, of {', '.join(self.survivors)} after that of "
                f"{', '.join(self.before)}: their difference would show single clients"
            )
        return stated(self._identity, self._of_survivors(self.name))

    @_once("reveal")
    def reveal(self, statements: Mapping[str, str]) -> dict[str, str]:
        """Step 4: of each client of U3 the share of its own mask, of each that was lost that of its masking key; never both.

        Args:
            statements: what clients of U3 signed in step 3.

        Raises:
            Misled: fewer than t, or one that says something else.
        """
        for client, statement in sorted(statements.items()):
            if client not in self.survivors:
                raise Misled(f"the server hands on a signature of client {client}, which is not among the survivors that it named")
            told = self._opened(client, statement)
            if told != self._of_survivors(client):
                if told.get("kind") == "survivors" and told.get("transcript") == self._transcript.hex():
                    raise Misled(f"the server named other survivors to client {client} than to {self.name}")
                raise Misled(f"the server hands on a signature of client {client} from another sum, or showed it other keys")
        self._enough(statements, "signatures")
        return {client: mask if client in self.survivors else key for client, (key, mask) in sorted(self._shares.items())}

    # ---- parts of it

    def _enough(self, found: Mapping[str, Any] | Sequence[str], what: str) -> None:
        if len(found) < self.context.least:
            raise Misled(f"the server continues with the {what} of {len(found)} clients, expected at least {self.context.least}")

    def _opened(self, client: str, statement: str) -> dict[str, Any]:
        try:
            return read(statement, self._pinned[client])
        except BadStatement as error:
            raise Misled(f"the server hands on a message as that of client {client}, but {error}") from None

    def _read_keys(self, client: str, statement: str) -> tuple[bytes, bytes]:
        if client not in self.context.cohort:
            raise Misled(f"the server hands on keys of client {client}, which is not of the cohort")
        told = self._opened(client, statement)
        for name, value in self._about(client).items():
            if told.get(name) != value:
                raise Misled(
                    f"the server sent another {name} to client {client} than to {self.name}, or hands on an old message of it: "
                    f"{str(told.get(name))[:80]}, expected {value}"
                )
        try:
            return keys_in(told)
        except BadStatement as error:
            raise Misled(f"the keys of client {client}: {error}") from None

    def _box(self, other: str, sender: str, receiver: str) -> ChaCha20Poly1305:
        try:
            return ChaCha20Poly1305(agreed(self._sealing, self._keys[other][0], "shares", self._transcript, sender, receiver))
        except ValueError:
            raise Misled(f"client {other} signed a key with which nothing can be agreed") from None

    def _about(self, client: str) -> dict[str, Any]:
        """What a client's keys are signed with, of whom the server told the same."""
        return {"kind": "keys", "client": client, **self.context.table, "request": self.request}

    def _of_survivors(self, client: str) -> dict[str, Any]:
        return {"kind": "survivors", "client": client, "transcript": self._transcript.hex(), "survivors": list(self.survivors)}


def pair_key(own: X25519PrivateKey, other: bytes, transcript: bytes, one: str, two: str) -> bytes:
    """Of the mask between two clients."""
    return agreed(own, other, "pair", transcript, *sorted((one, two)))


def own_key(secret: int, transcript: bytes, client: str) -> bytes:
    """Of a client's own mask."""
    return derived(secret.to_bytes(shamir.SIZE, "big"), "own", transcript, client)


def _halves(both: bytes) -> tuple[str, str]:
    if len(both) != 2 * shamir.SIZE:
        raise ValueError("not two shares")
    return both[: shamir.SIZE].hex(), both[shamir.SIZE :].hex()
