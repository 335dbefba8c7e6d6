"""FedAlt (Pillutla et al., ICML 2022, arXiv 2204.03809): shared and personal layers, trained in turn. docs/methods/fedalt.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.method import ClientView, Defaults, Load, Phase, Received, Update
from ..core.rng import Key
from ..core.task import Task
from ..core.trees import pick
from ..core.types import ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.batches import plain_epochs
from ..local.curriculum import ceil_share
from ..local.optimise import Fit, fit
from ..local.options import TrainingOptions
from ..local.schedule import in_round
from .aggregation import MEAN, FoldedMean, mean_by_size, schedules_of
from .catalogue import MethodContext
from .fedavg import LocalModel, OwnTensors, SharedModel, answer
from .options import FedAltOptions
from .parts import trained_on


@message
class FedAltServer:
    """The server's state: all tensors, and the names of those that are shared."""

    params: Tensors
    shared: tuple[str, ...]


@dataclass(frozen=True)
class FedAlt(Defaults):
    """The upper layers stay on each client; the others and the head are averaged.

    Attributes:
        personal: fraction of the layers that stay.
    """

    training: TrainingOptions
    num_rounds: int
    personal: float

    server_state = FedAltServer
    client_state = OwnTensors
    is_personal = True

    @property
    def phases(self) -> tuple[Phase[FedAltServer, OwnTensors, Any, Any], ...]:
        """Tuning."""
        row = ("tune", self.num_rounds, "sampled", SharedModel, LocalModel, _broadcast, self._tune, _aggregate)
        return (Phase(*row, fold=_fold, schedules=schedules_of(MEAN)),)

    @property
    def local_epochs(self) -> int:
        """Epochs of one local training, both halves together."""
        return 2 * max(1, self.training.local_epochs // 2)

    def personal_names(self, task: Task) -> list[str]:
        """The tensors of the upper ceil(personal L) layers."""
        first = task.num_layers - ceil_share(self.personal, task.num_layers)
        return [name for name in task.names if (layer := task.layer_of(name)) is not None and layer >= first]

    def init(self, task: Task, key: Key) -> FedAltServer:
        """P at the start."""
        return FedAltServer(task.init_params(key), tuple(sorted(set(task.names) - set(self.personal_names(task)))))

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnTensors:
        """The personal layers at the start."""
        return OwnTensors(pick(task.init_params(key), self.personal_names(task)))

    def personalise(self, message: SharedModel, state: OwnTensors) -> Params:
        """The shared tensors beside its own layers."""
        return {**message.shared, **state.own}

    def server_params(self, server: FedAltServer) -> Params:
        """The shared tensors as averaged, the personal layers as at the start."""
        return server.params

    def load(self, size: int, now: Round, chance: float) -> Load:
        """All examples, in both halves."""
        return trained_on(size, self.training, epochs=self.local_epochs)

    def summary(self, server: FedAltServer) -> Mapping[str, Any]:
        """How many tensors are sent."""
        return {"shared_tensors": len(server.shared)}

    def train(self, client: ClientView[OwnTensors], params: Params, now: Round) -> Fit:
        """Half of the local epochs on the personal layers with the shared tensors frozen, then as many on the shared ones beside the new
        personal layers; each with an optimiser of its own."""
        personal = self.personal_names(client.task)
        first = self._half(client, params, now, personal, client.key.fold("personal"))
        second = self._half(client, first.params, now, sorted(params.keys() - set(personal)), client.key.fold("shared"))
        examples = first.examples + second.examples
        loss = (first.loss * first.examples + second.loss * second.examples) / examples
        return replace(second, steps=first.steps + second.steps, examples=examples, loss=loss)

    def _half(self, client: ClientView[OwnTensors], params: Params, now: Round, moving: Sequence[str], key: Key) -> Fit:
        epochs = plain_epochs(client.data.train, self.training, key, self.local_epochs // 2)
        return fit(client.task, params, epochs, in_round(self.training, now), key.fold("dropout"), trained=moving)

    def _tune(self, client: ClientView[OwnTensors], message: SharedModel, now: Round) -> Update[OwnTensors, LocalModel]:
        return answer(client, message, self.train(client, self.personalise(message, client.state), now))


def build(options: FedAltOptions, context: MethodContext) -> FedAlt:
    """FedAlt as its options say."""
    return FedAlt(context.training, context.num_rounds, options.personal)


def _broadcast(server: FedAltServer, now: Round) -> SharedModel:
    return SharedModel(pick(server.params, server.shared))


def _aggregate(server: FedAltServer, received: Sequence[Received[LocalModel]], now: Round) -> FedAltServer:
    return _moved(server, mean_by_size(received))


def _fold(server: FedAltServer, now: Round) -> FoldedMean:
    return FoldedMean(lambda mean: _moved(server, mean), "shared")


def _moved(server: FedAltServer, mean: Params) -> FedAltServer:
    return replace(server, params={**server.params, **mean})
