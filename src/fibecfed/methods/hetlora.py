"""HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432): a rank of its own for every client. docs/methods/hetlora.md.

The tensors called A (r, d_in) and B (d_out, r) are those with `lora_A` and `lora_B` in their names; rank i is row i of A and column i of B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import ClientView, Defaults, Load, Phase, Received, Update
from ..core.rng import Key
from ..core.task import Task
from ..core.trees import pick, weighted_mean
from ..core.types import ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.batches import plain_epochs
from ..local.optimise import Fit, fit
from ..local.options import TrainingOptions
from ..local.schedule import in_round
from .catalogue import MethodContext
from .fedavg import LocalModel, SharedModel, work_of
from .options import HetLoraOptions
from .parts import trained_on

A, B = "lora_A", "lora_B"


@message
class HetServer:
    """The server's state: all tensors at the largest rank, and the ranks of the clients that it has heard of."""

    params: Tensors
    clients: tuple[str, ...]
    ranks: tuple[int, ...]


@message
class OwnRank:
    """A client's state: its rank, and the largest of all."""

    rank: int
    largest: int


@dataclass(frozen=True)
class HetLora(Defaults):
    """Truncation on the way down, rank self-pruning on the client, zero padding and weights by Frobenius norm on the way up.

    Attributes:
        min_rank: ranks at the start are drawn evenly from it to the model's; none falls below it.
        decay: gamma.
        penalty: lambda.
        key: draws the ranks.
    """

    training: TrainingOptions
    num_rounds: int
    min_rank: int
    decay: float
    penalty: float
    key: Key

    server_state = HetServer
    client_state = OwnRank
    is_personal = True

    @property
    def phases(self) -> tuple[Phase[HetServer, OwnRank, Any, Any], ...]:
        """Tuning, with a message of its own for every client."""
        return (
            Phase(
                *("tune", self.num_rounds, "sampled", SharedModel, LocalModel, _broadcast, self._tune, _aggregate),
                template=_any_rank,
                address=self._truncated,
                problem=_not_one_rank,
            ),
        )

    def init(self, task: Task, key: Key) -> HetServer:
        """P at the start, at the largest rank."""
        return HetServer(task.init_params(key), (), ())

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnRank:
        """The rank that it can afford."""
        largest = largest_rank(task.init_params(key))
        return OwnRank(self.rank_at_start(client, largest), largest)

    def rank_at_start(self, client: ClientId, largest: int) -> int:
        """Drawn evenly from `min_rank` .. `largest`; known to the client and the server."""
        least = min(self.min_rank, largest)
        return int(torch.randint(least, largest + 1, (), generator=self.key.fold("rank", client).generator()))

    def personalise(self, message: SharedModel, state: OwnRank) -> Params:
        """The shared tensors at the client's rank, filled up with zeros to the model's."""
        return padded(truncated(message.shared, state.rank), state.largest)

    def server_params(self, server: HetServer) -> Params:
        """The shared tensors at the largest rank."""
        return server.params

    def outlook(self, server: HetServer, now: Round) -> Sequence[HetServer]:
        """Clients may have fallen to the least rank by now, or have kept the one that they began with."""
        if self.decay == 1:
            return (server,)
        return (replace(server, params=truncated(server.params, self.min_rank)), server)

    def load(self, size: int, now: Round, chance: float) -> Load:
        """All examples."""
        return trained_on(size, self.training)

    def summary(self, server: HetServer) -> Mapping[str, Any]:
        """The ranks of the clients that took part."""
        return {"ranks": dict(zip(server.clients, server.ranks, strict=True))}

    def train(self, client: ClientView[OwnRank], params: Params, now: Round) -> Fit:
        """What a client makes of a model; its tensors are filled up with zeros to the largest rank."""
        result, _ = self._train(client, params, now)
        return replace(result, params=padded(result.params, client.state.largest))

    def _train(self, client: ClientView[OwnRank], params: Params, now: Round) -> tuple[Fit, int]:
        """Training at the client's rank with the penalty on the tail, and the rank that is left: the tail goes if its norm has fallen."""
        rank, kept = client.state.rank, self.kept(client.state.rank)
        start = truncated(params, rank)
        epochs = plain_epochs(client.data.train, self.training, client.key, self.training.local_epochs)
        penalty = _Penalty(self.penalty, kept) if kept < rank and self.penalty else None
        result = fit(client.task, start, epochs, in_round(self.training, now), client.key.fold("dropout"), penalty=penalty)
        if kept < rank and tail_norm(result.params, kept) < tail_norm(start, kept):
            rank = kept
        return replace(result, params=truncated(result.params, rank)), rank

    def kept(self, rank: int) -> int:
        """The rank that pruning leaves: floor(gamma rank), at least `min_rank`, less than before where that allows it."""
        return max(min(self.min_rank, rank), math.floor(self.decay * rank))

    def _truncated(self, server: HetServer, message: SharedModel, client: ClientId) -> SharedModel:
        known = dict(zip(server.clients, server.ranks, strict=True))
        return SharedModel(truncated(message.shared, known.get(client) or self.rank_at_start(client, largest_rank(server.params))))

    def _tune(self, client: ClientView[OwnRank], message: SharedModel, now: Round) -> Update[OwnRank, LocalModel]:
        result, rank = self._train(client, message.shared, now)
        update = LocalModel(result.params, client.data.train.weight)
        return Update(update, replace(client.state, rank=rank), work_of(result), {"rank": rank})


