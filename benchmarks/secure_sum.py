"""Seconds and bytes of secure aggregation: python benchmarks/secure_sum.py [NUMBERS ...]

One sum by the protocol of `fibecfed.secure`, all clients and the server in this process, one thread: without lost clients, and with as many
as allowed lost after they shared their secrets, which costs the server most. Processor seconds: of one client over all its steps, and of
the server; bytes of all messages of one client, up and down, beside those of its update in float32. Every sum is compared with the plain
one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from fibecfed.engine.masking import told
from fibecfed.secure.client import SumClient
from fibecfed.secure.context import Context, digest_of_broadcast
from fibecfed.secure.server import SumServer

COHORTS = ((5, 1, 1), (10, 2, 2), (50, 5, 5))
"""Clients, those that may be lost, those that may work with the server."""

MEMORY = 2_000_000_000
"""Bytes; larger sums are left out."""


class Clock:
    """Processor seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def of(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call returns; its time is added."""
        start = time.process_time()
        try:
            return call(*arguments)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


def measured(numbers: int, count: int, dropouts: int, colluders: int, lost: int) -> tuple[float, float, int, int]:
    """Processor seconds of a client and of the server; bytes up and down of a client."""
    cohort = tuple(f"{client:03}" for client in range(count))
    context = Context("0" * 16, 0, 0, cohort, digest_of_broadcast(b""), count - dropouts, colluders)
    keys = {client: Ed25519PrivateKey.generate() for client in cohort}
    pinned = {client: key.public_key().public_bytes_raw() for client, key in keys.items()}
    clock, server = Clock(), SumServer(context, pinned)
    clients = {client: SumClient(client, keys[client], pinned, context, (), f"tune 0 10 {0:064}") for client in cohort}
    first, here = cohort[0], cohort[: count - lost]
    adverts = {client: clock.of(client, one.advertise) for client, one in clients.items()}
    roster = clock.of("server", server.advertised, adverts)
    shares = {client: clock.of(client, one.share, roster) for client, one in clients.items()}
    sealed = clock.of("server", server.shared, shares)
    plain, draw = np.zeros(numbers, np.uint32), np.random.default_rng(0)
    for client in here:
        words = draw.integers(0, 2**24, numbers, np.uint32)
        plain += words
        clock.of("server", server.add, client, clock.of(client, clients[client].masked, words, sealed[client]))
    survivors = clock.of("server", server.arrived)
    confirmed = {client: clock.of(client, clients[client].confirm, survivors) for client in here}
    signed = clock.of("server", server.confirmed, confirmed)
    revealed = {client: clock.of(client, clients[client].reveal, signed) for client in here}
    total = clock.of("server", server.total, revealed)
    assert np.array_equal(total, plain), "the masks did not cancel"
    up = len(adverts[first]) + len(told(shares[first])) + 4 * numbers + len(confirmed[first]) + len(told(revealed[first]))
    down = len(told(roster)) + len(told(sealed[first])) + len(told(dict.fromkeys(survivors, ""))) + len(told(signed))
    return sum(clock.seconds[client] for client in here) / len(here), clock.seconds["server"], up, down


def main() -> None:
    """Measure every size that fits into memory, and print a table."""
    table = Table("numbers", "clients", "lost", "client, s", "server, s", "up", "over float32", "down beside the model")
    for numbers in [int(size) for size in sys.argv[1:]] or [75_000, 5_000_000]:
        for count, dropouts, colluders in COHORTS:
            for lost in (0, dropouts):
                if 4 * numbers * 6 > MEMORY:
                    continue
                client, server, up, down = measured(numbers, count, dropouts, colluders, lost)
                cells = (f"{client:.3f}", f"{server:.3f}", f"{up:,}", f"{up / (4 * numbers):.4f}", f"{down:,}")
                table.add_row(f"{numbers:,}", str(count), str(lost), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
