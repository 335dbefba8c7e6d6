"""SCAFFOLD (Karimireddy et al., ICML 2020, arXiv 1910.06378): control variates against client drift. docs/methods/scaffold.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import ClientView, Defaults, Load, Phase, Received, Update
from ..core.rng import Key
from ..core.task import Task, Use
from ..core.trees import pick
from ..core.types import ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.optimise import Fit
from ..local.schedule import in_round
from . import depth
from .aggregation import mean_by_size
from .catalogue import MethodContext
from .fedavg import FedAvg, work_of
from .options import ScaffoldOptions


@message
class ControlledModel:
    """Server to client: the shared tensors x and the server's control variates c, none where they are still 0, and the blocks that are
    trained, none where all are."""

    shared: Tensors
    control: Tensors = field(default_factory=dict[str, Tensor])
    trained: tuple[int, ...] = ()


@message
class ScaffoldServer:
    """The server's state: x as `params`, and c. tensor_layers, trained, information: as in `ServerModel`."""

    params: Tensors
    control: Tensors = field(default_factory=dict[str, Tensor])
    tensor_layers: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()
    information: Tensors = field(default_factory=dict[str, Tensor])


@message
class ControlledUpdate:
    """Client to server: its tensors after local training, by how much its control variates changed, and n_k."""

    shared: Tensors
    change: Tensors
    num_samples: int


