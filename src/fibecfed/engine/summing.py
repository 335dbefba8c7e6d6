"""Rounds of which the server uses a sum alone, and how that sum is had: added as it arrives, or by a protocol that never shows a term."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ..core.errors import RunFailed
from ..core.method import Phase
from ..core.types import ClientId, Failure, Params, Round
from ..core.wire import WireError, payload_bytes
from ..privacy.cohorts import Cohorts
from ..privacy.fixed import Adding, Words
from .checks import OVERHEAD_BYTES
from .failures import STOPS, printable
from .gathering import USABLE
from .requests import Requests
from .summands import summand_bytes, words_of
from .transport import Transport, exchange


@dataclass(frozen=True)
class SumRequest:
    """What the clients of a round are asked.

    Attributes:
        server: its state.
        broadcast: as it is sent.
        sent: its tensors that answers are compared with.
        cohort: the clients.
        on_failure: "stop" ends the run where one of them fails; nothing may have been unmasked then, since who takes part again helps
            with the same sum alone.
    """

    server: Any
    broadcast: Any
    sent: Params
    cohort: tuple[ClientId, ...]
    on_failure: Literal["stop", "drop"]

    def reject(self, failures: Mapping[ClientId, str], now: Round) -> None:
        """Look at failures.

        Raises:
            RunFailed: there is one where none may be.
        """
        if failures and self.on_failure == "stop":
            raise RunFailed(f"{now.phase} round {now.index}: {printable(failures[min(failures)])}. {STOPS}")


@dataclass(frozen=True)
class Sum:
    """The sum of a round's answers.

    Attributes:
        total: of the words; without a meaning where too few answered.
        clients: whose answers are in it, sorted.
        failures: why others are not.
        bytes_down, bytes_up: of the whole exchange, by client.
        summands: how many came, of clients that were lost afterwards too.
        helper: bytes to and from the helper, who is no client; empty where there is none.
    """

    total: Words
    clients: tuple[ClientId, ...]
    failures: Mapping[ClientId, str]
    bytes_down: Mapping[ClientId, int]
    bytes_up: Mapping[ClientId, int]
    summands: int
    helper: Mapping[str, int] = field(default_factory=dict[str, int])

    def fields(self, asked: SumRequest) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes down and up by message field, over the cohort."""
        sizes = payload_bytes(asked.broadcast, 0)
        down = {field: size * len(asked.cohort) for field, size in sizes.items() if field != "overhead"}
        up = {"sum": self.total.nbytes * self.summands}
        for found, every in ((down, self.bytes_down), (up, self.bytes_up)):
            found["overhead"] = sum(every.values()) - sum(found.values())
        return down, up


class Summing(Protocol):
    """How a sum is had."""

    def __call__(
        self, phase: Phase[Any, Any, Any, Any], transport: Transport, now: Round, asked: SumRequest, timeout_s: float | None, /
    ) -> Sum:
        """Ask the clients, and add what they answer.

        Raises:
            RunFailed: no sum may be had.
        """
        ...


class ClientSums(Protocol):
    """A client's part of such sums.

    Attributes:
        adding: how its answer becomes words.
        actions: that it answers.
    """

    @property
    def adding(self) -> Adding: ...

    @property
    def actions(self) -> tuple[str, ...]: ...

    def answer(
        self, action: str, run: str, now: Round, payload: bytes, folder: Path, start: Callable[[], str], train: Callable[[bytes], bytes]
    ) -> bytes:
        """The reply to an action of a sum.

        Args:
            folder: the client's, of this run.
            start: a checksum of the tensors that the run started from, which the server may have sent.
            train: makes the client's `Summand` of a broadcast.
        """
        ...


@dataclass(frozen=True)
class SumPool:
    """How a run's answers are summed.

    Attributes:
        adding: how an answer becomes words.
        cohorts: how many a sum needs.
        summing: how the sum is had.
    """

    adding: Adding
    cohorts: Cohorts
    summing: Summing

    def sum_of(
        self,
        phase: Phase[Any, Any, Any, Any],
        transport: Transport,
        now: Round,
        asked: SumRequest,
        timeout_s: float | None,
    ) -> Sum:
        """A sum that may be used.

        Raises:
            RunFailed: it is of too few clients, or one failed where none may.
        """
        got = self.summing(phase, transport, now, asked, timeout_s)
        asked.reject(got.failures, now)
        if len(got.clients) < self.cohorts.least:
            first = next((printable(got.failures[client]) for client in sorted(got.failures)), "")
            raise RunFailed(
                f"{now.phase} round {now.index}: {len(got.clients)} of {len(asked.cohort)} clients gave an answer that can be summed, "
                f"expected at least {self.cohorts.least} (privacy.dropouts); the first that did not: {first}. {USABLE}"
            )
        return got


@dataclass(frozen=True)
class Unmasked:
    """Adds answers as they are: the simulator's way. The server could look at each; here server and clients are one process."""

    adding: Adding

    def __call__(
        self, phase: Phase[Any, Any, Any, Any], transport: Transport, now: Round, asked: SumRequest, timeout_s: float | None, /
    ) -> Sum:
        """As `Summing`."""
        requests = Requests(phase, asked.server, asked.broadcast, asked.cohort)
        length = self.adding.length(asked.sent)
        total: Words = np.zeros(length, self.adding.dtype)
        up, failures = dict[ClientId, int](), dict[ClientId, str]()
        longest = summand_bytes(self.adding, asked.sent) + OVERHEAD_BYTES
        for client, reply in exchange(transport, "train", now, requests, timeout_s, longest):
            if isinstance(reply, Failure):
                failures[client] = reply.reason
                continue
            try:
                total += words_of(reply, self.adding, length)
                up[client] = len(reply)
            except WireError as error:
                failures[client] = f"client {client}, {now.phase} round {now.index}: {error}"
        failures |= {client: f"client {client}: no answer" for client in asked.cohort if client not in up and client not in failures}
        return Sum(total, tuple(sorted(up)), failures, requests.sizes(), up, len(up))


def unmasked(adding: Adding, cohorts: Cohorts) -> SumPool:
    """A pool that adds answers as they are."""
    return SumPool(adding, cohorts, Unmasked(adding))
