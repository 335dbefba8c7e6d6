"""How long the messages of a round are on their way between machines: what Flower needs beside the bytes. Needs no Flower itself.

What a SuperNode does for a message, counted in flwr 1.41 and seen by `make test-network`: it asks what there is, fetches the parts over two
connections, confirms them, announces its answer, sends the parts, and asks again, in vain. The message's bytes are one part of six, or
more of 4 MiB; the others are small, and wait behind it on the link.
"""

from __future__ import annotations

import numpy as np

from ...core.clock import Network
from .tcp import transfer_draws

ASKING_TRIPS = 4
"""Round trips without a part: two questions, the confirmation, the announcement."""

PARTS_TRIPS = 3
"""Round trips of the parts, there and again back: the message's bytes, with one other beside them, and then four, two at a time."""

ASKS_EVERY_S = 3.0
"""Seconds between two questions of a SuperNode whether there is a message."""

START_S = 2.0
"""Seconds [C] in which Flower starts the process for a message while the message is still fetched: what passes then costs no more time,
since a round without any delay or limit takes these seconds too."""

FLOWER_S = 2 * ASKS_EVERY_S
"""About what Flower takes of a round without any delay or limit [C]: the rest between two questions, starting processes, and asking
whether they are done."""

RESENT_S = 0.2
"""A request or an answer that is lost is sent again after two round trips and this (RFC 8985, 7.2)."""

CONNECTIONS, PART = 2, 4 * 2**20
"""Flower's connections for parts, and the bytes of a part (see `relay`)."""

FIRST_RETRY_S, LAST_RETRY_S, JITTER = 1.0, 10.0, 0.2
"""The server's app takes an answer as soon as it is announced. While a part has not come it waits before it asks for it again: 1 s, then
twice as long each time, at most 10 s, each by chance up to a fifth more or less."""

RETRIES = 50
"""Of these times that are drawn; answers that take longer are waited for half of the last one too long."""

DRAWS = 600
"""Clients' parts of rounds that are drawn where segments are lost; at least 40 rounds."""


def network_seconds(down: int, up: int, network: Network, loss: float = 0.0, clients: int = 1, start_s: float = START_S) -> float:
    """Seconds on the way of one message and its answer, beyond those on a network without delay or limit.

    Args:
        down, up: bytes to the client and from it.
        network: its rates and its delay; how fast clients compute is not used.
        loss: fraction of the frames that is lost, in each direction; the mean over drawn losses, always the same ones.
        clients: how many are asked at once, each over a link of its own; the round waits for the last.
        start_s: as `START_S`, on these machines.
    """
    draws, trip = np.random.default_rng(0), 2 * network.latency_ms / 1e3
    shape = (max(40, DRAWS // clients), clients) if loss else (1, 1)

    def parts(size: int, mbit: float) -> np.ndarray:
        together = min(CONNECTIONS, max(1, -(-size // PART)))
        drawn = transfer_draws(-(-size // together), mbit / together, trip, loss, draws, shape[0] * shape[1])
        return drawn.reshape(shape) + PARTS_TRIPS * trip

    fetched, sent = parts(down, network.down_mbit), parts(up, network.up_mbit)
    small = 2 * (ASKING_TRIPS + 2 * PARTS_TRIPS)  # a request and an answer each
    resent = draws.binomial(small, loss, shape) * (2 * trip + RESENT_S)
    seconds = np.maximum(fetched - start_s, 0.0) + sent + ASKING_TRIPS * trip + resent
    there, taken = seconds.max(axis=1), (seconds + _too_long(sent, draws if loss else None)).max(axis=1)
    period = ASKS_EVERY_S + trip  # a SuperNode asks in vain until the server's next message is there
    return float((there + period * np.floor((taken - there) / period)).mean())


def _too_long(sent: np.ndarray, draws: np.random.Generator | None) -> np.ndarray:
    """Seconds that the server goes on waiting for an answer that has come.

    Args:
        sent: how long after its announcement it had come.
        draws: of the times between two questions; None: no chance.
    """
    waits = np.minimum(FIRST_RETRY_S * 2.0 ** np.arange(RETRIES), LAST_RETRY_S)
    times = np.cumsum(np.broadcast_to(waits, (*sent.shape, RETRIES)) if draws is None else waits * _jitter(draws, sent.shape), axis=-1)
    later = np.where(times >= sent[..., None], times - sent[..., None], np.inf).min(axis=-1)
    return np.where(np.isfinite(later), later, LAST_RETRY_S / 2)


def _jitter(draws: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return draws.uniform(1 - JITTER, 1 + JITTER, (*shape, RETRIES))
