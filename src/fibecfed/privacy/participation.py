"""Who takes part in which round, known to everybody beforehand: so a client is charged for its own rounds alone."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.rng import Key
from ..core.types import ClientId


def cyclic(clients: Sequence[ClientId], size: int, key: Key, number: int) -> tuple[ClientId, ...]:
    """The cohort of sampled round `number`, sorted: the next `size` clients of one order drawn for the run, which begins again at its end.

    After R rounds each of K clients took part floor(R size / K) or ceil(R size / K) times.

    Args:
        number: sampled rounds before.
    """
    size = min(size, len(clients))
    order: list[int] = key.fold("cohort", "cyclic").permutation(len(clients)).tolist()
    start = number * size
    return tuple(sorted(clients[order[place % len(order)]] for place in range(start, start + size)))


def most_rounds(clients: int, size: int, rounds: int) -> int:
    """Rounds of the client that takes part most often: ceil(R min(size, K) / K)."""
    return -(-rounds * min(size, clients) // clients)
