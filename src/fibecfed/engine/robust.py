"""Means of updates that a minority of clients cannot move far, whatever it sends.

x_i is what client i sent minus what it had been sent; every client counts the same, since a client says itself how many examples it has.

- median, trimmed mean: of each number on its own. Yin et al., ICML 2018.
- centred clipping: v + mean over i of (x_i - v) min(1, tau / ||x_i - v||), a few times, from v = the median. Karimireddy et al., ICML 2021,
  who begin at the last round's result and give tau; here it is the median of the distances, so that there is nothing to set [C].

The medians of LoRA's factors A and B are not the median of their product; with a frozen A (ffa-lora) they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.method import Method, Phase, Received
from ..core.types import ClientId, Round
from .gathering import aggregating, answers_of, check_finite
from .options import FederationOptions, RobustMean
from .pooled import instead_of, why_unpooled
from .shared_fields import pooled_fields, shared_of, with_shared

STEPS = 3
"""Of centred clipping."""

FEWEST = 3
"""Answers of which one can be outvoted."""

TOGETHER = "robust mean"
"""What the one answer is called that a method aggregates."""


def robust_mean(updates: Tensor, kind: RobustMean, trim: float = 0.2) -> Tensor:
    """One update of several.

    Args:
        updates: one a row, shape (clients, numbers), finite.
        trim: fraction of the values of a number that is cut off at either end, rounded down; at least one is, where one or two are left.

    Returns:
        Shape (numbers,), in the dtype of the updates.
    """
    if kind == "mean":
        return updates.mean(0)
    ordered, clients = updates.sort(0).values, len(updates)
    if kind == "trimmed-mean":
        cut = min(max(1, math.floor(trim * clients + 1e-9)), (clients - 1) // 2)
        return ordered[cut : clients - cut].mean(0)
    middle = (ordered[(clients - 1) // 2] + ordered[clients // 2]) / 2
    if kind == "median":
        return middle
    found = middle
    for _ in range(STEPS):
        apart = updates - found
        distances = apart.norm(dim=1, keepdim=True)
        found = found + (apart * (distances.median() / distances.clamp(min=1e-300)).clamp(max=1)).mean(0)
    return found


def reject_not_robust(method: Method[Any, Any], kind: str, options: FederationOptions, cohort: int) -> None:
    """A robust mean for a method whose server needs more of the answers than a mean, or of so few that nobody is a minority.

    Raises:
        UserError: naming the stage, or the number of clients.
    """
    if options.aggregation == "mean":
        return
    if cohort < FEWEST:
        raise UserError(
            f'federation.aggregation: got "{options.aggregation}" with {cohort} clients per round, expected at least {FEWEST}, of which '
            "one can be outvoted; raise federation.clients_per_round, or remove it"
        )
    if (why := why_unpooled(method)) is not None:
        raise UserError(
            f'federation.aggregation: got "{options.aggregation}", which the method {kind} cannot be run with: {why}; {instead_of(kind)} '
            "(docs/privacy.md says how)"
        )


class RobustGathering:
    """Holds a round's answers and makes one of them. Implements `gathering.Gathering`."""

    folds = False

    def __init__(self, phase: Phase[Any, Any, Any, Any], server: Any, broadcast: Any, now: Round, options: FederationOptions) -> None:
        self._phase, self._server, self._broadcast, self._now = phase, server, broadcast, now
        self._options = options
        self._messages: dict[ClientId, Any] = {}

    def settle(self, client: ClientId, message: Any | None) -> None:
        """As `Gathering.settle`."""
        if message is not None:
            self._messages[client] = message

    def aggregated(self) -> Any:
        """As `Gathering.aggregated`."""
        assert len(self._messages) >= FEWEST, "the loop asks for so many usable answers"
        names = pooled_fields(self._phase)
        sent = shared_of(self._broadcast, names)
        where = answers_of(self._now, sorted(self._messages))
        with aggregating(where):
            answers = [shared_of(self._messages[client], names) for client in sorted(self._messages)]
            base = _flat(sent, sent)
            updates = torch.stack([_flat(answer, sent) - base for answer in answers])
            whole = base + robust_mean(updates, self._options.aggregation, self._options.trim)
            parts = whole.split([value.numel() for value in sent.values()])
            mean = {name: part.view(value.shape).to(value) for (name, value), part in zip(sent.items(), parts, strict=True)}
            after = self._phase.aggregate(self._server, [Received(TOGETHER, with_shared(self._phase, mean))], self._now)
        check_finite(after, where)
        return after


def _flat(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> Tensor:
    """All numbers in the order of `like`, float64."""
    return torch.cat([tensors[name].detach().double().flatten().cpu() for name in like])
