"""SLoRA (Babakniya et al. 2023, arXiv 2308.06522): sparse training first, then LoRA from the best low-rank form of its result.
docs/methods/slora.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..core.method import ClientView, Defaults, Load, Phase, Received, Update
from ..core.rng import Key
from ..core.task import DELTA, LowRank, Task
from ..core.trees import pick
from ..core.types import Batch, ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.batches import plain_epochs
from ..local.curriculum import ceil_share
from ..local.lowrank import best_factors
from ..local.optimise import Fit, fit
from ..local.options import TrainingOptions
from ..local.schedule import in_round
from .aggregation import FoldedMean, mean_by_size
from .catalogue import MethodContext
from .fedavg import FedAvg, LocalModel, OwnTensors, SharedModel, work_of
from .options import SLoraOptions


@message
class SparseModel:
    """Server to client, stage 1: by how much the chosen numbers of each adapted weight differ from the base model's, and the head."""

    values: Tensors
    shared: Tensors


@message
class LocalSparse:
    """Client to server, stage 1: the same after local training, and n_k."""

    values: Tensors
    shared: Tensors
    num_samples: int


@message
class SLoraServer:
    """The server's state.

    params: LoRA's tensors and the head. values: stage 1's differences by weight. weights, a, b: names of each LoRA map; scaling: alpha / r.
    tuned: whether a round of stage 2 is over, so that `params` holds what was learnt.
    """

    params: Tensors
    values: Tensors
    weights: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]
    scaling: float
    tuned: bool


@dataclass(frozen=True)
class SLora(Defaults):
    """Stage 1 trains a fixed random `density` of the adapted weights and the head, stage 2 LoRA and the head.

    Attributes:
        sparse_rounds: rounds of stage 1, those of `tuning.num_rounds` are stage 2.
        tuning: stage 2.
        key: draws which numbers stage 1 trains: public, so that values are sent without their positions.
    """

    tuning: FedAvg
    sparse_rounds: int
    density: float
    rate_factor: float
    key: Key

    server_state = SLoraServer
    client_state = OwnTensors
    is_personal = False

    @property
    def phases(self) -> tuple[Phase[SLoraServer, OwnTensors, Any, Any], ...]:
        """Stage 1, stage 2."""
        sparse = Phase(
            "sparse",
            self.sparse_rounds,
            "sampled",
            SparseModel,
            LocalSparse,
            _sparse_model,
            self._train_sparse,
            _mean_sparse,
            fold=_fold_sparse,
        )
        tune = Phase("tune", self.tuning.num_rounds, "sampled", SharedModel, LocalModel, self._shared_model, self._tune, _mean, fold=_fold)
        return (sparse, tune) if self.sparse_rounds else (tune,)

    def init(self, task: Task, key: Key) -> SLoraServer:
        """The base model as it is: every difference 0."""
        maps = task.low_rank()
        params = task.init_params(key)
        values = {found.weight: self._zeros(params[found.a], params[found.b]) for found in maps}
        names = (tuple(getattr(found, part) for found in maps) for part in ("weight", "a", "b"))
        return SLoraServer(params, values, *names, scaling=maps[0].scaling if maps else 1.0, tuned=False)

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnTensors:
        """LoRA as it is at the start, with B = 0: it stands still in stage 1, and says how large the weights are."""
        lora = [name for found in task.low_rank() for name in (found.a, found.b)]
        return OwnTensors(pick(task.init_params(key), lora))

    def personalise(self, message: SparseModel | SharedModel, state: OwnTensors) -> Params:
        """Stage 1: the base model with the differences; stage 2: the shared LoRA."""
        if isinstance(message, SharedModel):
            return message.shared
        return {**state.own, **message.shared, **self._deltas(message.values, state.own)}

    def server_params(self, server: SLoraServer) -> Params:
        """As `personalise`: stage 1's model until a round of stage 2 is over."""
        return server.params if server.tuned else {**server.params, **self._deltas(server.values, server.params)}

    def outlook(self, server: SLoraServer, now: Round) -> Sequence[SLoraServer]:
        """Stage 2 begins with tensors of the shapes of those at the start."""
        return (replace(server, tuned=now.phase == "tune"),)

    def load(self, size: int, now: Round, chance: float) -> Load:
        """All examples in both stages."""
        return self.tuning.load(size, now, chance)

    def summary(self, server: SLoraServer) -> Mapping[str, Any]:
        """How many numbers stage 1 trains."""
        return {"sparse_values": sum(len(values) for values in server.values.values()), "sparse_rounds": self.sparse_rounds}

    def start(self, server: SLoraServer) -> dict[str, Tensor]:
        """What stage 2 begins with: scaling B A = best rank-r form of stage 1's differences, the base model back to what it was."""
        params = dict(server.params)
        deltas = self._deltas(server.values, server.params)
        for found in _maps(server):
            delta = deltas[found.weight + DELTA]
            if delta.any():  # else there was no stage 1: LoRA begins as it is drawn
                a, b = best_factors(delta, len(params[found.a]), found.scaling)
                params[found.a], params[found.b] = a.to(params[found.a]), b.to(params[found.b])
        return params

    # Stage 1

    def positions(self, weight: str, size: int) -> Tensor:
        """Which numbers of an adapted weight stage 1 trains: places in the flattened (d_out, d_in) matrix, ascending."""
        return self.key.fold("positions", weight).permutation(size)[: ceil_share(self.density, size)].sort().values

    def _zeros(self, a: Tensor, b: Tensor) -> Tensor:
        """One for each number of a weight that stage 1 trains."""
        return torch.zeros(ceil_share(self.density, a.shape[1] * b.shape[0]), device=a.device)

    def _deltas(self, values: Params, lora: Params) -> dict[str, Tensor]:
        """The differences as matrices, by the weight's name with DELTA behind."""
        return {name + DELTA: dense(kept, *self._place(name, lora)) for name, kept in values.items()}

    def _place(self, weight: str, lora: Params) -> tuple[Tensor, tuple[int, int]]:
        """Positions of a weight's trained numbers, and its shape (d_out, d_in)."""
        path = weight.removesuffix(".base_layer.weight")
        (a,) = (value for name, value in lora.items() if name.startswith(f"{path}.lora_A."))
        (b,) = (value for name, value in lora.items() if name.startswith(f"{path}.lora_B."))
        return self.positions(weight, b.shape[0] * a.shape[1]), (b.shape[0], a.shape[1])

    def _train_sparse(self, client: ClientView[OwnTensors], message: SparseModel, now: Round) -> Update[OwnTensors, LocalSparse]:
        training = in_round(self._sparse_training(), now)
        places = {name: self._place(name, client.state.own) for name in message.values}
        task = cast("Task", SparseTask(client.task, client.state.own, places))
        epochs = plain_epochs(client.data.train, training, client.key, training.local_epochs)
        result = fit(task, {**message.values, **message.shared}, epochs, training, client.key.fold("dropout"))
        values, shared = pick(result.params, message.values.keys()), pick(result.params, message.shared.keys())
        return Update(LocalSparse(values, shared, client.data.train.weight), client.state, work_of(result))

    def _sparse_training(self) -> TrainingOptions:
        training = self.tuning.training
        return training.model_copy(update={"learning_rate": self.rate_factor * training.learning_rate})

    # Stage 2

    def train(self, client: ClientView[Any], params: Params, now: Round) -> Fit:
        """FedAvg's, of LoRA and the head."""
        return self.tuning.train(client, params, now)

    def _shared_model(self, server: SLoraServer, now: Round) -> SharedModel:
        return SharedModel(server.params if server.tuned else self.start(server))

    def _tune(self, client: ClientView[OwnTensors], message: SharedModel, now: Round) -> Update[OwnTensors, LocalModel]:
        result = self.tuning.train(client, message.shared, now)
        return Update(LocalModel(result.params, client.data.train.weight), OwnTensors({}), work_of(result))


