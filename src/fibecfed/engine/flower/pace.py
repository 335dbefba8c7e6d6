"""How long the messages of a round are on their way between machines: what Flower needs beside the bytes. Needs no Flower itself."""

from __future__ import annotations

from ...core.clock import Network, transfer_seconds

ROUND_TRIPS = 7
"""Requests and answers of Flower that follow one another for a message to a client and its answer [C]: it asks what there is, opens a
second connection with TLS, fetches the parts, two at a time, and sends those of the answer likewise. Counted in flwr 1.41, and what
`make test-network` measures."""

ASKS_EVERY_S = 3.0
"""Seconds between two questions of a SuperNode whether there is a message."""


def network_seconds(down: int, up: int, network: Network) -> float:
    """Seconds on the way of one message and its answer, beyond those on a network without delay or limit.

    Args:
        down, up: bytes to the client and from it.
        network: its rates and its delay; how fast clients compute is not used.
    """
    bytes_alone = transfer_seconds(down, network.down_mbit, 0.0) + transfer_seconds(up, network.up_mbit, 0.0)
    return bytes_alone + ROUND_TRIPS * 2 * network.latency_ms / 1e3