@dataclass(frozen=True)
class _Penalty:
    """lambda times the norm of the tail."""

    weight: float
    kept: int

    def __call__(self, params: Params) -> Tensor:
        return self.weight * tail_norm(params, self.kept)


def build(options: HetLoraOptions, context: MethodContext) -> HetLora:
    """HetLoRA as its options say."""
    return HetLora(context.training, context.num_rounds, options.min_rank, options.decay, options.penalty, context.key)


def pairs(names: Sequence[str] | Params) -> list[tuple[str, str]]:
    """Names of A and B that belong together, sorted."""
    return [(name, name.replace(A, B)) for name in sorted(names) if A in name]


def largest_rank(params: Params) -> int:
    """The largest r of any A."""
    return max(len(params[a]) for a, _ in pairs(params))


def truncated(params: Params, rank: int) -> dict[str, Tensor]:
    """The first `rank` ranks of every A and B; other tensors as they are."""
    return {name: value[:rank] if A in name else value[:, :rank] if B in name else value for name, value in params.items()}


def padded(params: Params, rank: int) -> dict[str, Tensor]:
    """Every A and B filled up with zeros to `rank` ranks; the product stays what it is."""
    found = dict(params)
    for a, b in pairs(params):
        missing = rank - len(params[a])
        found[a] = torch.nn.functional.pad(params[a], (0, 0, 0, missing))
        found[b] = torch.nn.functional.pad(params[b], (0, missing))
    return found


def tail_norm(params: Params, kept: int) -> Tensor:
    """sum over the maps of ||B[:, kept:]||_F ||A[kept:, :]||_F."""
    return torch.stack([params[b][:, kept:].norm() * params[a][kept:].norm() for a, b in pairs(params)]).sum()


def product_norms(params: Params) -> dict[str, float]:
    """||B A||_F by the name of A, in float64."""
    return {a: float((params[b].double() @ params[a].double()).norm()) for a, b in pairs(params)}


def _broadcast(server: HetServer, now: Round) -> SharedModel:
    return SharedModel(server.params)


def _any_rank(server: HetServer, now: Round) -> LocalModel:
    """What answers are like: every A and B at whatever rank."""
    return LocalModel(truncated(server.params, 0), 1)


def _not_one_rank(server: HetServer, message: LocalModel) -> str | None:
    """All A and B of a client have its rank."""
    found = {len(message.shared[a]) for a, _ in pairs(message.shared)} | {message.shared[b].shape[1] for _, b in pairs(message.shared)}
    largest = largest_rank(server.params)
    if len(found) == 1 and 1 <= min(found) <= largest:
        return None
    return f"its factors have the ranks {sorted(found)[:5]}, expected one rank for all between 1 and {largest}"


def _aggregate(server: HetServer, received: Sequence[Received[LocalModel]], now: Round) -> HetServer:
    """Every map is the mean of the clients' padded ones with weights ||B_k A_k||_F, the head that with n_k."""
    sent, sizes = [r.message.shared for r in received], [r.message.num_samples for r in received]
    largest = largest_rank(server.params)
    full = [padded(params, largest) for params in sent]
    norms = [product_norms(params) for params in full]
    lora = {name for pair in pairs(server.params) for name in pair}
    mean = weighted_mean([{name: value for name, value in params.items() if name not in lora} for params in sent], sizes)
    for a, b in pairs(server.params):
        weights = [norm[a] for norm in norms]
        mean |= weighted_mean([pick(params, (a, b)) for params in full], weights if sum(weights) > 0 else sizes)
    ranks = dict(zip(server.clients, server.ranks, strict=True))
    ranks |= {r.client: largest_rank(r.message.shared) for r in received}
    return HetServer(mean, tuple(sorted(ranks)), tuple(ranks[client] for client in sorted(ranks)))
