"""In-process transport: runs all clients one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from ..core.types import ClientId, Failure, Round
from .client import ClientRuntime, NotFinite

Action = Literal["train", "evaluate", "evaluate_both", "evaluate_global"]
"""What a client is asked for: to train; or to count, for its own model, for that and the global one, or for the global one alone."""


class Transport(Protocol):
    """Carries bytes; knows neither models nor mathematics."""

    def exchange(
        self,
        action: Action,
        now: Round,
        requests: Mapping[ClientId, bytes],
        timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """Send each client its bytes; yield its reply, or why there is none, at most once for each client and in any order.

        Args:
            requests: may make the bytes of each client when they are asked for; take a few at a time.
            timeout_s: a client that has not answered so many seconds later has failed. None: wait until each has answered or failed.
            max_bytes: a longer reply need not be taken in; the loop rejects it in any case.
        """
        ...

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """What the clients of the last exchange wrote down about themselves; empty where it stays with them."""
        ...


class Simulator:
    """Asks one resident `ClientRuntime` for every client in turn."""

    def __init__(self, runtime: ClientRuntime) -> None:
        self.runtime = runtime
        self._notes: dict[ClientId, Mapping[str, Any]] = {}

    def exchange(
        self,
        action: Action,
        now: Round,
        requests: Mapping[ClientId, bytes],
        timeout_s: float | None = None,
        max_bytes: int | None = None,
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """Replies in the order of the requests. Nobody is late here: clients compute one after the other, in this process."""
        self._notes = {}
        for client, blob in requests.items():
            try:
                if action == "train":
                    reply, notes = self.runtime.train(client, blob, now)
                else:
                    reply, notes = self.runtime.evaluate(action, client, blob, now), {}
            except NotFinite as error:
                yield client, Failure(str(error), repeats=True)
                continue
            if notes:
                self._notes[client] = notes
            yield client, reply

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """Notes of the clients that trained in the last exchange."""
        return self._notes
