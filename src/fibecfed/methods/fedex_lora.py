"""FedEx-LoRA (Singhal et al., ACL 2025, arXiv 2410.09432): exact aggregation of LoRA. docs/methods/fedex-lora.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import Client, Phase, Received, Update
from ..core.rng import Key
from ..core.task import DELTA, LowRank, Task
from ..core.types import ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.lowrank import product
from ..local.optimise import Fit
from .catalogue import FedExLoraOptions, Setting
from .fedavg import FedAvg, LocalModel, OwnTensors, SharedModel, answer
from .parts import mean_by_size


@message
class ExactModel:
    """Server to client: the mean of the factors and the head, and what has to be added to each frozen weight beside them."""

    shared: Tensors
    residual: Tensors


@message
class FedExServer:
    """The server's state: the shared tensors, the sum of all rounds' residuals by weight, the names of each LoRA map, and alpha / r."""

    params: Tensors
    residual: Tensors
    weights: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]
    scaling: float


@dataclass(frozen=True)
class FedExLora:
    """FedAvg on A, B and the head, and the residual of the aggregation beside the frozen weights.

    Attributes:
        local: how a client trains.
    """

    local: FedAvg

    server_state = FedExServer
    client_state = OwnTensors
    is_personal = False

    @property
    def phases(self) -> tuple[Phase[FedExServer, OwnTensors, Any, Any], ...]:
        """Tuning."""
        return (Phase("tune", self.local.num_rounds, "sampled", ExactModel, LocalModel, _broadcast, self._tune, _aggregate),)

    def init(self, task: Task, key: Key) -> FedExServer:
        """P at the start; nothing beside the weights."""
        maps = task.low_rank()
        params = task.init_params(key)
        residual = {found.weight: params[found.b].new_zeros(len(params[found.b]), params[found.a].shape[1]) for found in maps}
        names = (tuple(getattr(found, part) for found in maps) for part in ("weight", "a", "b"))
        return FedExServer(params, residual, *names, scaling=maps[0].scaling if maps else 1.0)

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnTensors:
        """Nothing: every message holds all that a client needs."""
        return OwnTensors({})

    def personalise(self, message: ExactModel, state: OwnTensors) -> Params:
        """The shared factors, and the residuals beside the frozen weights."""
        return {**message.shared, **_beside(message.residual)}

    def server_params(self, server: FedExServer) -> Params:
        """As a client's."""
        return {**server.params, **_beside(server.residual)}

    def summary(self, server: FedExServer) -> Mapping[str, Any]:
        """How large the residuals are beside what the factors add: the root of the sums of squares, one over the other."""
        inside = sum(float(product(server.params, found).square().sum()) for found in _maps(server)) ** 0.5
        beside = sum(float(value.double().square().sum()) for value in server.residual.values()) ** 0.5
        return {"shared_tensors": len(server.params), "residual_ratio": beside / inside if inside else None}

    def train(self, client: Client[OwnTensors], params: Params, now: Round) -> Fit:
        """FedAvg's, with the residuals standing still."""
        return self.local.train(client, params, now)

    def _tune(self, client: Client[OwnTensors], message: ExactModel, now: Round) -> Update[OwnTensors, LocalModel]:
        return answer(client, SharedModel(message.shared), self.train(client, self.personalise(message, client.state), now))


def build(options: FedExLoraOptions, setting: Setting) -> FedExLora:
    """FedEx-LoRA."""
    return FedExLora(FedAvg(setting.training, setting.num_rounds, setting.num_clients))


def exact_residual(mean: Params, sent: Sequence[Params], weights: Sequence[float], pair: LowRank) -> Tensor:
    """scaling (sum_k p_k B_k A_k - B A), p_k = weight_k / sum of the weights, A and B the mean factors; float64, (d_out, d_in)."""
    total = sum(weights)
    exact = torch.zeros(len(mean[pair.b]), mean[pair.a].shape[1], dtype=torch.float64)
    for params, weight in zip(sent, weights, strict=True):
        exact += weight / total * product(params, pair)
    return exact - product(mean, pair)


def _maps(server: FedExServer) -> list[LowRank]:
    return [LowRank(*names, server.scaling) for names in zip(server.weights, server.a, server.b, strict=True)]


def _beside(residual: Params) -> dict[str, Tensor]:
    return {name + DELTA: value for name, value in residual.items()}


def _broadcast(server: FedExServer, now: Round) -> ExactModel:
    return ExactModel(server.params, server.residual)


def _aggregate(server: FedExServer, received: Sequence[Received[LocalModel]], now: Round) -> FedExServer:
    sent, weights = [r.message.shared for r in received], [float(r.message.num_samples) for r in received]
    mean = mean_by_size(received)
    residual: dict[str, Tensor] = {}
    for found in _maps(server):
        before = server.residual[found.weight]
        residual[found.weight] = (before.double() + exact_residual(mean, sent, weights, found)).to(before)
    return replace(server, params=mean, residual=residual)
