"""Answers to a private round that are given, not computed: good ones, and all kinds of others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fibecfed.core.method import Work
from fibecfed.core.types import ClientId, Failure, Params
from fibecfed.core.wire import encode
from fibecfed.engine.runtime import frame
from fibecfed.engine.transport import InTurn, Ticket
from fibecfed.methods.fedavg import LocalModel

START: Params = {"u": torch.arange(6.0).reshape(2, 3), "w": torch.tensor([0.25])}


@dataclass
class Replies(InTurn):
    """Answers that are given, not computed."""

    replies: Mapping[ClientId, bytes | Failure | Params]
    num_samples: Mapping[ClientId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        reply = self.replies[ticket.client]
        if isinstance(reply, Mapping):
            return frame(encode(LocalModel(dict(reply), self.num_samples.get(ticket.client, 1))), Work(3, 4, 5.0, 6.0))
        return reply


def moved(by: float) -> Params:
    return {name: value + by for name, value in START.items()}


BAD: dict[str, bytes | Failure | Params] = {
    "a million times its update": moved(1e6),
    "NaN": {**moved(0.1), "w": torch.tensor([math.nan])},
    "infinite": {**moved(0.1), "u": torch.full((2, 3), math.inf)},
    "largest floats": {name: torch.full_like(value, 3e38) for name, value in START.items()},
    "other shapes": {**moved(0.1), "w": torch.zeros(2)},
    "a tensor more": {**moved(0.1), "x": torch.zeros(1)},
    "a tensor less": {"u": START["u"] + 1},
    "64 bits": {name: value.double() + 1e300 for name, value in START.items()},
    "integers": {name: value.long() + 2**40 for name, value in START.items()},
    "complex": {name: value + 1e9j for name, value in START.items()},
    "no message": b"\x00" * 100,
    "three bytes": b"abc",
    "nothing": Failure("gone"),
}