@dataclass(frozen=True)
class SparseTask:
    """A task whose trained tensors are some numbers of its adapted weights, and its head; as much of a `Task` as `fit` needs.

    Attributes:
        lora: LoRA's tensors, which stand still.
        places: weight -> positions of the numbers, and its shape.
    """

    inner: Task
    lora: Params
    places: Mapping[str, tuple[Tensor, tuple[int, int]]]

    @property
    def names(self) -> tuple[str, ...]:
        """The weights, under their own names, and the head."""
        return (*sorted(self.places), *sorted(set(self.inner.names) - self.lora.keys()))

    @property
    def device(self) -> torch.device:
        """That of the task."""
        return self.inner.device

    def losses(self, params: Params, batch: Batch) -> Tensor:
        """Those of the task with the numbers added to its weights."""
        deltas = {name + DELTA: dense(params[name], *place) for name, place in self.places.items()}
        head = {name: value for name, value in params.items() if name not in self.places}
        return self.inner.losses({**self.lora, **head, **deltas}, batch)

    def training(self, key: Key) -> AbstractContextManager[None]:
        """That of the task."""
        return self.inner.training(key)


def dense(values: Tensor, positions: Tensor, shape: tuple[int, int]) -> Tensor:
    """A matrix with `values` at `positions` of its flattened form, 0 elsewhere."""
    flat = torch.zeros(shape[0] * shape[1], dtype=values.dtype, device=values.device)
    return flat.index_put((positions.to(values.device),), values).view(shape)


def sparse_rounds(share: float, num_rounds: int) -> int:
    """round(share T), of T rounds at least one for each stage; none where there is only one round."""
    return min(max(1, math.floor(share * num_rounds + 0.5)), num_rounds - 1)


def build(options: SLoraOptions, context: MethodContext) -> SLora:
    """SLoRA as its options say."""
    first = sparse_rounds(options.share, context.num_rounds)
    tuning = FedAvg(context.training, context.num_rounds - first)
    return SLora(tuning, first, options.density, options.rate_factor, context.key)


def _maps(server: SLoraServer) -> list[LowRank]:
    return [LowRank(*names, server.scaling) for names in zip(server.weights, server.a, server.b, strict=True)]


def _sparse_model(server: SLoraServer, now: Round) -> SparseModel:
    lora = {*server.a, *server.b}
    return SparseModel(server.values, {name: value for name, value in server.params.items() if name not in lora})


def _mean_sparse(server: SLoraServer, received: Sequence[Received[LocalSparse]], now: Round) -> SLoraServer:
    return _moved(server, mean_by_size(received, "values"), mean_by_size(received))


def _fold_sparse(server: SLoraServer, now: Round) -> FoldedMean:
    return FoldedMean(lambda values, shared: _moved(server, values, shared), "values", "shared")


def _moved(server: SLoraServer, values: Params, shared: Params) -> SLoraServer:
    return replace(server, values=values, params={**server.params, **shared})


def _mean(server: SLoraServer, received: Sequence[Received[LocalModel]], now: Round) -> SLoraServer:
    return replace(server, params=mean_by_size(received), tuned=True)


def _fold(server: SLoraServer, now: Round) -> FoldedMean:
    return FoldedMean(lambda mean: replace(server, params=mean, tuned=True), "shared")
