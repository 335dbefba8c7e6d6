"""What is sent to each client of an exchange, encoded when it is its turn: a thousand clients are not a thousand messages in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..core.method import Phase
from ..core.types import ClientId
from ..core.wire import encode, payload_bytes

V = TypeVar("V")


class OnDemand(Mapping[ClientId, V]):
    """A value for each client, made whenever it is asked for, and not kept."""

    def __init__(self, clients: Sequence[ClientId], make: Callable[[ClientId], V]) -> None:
        self._clients = dict.fromkeys(clients)
        self._make = make

    def __getitem__(self, client: ClientId) -> V:
        if client not in self._clients:
            raise KeyError(client)
        return self._make(client)

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


class Requests(OnDemand[bytes]):
    """The encoded message to each client; encoded once where everybody gets the same.

    Attributes:
        common: that message; None where each client gets one of its own.
    """

    def __init__(self, phase: Phase[Any, Any, Any, Any], server: Any, broadcast: Any, clients: Sequence[ClientId]) -> None:
        super().__init__(clients, self._encoded)
        self._fields: dict[ClientId, Mapping[str, int]] = {}
        self._message: Callable[[ClientId], Any] | None = None
        self.common: bytes | None = None
        if phase.address is None:
            self.common = encode(broadcast)
            self._fields = dict.fromkeys(clients, payload_bytes(broadcast, len(self.common)))
        else:
            address = phase.address
            self._message = lambda client: address(server, broadcast, client)

    def _encoded(self, client: ClientId) -> bytes:
        if self._message is None:
            assert self.common is not None
            return self.common
        message = self._message(client)
        blob = encode(message)
        self._fields[client] = payload_bytes(message, len(blob))
        return blob

    def fields(self) -> dict[ClientId, Mapping[str, int]]:
        """Bytes by message field, by client; of the messages that no transport has asked for too."""
        for client in self:
            if client not in self._fields:
                self[client]
        return {client: self._fields[client] for client in self}

    def sizes(self) -> dict[ClientId, int]:
        """Bytes of each client's message."""
        return {client: sum(table.values()) for client, table in self.fields().items()}


def total_bytes(requests: Mapping[ClientId, bytes]) -> int:
    """Bytes of all messages together."""
    return sum(requests.sizes().values() if isinstance(requests, Requests) else map(len, requests.values()))
