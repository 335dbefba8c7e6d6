"""Seconds that a round would take on a given network, from its bytes and its clients' compute seconds. Applied after the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .errors import UserError
from .records import RoundRecord

CLOCKS = ("wall", "cpu", "cuda", "mps")
"""Kinds of clock: that of the wall, CPU seconds, and that of the wall around a device which has finished what it was given. The
first is that of version 0.1; their order is that of the numbers on the wire."""

VIRTUAL = "virtual"
"""The clock of a run whose time is modelled: no measured seconds, and none of the clocks above."""

_IN_WORDS = {
    "wall": "wall clock, times the fraction of it in which the process had a CPU",
    "cpu": "CPU seconds",
    "cuda": "wall clock until the GPU was done",
    "mps": "wall clock until the GPU was done",
    VIRTUAL: "virtual time: counted work at the speed of each client (federation.speeds)",
}


def joined(kinds: Iterable[str]) -> str:
    """The clock of several: one of `CLOCKS`, or more with "+" between them where they differ.

    >>> joined(["cuda", "cpu", "cpu"])
    'cpu+cuda'
    """
    found = {part for kind in kinds for part in kind.split("+")}
    return "+".join(sorted(found)) or CLOCKS[0]


def clock_in_words(kind: str) -> str:
    """For a reader of a report; `kind` as `joined` makes it."""
    return ", or ".join(dict.fromkeys(_IN_WORDS.get(part, part) for part in kind.split("+")))


@dataclass(frozen=True)
class Network:
    """The link of each client to the server, and how fast its machine is.

    Every client has a link of its own; the server's is never the bottleneck [C].

    Attributes:
        up_mbit, down_mbit: bandwidth from and to a client, 10^6 bits per second.
        latency_ms: delay of one message, in one direction.
        client_speed: how many times as fast as the machine of the run a client computes.
        tokens_per_s: tokens that a client takes through one transformer block a second, forward or backward alike: its computing is then
            modelled from counted work, the same on every machine. None: as measured.
    """

    up_mbit: float = 10.0
    down_mbit: float = 50.0
    latency_ms: float = 30.0
    client_speed: float = 1.0
    tokens_per_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("up_mbit", "down_mbit", "client_speed", "tokens_per_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"--{name.replace('_', '-')}: got {value}, expected a number above 0")
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise UserError(f"--latency-ms: got {self.latency_ms}, expected a number of at least 0")

    def describe(self) -> str:
        """In words: "10 Mbit/s up, 50 Mbit/s down, 30 ms per message, clients as fast as the machine of the runs"."""
        speed = "as fast as" if self.client_speed == 1 else f"{self.client_speed:g} times as fast as"
        links = f"{self.up_mbit:g} Mbit/s up, {self.down_mbit:g} Mbit/s down, {self.latency_ms:g} ms per message"
        if self.tokens_per_s is not None:
            return f"{links}, {self.tokens_per_s * self.client_speed:g} tokens per second through a transformer block"
        return f"{links}, clients {speed} the machine of the runs"


_ELSEWHERE = 0.05
"""A process that has less than this fraction of the CPU does not compute its clients itself: they do elsewhere."""


def processor_share(record: RoundRecord) -> float:
    """Fraction of a round's wall clock in which its process really had a CPU, at most 1: for clients' seconds that are wall clock.

    `cpu_s / seconds`: other processes on the machine stretch what such a client measures, some methods' rounds more than others'. 1 where
    nothing was recorded, where several threads computed, and where clients computed elsewhere: their seconds together exceed the round's,
    or this process hardly worked.
    """
    if record.cpu_s <= 0 or record.seconds <= 0 or sum(record.compute_s.values()) > 1.01 * record.seconds:
        return 1.0
    share = record.cpu_s / record.seconds
    return min(1.0, share) if share >= _ELSEWHERE else 1.0


def round_seconds(record: RoundRecord, network: Network, *, device: str = "cpu", threads: int = 1) -> float:
    """Modelled seconds of a round: max over its cohort of down + compute + up, since clients work in parallel.

    A direction takes latency + 8 bytes / bandwidth; nothing is added for a direction in which no message went. Compute is `compute_seconds`
    over `client_speed`. A cohort of which too few answered comes before the next one, so its seconds are added, without compute, which is
    not known of it.

    Args:
        device, threads: as for `compute_seconds`.

    Raises:
        UserError: counted work is asked for, and the record has none.
    """
    down, up, seconds = Counter(record.bytes_down), Counter(record.bytes_up), 0.0
    for attempt in record.attempts:
        down.subtract(attempt.bytes_down)
        up.subtract(attempt.bytes_up)
        seconds += _slowest(attempt.cohort, attempt.bytes_down, attempt.bytes_up, {}, network)
    return seconds + _slowest(
        record.cohort, down, up, compute_seconds(record, network.tokens_per_s, device=device, threads=threads), network
    )


def compute_seconds(record: RoundRecord, tokens_per_s: float | None, *, device: str, threads: int) -> dict[str, float]:
    """Each client's computing: CPU seconds of all its threads, over their number; on an accelerator wall clock; of records of version 0.1
    wall clock times `processor_share`.

    Args:
        tokens_per_s: instead, its counted work at this speed.
        device: what the clients computed on. An accelerator works while the process waits for it, so its seconds count in full.
        threads: CPU threads of a client.
    """
    if tokens_per_s is not None:
        if any(record.steps.values()) and not any("token_blocks" in notes for notes in record.notes.values()):
            raise UserError(
                f"--tokens-per-s: got records of {record.phase} round {record.index} without counted work, which version 0.1 and "
                "federations across machines do not write; leave it out"
            )
        return {client: sum(notes.get("token_blocks", ())) / tokens_per_s for client, notes in record.notes.items()}
    if record.compute_clock == "cpu":
        share = 1.0 / threads
    else:
        share = processor_share(record) if (device, record.compute_clock) == ("cpu", "wall") else 1.0
    return {client: measured * share for client, measured in record.compute_s.items()}


def _slowest(
    cohort: Sequence[str], down: Mapping[str, int], up: Mapping[str, int], compute_s: Mapping[str, float], network: Network
) -> float:
    seconds = (
        transfer_seconds(down.get(client, 0), network.down_mbit, network.latency_ms)
        + compute_s.get(client, 0.0) / network.client_speed
        + transfer_seconds(up.get(client, 0), network.up_mbit, network.latency_ms)
        for client in cohort
    )
    return max(seconds, default=0.0)


def transfer_seconds(size: int, mbit: float, latency_ms: float) -> float:
    """Of a message of `size` bytes in one direction; 0 where none went."""
    return latency_ms / 1e3 + 8 * size / (mbit * 1e6) if size else 0.0
