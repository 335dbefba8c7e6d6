"""The server's half of the protocol: it hands on what clients send each other, and takes the masks off their sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from . import shamir
from .client import own_key, pair_key
from .context import Context
from .masks import Words, add_mask
from .signed import BadStatement, keys_in, read, transcript_of


class NoSum(Exception):
    """A step with fewer than t clients, or shares that fit nothing; the text says which. Nothing can be computed of what has come."""


class SumServer:
    """One sum. Each step takes what clients answered, and gives what they are sent next; who is not in it has been lost.

    Args:
        pinned: name -> raw public key.

    Attributes:
        wrong: client -> why its answer was not taken.
    """

    def __init__(self, context: Context, pinned: Mapping[str, bytes]) -> None:
        self.context = context
        self.wrong: dict[str, str] = {}
        self.roster: dict[str, str] = {}
        self.survivors: tuple[str, ...] = ()
        self.before: tuple[str, ...] = ()
        self._pinned = pinned
        self._keys: dict[str, bytes] = {}
        self._transcript = b""
        self._sharers: tuple[str, ...] = ()
        self._total: Words | None = None
        self._added: list[str] = []

    def advertised(self, statements: Mapping[str, str]) -> dict[str, str]:
        """Step 0 to 1: U1, what every client of it is sent.

        Raises:
            NoSum: too few.
        """
        for client, statement in sorted(statements.items()):
            try:
                told = read(statement, self._pinned[client])
                _, masking = keys_in(told)
            except (BadStatement, KeyError) as error:
                self.wrong[client] = f"its keys cannot be used: {error}"
                continue
            if any(told.get(name) != value for name, value in {"kind": "keys", "client": client, **self.context.table}.items()):
                self.wrong[client] = "its keys are for another sum"
                continue
            self.roster[client], self._keys[client] = statement, masking
            before = told.get("before")
            self.before = self.before or (tuple(map(str, before)) if isinstance(before, list) else ())
        self._enough(self.roster, "keys")
        self._transcript = transcript_of(self.roster)
        return self.roster

    def shared(self, sealed: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
        """Step 1 to 2: by client what the others sealed for it, U2. Who was not in the sum of this round that was unmasked before is not
        asked for its words, since the others would help with no other sum: it counts as lost.

        Raises:
            NoSum: too few.
        """
        complete = [client for client in sorted(sealed) if client in self.roster and sealed[client].keys() == self.roster.keys() - {client}]
        self.wrong |= dict.fromkeys(sealed.keys() - set(complete), "it did not seal a share for each client")
        self._sharers = tuple(complete)
        self._enough(self._sharers, "shares")
        left = [client for client in complete if not self.before or client in self.before]
        self.wrong |= dict.fromkeys(set(complete) - set(left), f"round {self.context.round} was summed before, without it")
        return {to: {by: sealed[by][to] for by in complete if by != to} for to in left}

    def add(self, client: str, words: Words) -> None:
        """Step 2: a client's masked words; any number, in any order. They are not kept."""
        assert client in self._sharers and client not in self._added
        self._total = words.copy() if self._total is None else np.add(self._total, words, out=self._total)
        self._added.append(client)

    def arrived(self) -> tuple[str, ...]:
        """Step 2 to 3: U3.

        Raises:
            NoSum: too few, or others than in the sum of this round that was unmasked before.
        """
        self._enough(self._added, "masked answers")
        self.survivors = tuple(sorted(self._added))
        if self.before and self.before != self.survivors:
            raise NoSum(
                f"round {self.context.round} was summed before, over {', '.join(self.before)}, and now over {', '.join(self.survivors)}: "
                "clients help with one sum in a round; have the same clients take part"
            )
        return self.survivors

    def confirmed(self, statements: Mapping[str, str]) -> dict[str, str]:
        """Step 3 to 4: the signatures, as every client that gave one is sent them.

        Raises:
            NoSum: too few.
        """
        expected = {"kind": "survivors", "transcript": self._transcript.hex(), "survivors": list(self.survivors)}
        taken: dict[str, str] = {}
        for client, statement in sorted(statements.items()):
            try:
                told = read(statement, self._pinned[client])
            except (BadStatement, KeyError) as error:
                self.wrong[client] = str(error)
                continue
            if client in self.survivors and told == {**expected, "client": client}:
                taken[client] = statement
            else:
                self.wrong[client] = "it signed other survivors"
        self._enough(taken, "signatures")
        return taken

    def total(self, revealed: Mapping[str, Mapping[str, str]]) -> Words:
        """Step 4: the sum of the words of U3.

        Args:
            revealed: by client, the share of every client of U2 that it revealed.

        Raises:
            NoSum: too few, or shares of a key that is not the one advertised.
        """
        assert self._total is not None
        complete = {client: found for client in sorted(revealed) if (found := self._shares(client, revealed[client])) is not None}
        self.wrong |= dict.fromkeys(revealed.keys() - complete.keys(), "it did not reveal a share of each client")
        self._enough(complete, "revealed shares")
        holders = sorted(complete)[: self.context.least]
        weights = shamir.weights_at_zero([self.context.point(client) for client in holders])
        lost = [client for client in self._sharers if client not in self.survivors]
        secret = {client: shamir.combined((complete[holder][client] for holder in holders), weights) for client in self._sharers}
        keys = {client: X25519PrivateKey.from_private_bytes(secret[client].to_bytes(shamir.SIZE, "little")) for client in lost}
        for client, key in keys.items():
            if key.public_key().public_bytes_raw() != self._keys[client]:
                raise NoSum(f"the shares of the key of client {client}, which was lost, do not give it: somebody sent a wrong one")
        for client in self.survivors:
            add_mask(self._total, own_key(secret[client], self._transcript, client), subtract=True)
            for other, key in keys.items():  # the client added what is subtracted here, and the other way round
                mask = pair_key(key, self._keys[client], self._transcript, client, other)
                add_mask(self._total, mask, subtract=client < other)
        return self._total

    def _shares(self, client: str, texts: Mapping[str, str]) -> dict[str, int] | None:
        if client not in self.survivors or texts.keys() != set(self._sharers):
            return None
        try:
            found = {name: int.from_bytes(bytes.fromhex(text), "big") for name, text in texts.items()}
        except ValueError:
            return None
        return found if all(value < shamir.PRIME for value in found.values()) else None

    def _enough(self, found: Iterable[str], what: str) -> None:
        if (count := len(list(found))) < self.context.least:
            lost = f"; client {min(self.wrong)}: {self.wrong[min(self.wrong)]}" if self.wrong else ""
            raise NoSum(f"got the {what} of {count} of {len(self.context.cohort)} clients, expected at least {self.context.least}{lost}")
