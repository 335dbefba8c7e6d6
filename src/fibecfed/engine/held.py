"""What a run with answers under way keeps beside the clients' states: states that do not count yet, and the requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from ..core.errors import RunFailed
from ..core.types import ClientId, Round
from .schedules import UnderWay
from .states import NOT_CLIENTS, ClientStates

_REQUEST = f"{NOT_CLIENTS}request{NOT_CLIENTS}"  # before the number of a place


class HeldStates:
    """The clients' states, of which those after a training are held until it is said that the time has come.

    `get` gives the one before; what a client computes begins with the newest. What is held is in memory alone: a stopped run computes it
    again.
    """

    def __init__(self, states: ClientStates) -> None:
        self._states = states
        self._held: dict[ClientId, bytes] = {}

    def clients(self) -> list[ClientId]:
        """Every client that has a state of its own, sorted."""
        return self._states.clients()

    def get(self, client: ClientId) -> bytes | None:
        """As `ClientStates.get`, without those held."""
        return self._states.get(client)

    def begin(self, number: int) -> None:
        """As `ClientStates.begin`."""
        self._states.begin(number)

    def before(self, client: ClientId) -> bytes | None:
        """As `ClientStates.before`, where none is held."""
        return self._held[client] if client in self._held else self._states.before(client)

    def put(self, client: ClientId, blob: bytes) -> None:
        """Hold the state of `client`; one that is held already is let go."""
        self.release(client)
        self._held[client] = blob

    def release(self, client: ClientId) -> None:
        """What is held of `client`, if anything, is its state from now on."""
        if client in self._held:
            self._states.put(client, self._held.pop(client))

    def discard(self, client: ClientId) -> None:
        """What is held of `client` never was."""
        self._held.pop(client, None)


class KeptRequests:
    """Requests whose answers are under way at a checkpoint, in the store of the clients' states.

    All clients of a round were sent the same bytes: they lie in one place, which is used again when nobody is at work on them any more.

    Args:
        rows: what `keep` gave in a run that is resumed.
    """

    def __init__(self, states: ClientStates, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self._states = states
        self._rows = list(rows)
        self._places = {Round(*row["round"]): int(row["place"]) for row in rows}

    def restored(self) -> list[UnderWay]:
        """Those of the rows.

        Raises:
            RunFailed: the disk no longer holds what was written.
        """
        found: list[UnderWay] = []
        for row in self._rows:
            blob = self._states.get(f"{_REQUEST}{row['place']}")
            if blob is None:
                raise RunFailed(f"a request that was under way is not in {self._states.folder}; restore it from a backup")
            found += [UnderWay(client, Round(*row["round"]), blob) for client in row["clients"]]
        return found

    def keep(self, requests: Sequence[UnderWay]) -> list[dict[str, Any]]:
        """Keep these and no others; what a checkpoint has to say of them, as JSON values."""
        blobs = {request.now: request.blob for request in requests}
        for now in self._places.keys() - blobs.keys():
            self._states.put(f"{_REQUEST}{self._places.pop(now)}", b"")
        for now in blobs.keys() - self._places.keys():
            self._places[now] = next(place for place in range(len(blobs)) if place not in self._places.values())
            self._states.put(f"{_REQUEST}{self._places[now]}", blobs[now])
        return [
            {"round": astuple(now), "place": self._places[now], "clients": [request.client for request in requests if request.now == now]}
            for now in blobs
        ]
