"""Federated averaging (McMahan et al. 2017) of the trainable tensors: `lora`, and `local`, where nothing is shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..core.method import Client, Phase, Received, Update, Work
from ..core.rng import Key
from ..core.task import Task
from ..core.trees import pick, weighted_mean
from ..core.types import ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.batches import shuffled_batches
from ..local.optimise import fit
from ..local.options import TrainingOptions
from .catalogue import LocalOptions, LoraOptions, Setting


@message
class SharedModel:
    """Server to client: the tensors that everybody shares."""

    shared: Tensors


@message
class LocalModel:
    """Client to server: its shared tensors after local training, and how many training examples it holds (n_k)."""

    shared: Tensors
    num_samples: int


@message
class Done:
    """Client to server: it has trained for itself; nothing of it leaves."""


@message
class ServerModel:
    """The server's state: all trainable tensors."""

    params: Tensors


@message
class OwnTensors:
    """A client's state: the tensors that stay with it; they take the place of the shared ones."""

    own: Tensors


@dataclass(frozen=True)
class FedAvg:
    """Every sampled client trains on all its examples in random order; the server takes the mean weighted by n_k.

    Attributes:
        shares: "all" tensors travel, or "none": every client trains alone, in the same rounds.
        finetune: after the last round every client trains once more from the shared model, and keeps the result for itself.
    """

    training: TrainingOptions
    num_rounds: int
    num_clients: int
    shares: Literal["all", "none"] = "all"
    finetune: bool = False

    server_state = ServerModel
    client_state = OwnTensors

    @property
    def phases(self) -> tuple[Phase[ServerModel, OwnTensors, Any, Any], ...]:
        """Tuning, then personal training if asked for."""
        tune = Phase("tune", self.num_rounds, "sampled", SharedModel, LocalModel, self._broadcast, self._tune, _aggregate)
        alone = Phase("finetune", 1, self.num_clients, SharedModel, Done, self._broadcast, self._finetune, _keep)
        return (tune, alone) if self.finetune else (tune,)

    def init(self, task: Task, key: Key) -> ServerModel:
        """P at the start."""
        return ServerModel(task.init_params(key))

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnTensors:
        """Nothing of its own; or all of P at the start, where nothing is shared."""
        return OwnTensors({} if self.shares == "all" else task.init_params(key))

    def personalise(self, message: SharedModel, state: OwnTensors) -> Params:
        """The shared tensors, under its own."""
        return {**message.shared, **state.own}

    def server_params(self, server: ServerModel) -> Params:
        """The shared model; where nothing is shared, the one at the start."""
        return server.params

    def summary(self, server: ServerModel) -> Mapping[str, Any]:
        """What travels."""
        return {"shared_tensors": len(server.params) if self.shares == "all" else 0}

    def _broadcast(self, server: ServerModel, round: Round) -> SharedModel:
        return SharedModel(server.params if self.shares == "all" else {})

    def _tune(self, client: Client[OwnTensors], message: SharedModel, round: Round) -> Update[OwnTensors, LocalModel]:
        trained, work = self._train(client, message)
        own = OwnTensors(pick(trained, client.state.own.keys()))
        return Update(LocalModel(pick(trained, message.shared.keys()), len(client.data.train)), own, work)

    def _finetune(self, client: Client[OwnTensors], message: SharedModel, round: Round) -> Update[OwnTensors, Done]:
        trained, work = self._train(client, message)
        return Update(Done(), OwnTensors(trained), work)

    def _train(self, client: Client[OwnTensors], message: SharedModel) -> tuple[dict[str, Any], Work]:
        train = client.data.train
        everything = torch.arange(len(train))
        epochs = [
            shuffled_batches(train, everything, self.training, client.key.fold("order", epoch))
            for epoch in range(self.training.local_epochs)
        ]
        result = fit(client.task, self.personalise(message, client.state), epochs, self.training, client.key.fold("dropout"))
        return result.params, Work(result.steps, result.examples, result.loss)


def build(options: LoraOptions | LocalOptions, setting: Setting) -> FedAvg:
    """`lora` or `local`, as its options say."""
    if isinstance(options, LocalOptions):
        return FedAvg(setting.training, setting.num_rounds, setting.num_clients, shares="none")
    return FedAvg(setting.training, setting.num_rounds, setting.num_clients, finetune=options.finetune)


def _aggregate(server: ServerModel, received: Sequence[Received[LocalModel]], round: Round) -> ServerModel:
    mean = weighted_mean([r.message.shared for r in received], [r.message.num_samples for r in received])
    return ServerModel({**server.params, **mean})


def _keep(server: ServerModel, received: Sequence[Received[Done]], round: Round) -> ServerModel:
    return server
