"""Seconds and bytes of secure aggregation: python benchmarks/secure_sum.py [NUMBERS ...]

One sum by each of the two protocols of `fibecfed.secure`, in pairs and with a helper, all in this process, one thread: without lost
clients, and with as many as allowed lost, in pairs after they shared their secrets, which costs the server most. Processor seconds: of
one client over all its steps, of the server, and of the helper; bytes of all messages of one client, up and down, beside those of its
update in float32, and of the helper. Every sum is compared with the plain one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from rich.console import Console
from rich.table import Table

from fibecfed.engine.sum_exchanges import told
from fibecfed.secure import helper
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


def with_helper(numbers: int, count: int, dropouts: int, colluders: int, lost: int) -> tuple[float, float, float, int, int, int]:
    """Processor seconds of a client, of the server and of the helper; bytes up of a client, and down to and up from the helper."""
    cohort = tuple(f"{client:03}" for client in range(count))
    context = Context("0" * 16, 0, 0, cohort, digest_of_broadcast(b""), count - dropouts, colluders)
    keys = {client: Ed25519PrivateKey.generate() for client in cohort}
    pinned = {client: key.public_key().public_bytes_raw() for client, key in keys.items()}
    clock, identity, key = Clock(), Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    statement = clock.of("helper", helper.offered, identity, "0" * 16, 0, key, ())
    offer = helper.offer_of(statement, identity.public_key().public_bytes_raw(), "0" * 16, 0)
    here, total, seeds = cohort[: count - lost], np.zeros(numbers, np.uint32), dict[str, str]()
    plain, draw = np.zeros(numbers, np.uint32), np.random.default_rng(0)
    for client in here:
        words = draw.integers(0, 2**24, numbers, np.uint32)
        plain += words
        seeds[client] = clock.of(client, helper.mask, words, client, keys[client], context, f"tune 0 10 {0:064}", offer)
        assert clock.of("server", helper.why_not, seeds[client], client, pinned, context, offer, words) is None
        clock.of("server", np.add, total, words, total)
    limits = helper.Limits(context.least, colluders, 32)
    asked = clock.of("helper", helper.opened, seeds, pinned, limits, "0" * 16, 0, key, None)
    masks = clock.of("helper", helper.masks_of, asked)
    clock.of("server", np.subtract, total, masks, total)
    assert np.array_equal(total, plain), "the masks did not cancel"
    seconds = sum(clock.seconds[client] for client in here) / len(here)
    up = 4 * numbers + len(seeds[cohort[0]])
    return seconds, clock.seconds["server"], clock.seconds["helper"], up, len(told(seeds)), masks.nbytes + len(statement)


def helped_table(sizes: Sequence[int]) -> Table:
    """What a sum takes with a helper."""
    table = Table("numbers", "clients", "lost", "client, s", "server, s", "helper, s", "up", "over float32", "to the helper", "from it")
    for numbers in sizes:
        for count, dropouts, colluders in COHORTS:
            for lost in (0, dropouts):
                *seconds, up, to, back = with_helper(numbers, count, dropouts, colluders, lost)
                cells = (*(f"{value:.3f}" for value in seconds), f"{up:,}", f"{up / (4 * numbers):.4f}", f"{to:,}", f"{back:,}")
                table.add_row(f"{numbers:,}", str(count), str(lost), *cells)
    return table


def main() -> None:
    """Measure every size that fits into memory, and print a table."""
    sizes = [int(size) for size in sys.argv[1:]] or [75_000, 5_000_000]
    table = Table("numbers", "clients", "lost", "client, s", "server, s", "up", "over float32", "down beside the model")
    for numbers in sizes:
        for count, dropouts, colluders in COHORTS:
            for lost in (0, dropouts):
                if 4 * numbers * 6 > MEMORY:
                    continue
                client, server, up, down = measured(numbers, count, dropouts, colluders, lost)
                cells = (f"{client:.3f}", f"{server:.3f}", f"{up:,}", f"{up / (4 * numbers):.4f}", f"{down:,}")
                table.add_row(f"{numbers:,}", str(count), str(lost), *cells)
    console = Console(width=130)
    console.print("In pairs", table, "With a helper", helped_table(sizes), sep="\n")


if __name__ == "__main__":
    main()
