"""Small federations for tests: the loop around a method, without a configuration or a folder of a run."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.method import ClientView
from ..core.rng import Key
from ..core.types import ClientId, Failure, Round
from ..core.wire import decode
from ..data.federated import FederatedData
from ..engine.loop import Step, run
from ..engine.runtime import ClientRuntime
from ..engine.simulator import Simulator
from ..engine.states import ClientStates, OnServer
from ..engine.transport import Action, Answer, Ticket, Transport

KEY = Key(7)
"""What everything random in these federations is drawn from."""


class Around:
    """A transport around another one; a class to inherit from, which hands everything on as it is."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        return self.inner.send(action, now, requests, timeout_s, max_bytes)

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        return self.inner.receive(tickets)

    def drop(self, tickets: Collection[Ticket]) -> Mapping[ClientId, int]:
        return self.inner.drop(tickets)

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        return self.inner.notes()


class Spy(Around):
    """A transport that remembers what it carried, as (client, action, round, bytes down, bytes up)."""

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.carried: list[tuple[ClientId, Action, Round, bytes, bytes | Failure]] = []
        self._sent: dict[Ticket, tuple[Action, Mapping[ClientId, bytes]]] = {}

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        tickets = super().send(action, now, requests, timeout_s, max_bytes)
        self._sent.update(dict.fromkeys(tickets, (action, requests)))
        return tickets

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        for answer in super().receive(tickets):
            client, now = answer.ticket.client, answer.ticket.now
            action, requests = self._sent.pop(answer.ticket)
            self.carried.append((client, action, now, requests[client], answer.reply))
            yield answer


class Shuffled(Around):
    """A transport that asks in an order of its own, and whose replies come in another one."""

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        asked = list(requests)
        order = KEY.fold("shuffle", now.number).permutation(len(asked)).tolist()
        return super().send(action, now, {asked[i]: requests[asked[i]] for i in order}, timeout_s, max_bytes)

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        yield from reversed(list(super().receive(tickets)))


@dataclass
class Federation:
    """A method at work on clients in this process."""

    method: Any
    task: Any
    data: FederatedData
    states: ClientStates
    runtime: ClientRuntime
    transport: Any
    per_round: int
    server: Any
    folder: tempfile.TemporaryDirectory[str]  # goes with the federation

    def run(self, start: int = 0, **options: Any) -> Iterator[Step]:
        steps = run(
            self.method,
            self.transport,
            self.data.clients,
            per_round=self.per_round,
            key=KEY.fold("run"),
            server=self.server,
            start=start,
            **{"kept": OnServer(self.states), **options},
        )
        for step in steps:
            self.server = step.server
            yield step

    def finish(self, **options: Any) -> list[Step]:
        return list(self.run(**options))

    def kept(self) -> dict[ClientId, bytes]:
        """What the server keeps of clients."""
        return {client: blob for client in self.data.clients if (blob := OnServer(self.states).get(client)) is not None}

    def state(self, client: ClientId) -> Any:
        blob = self.states.get(client)
        return None if blob is None else decode(self.method.client_state, blob)


def federation(
    method: Any,
    task: Any,
    data: FederatedData,
    *,
    per_round: int = 2,
    wrap: Callable[[Any], Any] = Spy,
    states: Mapping[ClientId, bytes] | None = None,
    kept: Mapping[ClientId, bytes] | None = None,
    server: Any = None,
) -> Federation:
    """A federation at its start, or where `states`, what the server has `kept` of clients, and `server` say."""
    folder = tempfile.TemporaryDirectory(prefix="fibecfed-test-")
    store = ClientStates(Path(folder.name), 2**30, repeatable=True)
    for place, blobs in ((store, states), (OnServer(store), kept)):
        for client, blob in (blobs or {}).items():
            place.put(client, blob)
    runtime = ClientRuntime(method, task, data.client, store, KEY.fold("run"), 64)
    first = method.init(task, KEY.fold("run", "init")) if server is None else server
    return Federation(method, task, data, store, runtime, wrap(Simulator(runtime)), per_round, first, folder)


def client_view(world: Federation, client: ClientId, number: int = 0, state: Any = None) -> ClientView[Any]:
    """What the method sees of a client in round `number`."""
    key = KEY.fold("run", "client", client, "round", number)
    state = state or world.state(client) or world.method.init_client(world.task, client, KEY.fold("run", "init"))
    return ClientView(client, world.task, world.data.client(client), state, key)


def in_double(task: Any) -> Any:
    """An adapted model's copy in float64."""
    return type(task)(copy.deepcopy(task.model).double(), objective=task.objective)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
