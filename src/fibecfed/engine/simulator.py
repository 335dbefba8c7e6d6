"""All clients in one process: the transport that moves bytes from one end of a table to the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from ..core.types import ClientId, Failure, Round
from .client import ClientRuntime, NotFinite

Action = Literal["train", "evaluate"]


class Transport(Protocol):
    """Carries bytes; knows neither models nor mathematics."""

    def exchange(self, action: Action, now: Round, requests: Mapping[ClientId, bytes]) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """Send each client its bytes; yield each reply, or why there is none, in any order."""
        ...

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """What the clients of the last exchange wrote down about themselves; empty where it stays with them."""
        ...


class Simulator:
    """Asks one resident `ClientRuntime` for every client in turn."""

    def __init__(self, runtime: ClientRuntime) -> None:
        self.runtime = runtime
        self._notes: dict[ClientId, Mapping[str, Any]] = {}

    def exchange(self, action: Action, now: Round, requests: Mapping[ClientId, bytes]) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """Replies in the order of the requests."""
        self._notes = {}
        for client, blob in requests.items():
            if action == "evaluate":
                yield client, self.runtime.evaluate(client, blob, now)
                continue
            try:
                reply, notes = self.runtime.train(client, blob, now)
            except NotFinite as error:
                yield client, Failure(str(error))
                continue
            if notes:
                self._notes[client] = notes
            yield client, reply

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        """Notes of the clients that trained in the last exchange."""
        return self._notes
