"""A method without a model, for tests of the engine: every client adds its number of examples to one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fibecfed.core.method import ClientView, Phase, Received, Update, Work
from fibecfed.core.rng import Key
from fibecfed.core.types import ClientId, Failure, Params, Round
from fibecfed.core.wire import Tensors, encode, message
from fibecfed.engine.runtime import frame
from fibecfed.engine.transport import InTurn, Ticket


@message
class Number:
    """A tensor, as the server's state, and as what it sends."""

    shared: Tensors


@message
class Reply:
    """A tensor and a weight."""

    shared: Tensors
    num_samples: int


@message
class Count:
    """How often a client took part."""

    times: int


@dataclass(frozen=True)
class Toy:
    """`before` rounds of a phase with a fixed cohort, then `rounds` sampled ones."""

    rounds: int = 3
    before: int = 0
    fixed: int = 2

    server_state = Number
    client_state = Count
    is_personal = False

    @property
    def phases(self) -> tuple[Phase[Number, Count, Any, Any], ...]:
        tune = Phase("tune", self.rounds, "sampled", Number, Reply, _broadcast, _update, _mean)
        first = Phase("first", self.before, self.fixed, Number, Reply, _broadcast, _update, _mean)
        return (first, tune) if self.before else (tune,)

    def init(self, task: Any, key: Key) -> Number:
        return Number({"w": torch.zeros(3)})

    def init_client(self, task: Any, client: ClientId, key: Key) -> Count:
        return Count(0)

    def personalise(self, message: Number, state: Count) -> Params:
        return message.shared

    def server_params(self, server: Number) -> Params:
        return server.shared

    def summary(self, server: Number) -> Mapping[str, Any]:
        return {}


def _broadcast(server: Number, now: Round) -> Number:
    return server


def _update(client: ClientView[Count], down: Number, now: Round) -> Update[Count, Reply]:
    n = len(client.data.train)
    return Update(Reply({"w": down.shared["w"] + n}, n), Count(client.state.times + 1), Work(1, n, 0.5), {"n": n})


def _mean(server: Number, received: Sequence[Received[Reply]], now: Round) -> Number:
    total = sum(r.message.num_samples for r in received)
    return Number({"w": sum(r.message.shared["w"] * r.message.num_samples for r in received) / total})  # pyright: ignore[reportArgumentType]


class Scripted(InTurn):
    """A transport whose clients answer with what a table says, and with client's number where it says nothing."""

    def __init__(self, script: Mapping[tuple[ClientId, int], Any]) -> None:
        super().__init__()
        self.script = script

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        found = self.script.get((ticket.client, ticket.now.number), float(int(ticket.client) + 1))
        return numbered(found) if isinstance(found, float) else found


def numbered(value: float) -> bytes:
    """The reply of a client that answers with a number."""
    return frame(encode(Reply({"w": torch.full((3,), value)}, 1)), Work(2, 4, 0.25, 0.1))
