"""A client manager whose clients send back what they get, and worker processes on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fibecfed.core.types import ClientData, ClientId, Failure, Round
from fibecfed.engine.transport import exchange
from fibecfed.engine.workers import Workers

CLIENTS = tuple(str(number) for number in range(6))
NOW = Round("tune", 0, 3, 0)
BLOBS = {client: b"to " + client.encode() for client in CLIENTS}
WHATEVER: Callable[[ClientId, bytes], Any] = lambda client, blob: None  # noqa: E731


class Store:
    """States in a table."""

    def __init__(self) -> None:
        self.blobs: dict[ClientId, bytes] = {}

    def get(self, client: ClientId) -> bytes | None:
        return self.blobs.get(client)

    before = get

    def put(self, client: ClientId, blob: bytes) -> None:
        self.blobs[client] = blob

    def begin(self, number: int) -> None:
        pass


class Echo:
    """In place of a `ClientRuntime`: answers with the request, the client's state and the round; a state counts the rounds of a client."""

    def __init__(self, does: Callable[[ClientId, bytes], Any] = WHATEVER) -> None:
        self.states: Any = Store()
        self.does = does
        self.parent = os.getpid()

    def data(self, client: ClientId) -> ClientData:
        size: Any = range(int(client))
        return ClientData(size, size, size)

    def train(self, client: ClientId, blob: bytes, now: Round) -> tuple[bytes, dict[str, Any]]:
        before = self.states.before(client) or b""
        self.does(client, blob)
        self.states.put(client, before + b"x")
        return b"%b after %b" % (blob, before), {"n": int(client)}

    def evaluate(self, action: str, client: ClientId, blob: bytes, now: Round) -> bytes:
        self.does(client, blob)
        return b"%b of %b" % (action.encode(), self.states.get(client) or b"")


@contextlib.contextmanager
def started(echo: Echo, most: int = 2, at_once: bool = True) -> Iterator[Workers]:
    transport = Workers(echo, most, at_once=at_once)  # pyright: ignore[reportArgumentType]
    with contextlib.closing(transport):
        yield transport


def asked(transport: Any, action: Any = "train", now: Round = NOW) -> list[tuple[ClientId, bytes | Failure]]:
    return list(exchange(transport, action, now, BLOBS))


EXPECTED = [(client, blob + b" after ") for client, blob in BLOBS.items()]


def once(mark: Path) -> bool:
    """Whether this is the first time, over all processes."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
