"""A sum by the protocol in this process: clients, a server between them, and places where a test may lose or change what is sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fibecfed.secure.client import SumClient
from fibecfed.secure.context import Context, digest_of_broadcast
from fibecfed.secure.server import SumServer

BROADCAST = digest_of_broadcast(b"a model")


def names(count: int) -> tuple[str, ...]:
    return tuple(f"{number:03}" for number in range(count))


def identities(cohort: Collection[str]) -> dict[str, Ed25519PrivateKey]:
    return {client: Ed25519PrivateKey.from_private_bytes(client.encode().ljust(32, b"x")) for client in cohort}


def pinned(keys: Mapping[str, Ed25519PrivateKey]) -> dict[str, bytes]:
    return {client: key.public_key().public_bytes_raw() for client, key in keys.items()}


def context(cohort: tuple[str, ...], dropouts: int = 1, colluders: int = 1, **more: Any) -> Context:
    table = {"run": "0" * 16, "round": 3, "attempt": 0, "broadcast": BROADCAST, **more}
    return Context(cohort=cohort, least=len(cohort) - dropouts, colluders=colluders, **table)


def drawn(cohort: Collection[str], length: int = 37, dtype: Any = np.uint32) -> dict[str, np.ndarray]:
    return {client: np.random.default_rng(int(client) + 1).integers(0, 2**20, length, dtype) for client in cohort}


@dataclass
class Played:
    """A sum, and what each party sent.

    Attributes:
        lost: step -> clients that do not answer it any more.
        change: called with step, client and what the server would send it at that step; what it returns is sent.
    """

    cohort: tuple[str, ...]
    words: Mapping[str, np.ndarray]
    about: Context
    lost: Mapping[str, Collection[str]] = field(default_factory=dict[str, Collection[str]])
    change: Callable[[str, str, Any], Any] = lambda step, client, sent: sent
    contexts: Mapping[str, Context] = field(default_factory=dict[str, Context])

    def __post_init__(self) -> None:
        keys = identities(self.cohort)
        public = pinned(keys)
        self.clients = {c: SumClient(c, keys[c], public, self.contexts.get(c, self.about)) for c in self.cohort}
        self.server = SumServer(self.about, public)
        self.masked: dict[str, np.ndarray] = {}
        self.revealed: dict[str, dict[str, str]] = {}

    def play(self) -> np.ndarray:
        here = self._left("advertise", self.cohort)
        roster = self.server.advertised({client: self.clients[client].advertise() for client in here})
        here = self._left("share", [client for client in here if client in roster])
        sealed = self.server.shared({client: self.clients[client].share(self.change("share", client, roster)) for client in here})
        here = self._left("masked", sealed)
        for client in here:
            sent = self.change("masked", client, sealed[client])
            self.masked[client] = self.clients[client].masked(self.words[client].copy(), sent)
            self.server.add(client, self.masked[client])
        survivors = self.server.arrived()
        here = self._left("confirm", here)
        signed = self.server.confirmed({client: self.clients[client].confirm(self.change("confirm", client, survivors)) for client in here})
        here = self._left("reveal", here)
        for client in here:
            self.revealed[client] = self.clients[client].reveal(self.change("reveal", client, signed))
        return self.server.total(self.revealed)

    def _left(self, step: str, clients: Collection[str]) -> list[str]:
        return [client for client in clients if client not in self.lost.get(step, ())]


def plain(words: Mapping[str, np.ndarray], clients: Collection[str]) -> np.ndarray:
    """The simulator's sum."""
    total = np.zeros_like(next(iter(words.values())))
    for client in clients:
        total += words[client]
    return total