@message
class OwnControl:
    """A client's state: its control variates c_k, none where they are still 0; own: the tensors of blocks that are not trained, all of
    them at the start where some are not."""

    control: Tensors = field(default_factory=dict[str, Tensor])
    own: Tensors = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class Scaffold(Defaults):
    """FedAvg by SGD, each step of which is corrected by c - c_k.

    With K_k steps of rate eta from x to y_k (option II of the paper, algorithm 1):

        y   <- y - eta (g + c - c_k)
        c_k <- c_k - c + (x - y_k) / (K_k eta)
        x   <- x + server_learning_rate (mean_k y_k - x), by n_k [C; the paper: unweighted]
        c   <- c + m/K mean_k (change of c_k), m of K clients

    Weight decay is off [C]: x - y_k would count it as a gradient.

    Attributes:
        local: how a client trains.
        num_clients: K.
    """

    local: FedAvg
    num_clients: int
    server_learning_rate: float

    server_state = ScaffoldServer
    client_state = OwnControl
    trains_whole = True
    is_personal = False

    @property
    def phases(self) -> tuple[Phase[ScaffoldServer, OwnControl, Any, Any], ...]:
        """Tuning, after the choice of the trained blocks where that needs measuring."""
        row = ("tune", self.local.num_rounds, "sampled", ControlledModel, ControlledUpdate, _broadcast, self._tune, self._aggregate)
        tune = Phase(*row, template=_like, schedules=("synchronous",))  # c is the mean of all c_k: none may change unheard
        return (*depth.phases(self.local.depth), tune)

    def init(self, task: Task, key: Key) -> ScaffoldServer:
        """P at the start, c = 0."""
        return ScaffoldServer(task.init_params(key), **depth.start(self.local.depth, task))

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnControl:
        """c_k = 0."""
        return OwnControl(own={} if self.local.depth is None else task.init_params(key))

    def personalise(self, message: ControlledModel, state: OwnControl) -> Params:
        """The shared tensors beside those of blocks that are not trained."""
        return {**state.own, **message.shared}

    def server_params(self, server: ScaffoldServer) -> Params:
        """x."""
        return server.params

    def outlook(self, server: ScaffoldServer, now: Round) -> Sequence[ScaffoldServer]:
        """The control variates are sent once they are no longer 0; which blocks are trained is not known before it is measured."""
        states = depth.outlook(self.local.depth, server)
        return (
            tuple(replace(one, control={n: torch.zeros_like(x) for n, x in _sent(one).items()}) for one in states) if now.index else states
        )

    def trains(self, task: Task, server: ScaffoldServer) -> Sequence[str]:
        """Every tensor, but for those of blocks that are not trained."""
        still = set(depth.untrained(task, server.trained))
        return [name for name in task.names if name not in still]

    @property
    def uses(self) -> frozenset[Use]:
        """FedAvg's."""
        return self.local.uses

    def load(self, size: int, now: Round, chance: float) -> Load:
        """FedAvg's."""
        return self.local.load(size, now, chance)

    def summary(self, server: ScaffoldServer) -> Mapping[str, Any]:
        """How many tensors are shared."""
        return {"shared_tensors": len(_sent(server)), **depth.summary(server)}

    def train(self, client: ClientView[OwnControl], params: Params, now: Round) -> Fit:
        """FedAvg's, without a correction."""
        return self.local.train(client, params, now)

    def finetuned(self, client: ClientView[OwnControl], message: ControlledModel, now: Round) -> Fit:
        """As `train`, but for the blocks that are not trained."""
        return self.local.train(client, self.personalise(message, client.state), now, among=message.trained)

    def _tune(self, client: ClientView[OwnControl], message: ControlledModel, now: Round) -> Update[OwnControl, ControlledUpdate]:
        own, server, pace = client.state.control, message.control, in_round(self.local.training, now).learning_rate
        correction = {name: _or_zero(server, name, x) - _or_zero(own, name, x) for name, x in message.shared.items()}
        params = self.personalise(message, client.state)
        result = self.local.train(client, params, now, _linear(correction), message.trained)
        change = {name: (x - result.params[name]) / (result.steps * pace) - _or_zero(server, name, x) for name, x in message.shared.items()}
        after = {name: _or_zero(own, name, moved) + moved for name, moved in change.items()}
        shared, own = pick(result.params, message.shared.keys()), pick(params, client.state.own.keys() - message.shared.keys())
        return Update(
            ControlledUpdate(shared, change, client.data.train.weight), OwnControl(after, own), work_of(result), model=result.params
        )

    def _aggregate(self, server: ScaffoldServer, received: Sequence[Received[ControlledUpdate]], now: Round) -> ScaffoldServer:
        mean, rate = mean_by_size(received), self.server_learning_rate
        sent = _sent(server)
        params = {name: x + rate * (mean[name] - x) for name, x in sent.items()}
        control = {
            name: _or_zero(server.control, name, x) + sum(r.message.change[name] for r in received) / self.num_clients
            for name, x in sent.items()
        }
        return replace(server, params={**server.params, **params}, control=control)


def _linear(slopes: Params) -> Callable[[Params], Tensor]:
    """A term whose gradient with respect to each tensor is its slope: what corrects every step."""

    def term(params: Params) -> Tensor:
        return torch.stack([(params[name] * slope.to(params[name])).sum() for name, slope in slopes.items()]).sum()

    return term


def _or_zero(control: Params, name: str, like: Tensor) -> Tensor:
    return control[name] if name in control else torch.zeros_like(like)


def _broadcast(server: ScaffoldServer, now: Round) -> ControlledModel:
    return ControlledModel(dict(_sent(server)), server.control, server.trained)


def _sent(server: ScaffoldServer) -> Params:
    """The tensors that are shared: those of trained blocks, and of none."""
    return depth.of_trained(server, server.params)


def _like(server: ScaffoldServer, now: Round) -> ControlledUpdate:
    sent = dict(_sent(server))
    return ControlledUpdate(sent, sent, 1)


def build(options: ScaffoldOptions, context: MethodContext) -> Scaffold:
    """SCAFFOLD as its options say."""
    training = context.training.model_copy(update={"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0})
    local = FedAvg(training, context.num_rounds, depth=depth.depth_of(options, context.key.fold(depth.PHASE)))
    return Scaffold(local, context.num_clients, options.server_learning_rate)
