"""Which layers FibecFed shares, decided as training goes on by how far clients agree on each [C].

Every layer is shared at first. One that is better kept by each client (`local.agreement.stays`) leaves, and does not come back: the
clients' copies go apart from then on, so that their updates no longer say how alike they would be. The server still holds a mean of it: it
is sent down in every round for clients without a copy of their own, and made anew every few rounds (means.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import Folding, Received
from ..core.types import Params, Round
from ..local.agreement import UpdateDirections, reliability, stays
from .options import FibecFedOptions

HALVES = "layers"
"""The one entry of an answer's `halves`."""


@dataclass(frozen=True)
class Agreement:
    """The rule, and where the run stands.

    Attributes:
        num_rounds, num_clients: T and K.
        head: whether it decides on the head too.
        after: rounds before a layer may leave.
        momentum: weight of earlier rounds.
    """

    num_rounds: int
    num_clients: int
    head: bool
    after: int
    momentum: float

    def start(self, num_layers: int) -> dict[str, Tensor]:
        """What the server remembers, of each layer and the head: sum and number of the cosines "between" clients and "within" one,
        discounted; and after how many rounds it "left", -1 = not."""
        sums = {name: torch.zeros(num_layers + 1, 2, dtype=torch.float64) for name in ("between", "within")}
        return {**sums, "left": torch.full((num_layers + 1,), -1)}

    def outlook(self, server: Any, now: Round) -> tuple[Any, ...]:
        """States that bound the sizes of a round's messages, given the one at the start: from `after` on anything may have left."""
        if now.phase == "tune" and now.index < self.after:
            return (server,)
        return (replace(server, layers=(), shares_head=not self.head), server)

    def directions(self, server: Any, sent: Params) -> UpdateDirections:
        """Of a round's answers, beside what was sent."""
        num_layers = len(server.importance)
        places = {name: num_layers if layer < 0 else layer for name, layer in zip(sorted(server.params), server.tensor_layers, strict=True)}
        return UpdateDirections(sent, places, num_layers + 1)

    def step(self, server: Any, after: Any, sent: Params, received: Sequence[Received[Any]], now: Round) -> Any:
        """The state `after` a round's aggregation, given the one before, with what the answers tell."""
        directions, halves = self.directions(server, sent), torch.zeros_like(server.agreement["within"])
        for one in received:
            directions.add(one.message.shared)
            halves = halves + one.message.halves[HALVES]
        return self.decided(after, directions.between(), halves, now)

    def decided(self, server: Any, between: Tensor, within: Tensor, now: Round) -> Any:
        """The state with a round's sums over pairs of clients and over clients, and without the layers that leave."""
        known = server.agreement
        sums = {name: self.momentum * known[name] + new for name, new in (("between", between), ("within", within))}
        left = known["left"].clone()
        if self.after <= now.index + 1 < self.num_rounds:
            shared = torch.zeros(len(left), dtype=torch.bool)
            shared[list(server.layers)] = True
            shared[-1] = self.head and server.shares_head
            seen = (sums["between"][:, 1] > 0) & (sums["within"][:, 1] > 0)
            c, r = cosines(sums["between"]), reliability(cosines(sums["within"]))
            left[shared & seen & stays(c, r, self.num_clients)] = now.index + 1
        gone = left >= 0
        layers = tuple(layer for layer in server.layers if not gone[layer])
        return replace(server, layers=layers, shares_head=server.shares_head and not bool(gone[-1]), agreement={**sums, "left": left})

    def summary(self, server: Any) -> Mapping[str, Any]:
        """The correlations, and after which round a layer left."""
        known = server.agreement
        found = {"agreement_between": cosines(known["between"]), "agreement_within": reliability(cosines(known["within"]))}
        left = {"head" if place == len(known["left"]) - 1 else str(place): int(n) for place, n in enumerate(known["left"]) if n >= 0}
        return {**{name: [round(float(x), 4) for x in value] for name, value in found.items()}, "left_after_round": left}


class FoldedAgreement:
    """As `Agreement.step`, of answers that come one after the other; `inner` folds their tensors."""

    def __init__(self, rule: Agreement, server: Any, sent: Params, inner: Folding[Any, Any], now: Round) -> None:
        self._rule, self._inner, self._now = rule, inner, now
        self._directions = rule.directions(server, sent)
        self._halves = torch.zeros_like(server.agreement["within"])

    def add(self, received: Received[Any], /) -> None:
        """The next answer."""
        self._inner.add(received)
        self._directions.add(received.message.shared)
        self._halves = self._halves + received.message.halves[HALVES]

    def state(self) -> Any:
        """The state after the round."""
        return self._rule.decided(self._inner.state(), self._directions.between(), self._halves, self._now)


def cosines(sums: Tensor) -> Tensor:
    """Mean of each row's first number over its second; 0 where there is none."""
    return torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1].clamp(min=1e-300), torch.zeros_like(sums[:, 0]))


def agreement_of(options: FibecFedOptions, num_rounds: int, num_clients: int) -> Agreement | None:
    """The part that `method.layers.rule` = "agreement" asks for."""
    if options.layers.rule != "agreement":
        return None
    after = math.ceil(0.2 * num_rounds - 1e-9) if options.layers.after is None else options.layers.after
    return Agreement(num_rounds, num_clients, options.head == "agreement", max(1, after), options.layers.momentum)
