"""FedPepTAO (Che et al., EMNLP 2023, arXiv 2310.15080): better layers are averaged, and the server corrects its step for client
drift. docs/methods/fedpeptao.md. [S] marks what the paper or its published code states, [C] what is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.method import ClientView, Defaults, Load, Phase, Received, Update
from ..core.rng import Key
from ..core.task import Task, Use
from ..core.trees import pick, weighted_mean
from ..core.types import ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.batches import plain_epochs
from ..local.curriculum import ceil_share
from ..local.optimise import Fit, fit
from ..local.options import TrainingOptions
from ..local.schedule import factor, in_round
from ..local.selection import choose_layers
from .aggregation import mean_by_size
from .catalogue import MethodContext
from .fedavg import OwnTensors, SharedModel, work_of
from .options import FedPepTaoOptions
from .parts import first_and_last, of_layers, trained_on
from .ratio import AskRatio, Ratio, ask_ratio, mean_ratio, measured, no_share

EIGENVALUE_SHIFT = 1e-5
LEAST_SERVER_RATE = 1e-4


@message
class AskScores:
    """Server to client: score the layers of the model at the start, which both draw from the seed, on one batch."""


@message
class Scores:
    """Client to server: the score of each layer, and n_k."""

    scores: Tensor
    num_samples: int


@message
class LocalLayersAndSteps:
    """Client to server: the shared tensors after local training, n_k, and its optimiser steps."""

    shared: Tensors
    num_samples: int
    steps: int


@message
class FedPepTaoServer:
    """The server's state.

    tensor_layers: the layer of each tensor of `params` in sorted order, -1 for the head. ratio: fraction of the layers to average.
    scores: of each layer. layers: those that are averaged.
    difference: d of the round before. velocity: v. control: c. rounds: rounds of tuning that are over.
    """

    params: Tensors
    tensor_layers: tuple[int, ...]
    ratio: float
    scores: Tensor
    layers: tuple[int, ...]
    difference: Tensors
    velocity: Tensors
    control: Tensors
    rounds: int


@message
class ClientControl:
    """c_k, which the server keeps of each client that took part."""

    control: Tensors


@dataclass(frozen=True)
class FedPepTao(Defaults):
    """The method of a configuration.

    Attributes:
        rule: "share", or "plateau": how the fraction of the averaged layers is found.
        layers: that share, by the rule share.
        spectrum_clients: how many compute the spectrum, by the rule plateau.
        gradient: what the server's momentum is made of.
        server_learning_rate: before its first decay.
        server_decay: factor on it in every server step.
        momentum: weight of the velocity; the gradient's is 1 - momentum.
    """

    training: TrainingOptions
    num_rounds: int
    num_clients: int
    rule: Literal["share", "plateau"]
    layers: float
    spectrum_clients: int
    gradient: Literal["update", "difference"]
    server_learning_rate: float
    server_decay: float
    momentum: float

    server_state = FedPepTaoServer
    client_state = OwnTensors
    is_personal = True

    @property
    def phases(self) -> tuple[Phase[FedPepTaoServer, OwnTensors, Any, Any], ...]:
        """Every client scores the layers once [S]; then tuning. With the rule plateau some clients first say how many to average."""
        rows: list[Phase[FedPepTaoServer, OwnTensors, Any, Any]] = []
        if self.rule == "plateau":
            row = ("spectrum", 1, self.spectrum_clients, AskRatio, Ratio, ask_ratio, self._ratio, self._count)
            rows.append(Phase(*row, problem=no_share, trains=False))
        row = ("score", 1, self.num_clients, AskScores, Scores, _ask_scores, self._score, self._choose)
        rows.append(Phase(*row, trains=False))
        row = ("tune", self.num_rounds, "sampled", SharedModel, LocalLayersAndSteps, _broadcast, self._tune, self._aggregate)
        rows.append(Phase(*row, problem=_no_steps, keep=self._keep, kept=ClientControl))
        return tuple(rows)

    @property
    def uses(self) -> frozenset[Use]:
        """What it asks of the task beside losses and their gradients."""
        return frozenset({"hidden states", "curvature"} if self.rule == "plateau" else {"hidden states"})

    def init(self, task: Task, key: Key) -> FedPepTaoServer:
        """P at the start; no layer is chosen yet."""
        params = task.init_params(key)
        where = tuple(-1 if (layer := task.layer_of(name)) is None else layer for name in sorted(params))
        return FedPepTaoServer(params, where, self.layers, torch.zeros(task.num_layers, dtype=torch.float64), (), {}, {}, {}, 0)

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnTensors:
        """P at the start, until it knows which layers stay with it."""
        return OwnTensors(task.init_params(key))

    def personalise(self, message: SharedModel, state: OwnTensors) -> Params:
        """The shared tensors beside its own."""
        return {**state.own, **message.shared}

    def server_params(self, server: FedPepTaoServer) -> Params:
        """The averaged layers and the head as the server holds them, the others as at the start."""
        return server.params

    def load(self, size: int, now: Round, chance: float) -> Load:
        """All examples in tuning; one batch to score the layers."""
        if now.phase == "spectrum":
            return Load()
        return Load(passes=self.training.batch_size) if now.phase == "score" else trained_on(size, self.training)

    def summary(self, server: FedPepTaoServer) -> Mapping[str, Any]:
        """The averaged layers, every layer's score, and the share that the curvature called for."""
        return {
            "global_layers": list(server.layers),
            "num_layers": len(server.scores),
            "scores": [float(f"{score:.6g}") for score in server.scores],
            "ratio": server.ratio if self.rule == "plateau" else None,
        }

    def outlook(self, server: FedPepTaoServer, now: Round) -> Sequence[FedPepTaoServer]:
        """How many layers are averaged is known by the rule share alone."""
        most = len(server.scores)
        number = ceil_share(server.ratio, most)
        return first_and_last(server, *((1, most) if self.rule == "plateau" else (number, number)), most)

    def train(self, client: ClientView[OwnTensors], params: Params, now: Round) -> Fit:
        """Every tensor, on all examples."""
        epochs = plain_epochs(client.data.train, self.training, client.key, self.training.local_epochs)
        return fit(client.task, params, epochs, in_round(self.training, now), client.key.fold("dropout"))

    # Which layers are averaged

    def _ratio(self, client: ClientView[OwnTensors], message: AskRatio, now: Round) -> Update[OwnTensors, Ratio]:
        return measured(client, client.state.own, "plateau", self.training)

    def _count(self, server: FedPepTaoServer, received: Sequence[Received[Ratio]], now: Round) -> FedPepTaoServer:
        return replace(server, ratio=mean_ratio(received))

    def _score(self, client: ClientView[OwnTensors], message: AskScores, now: Round) -> Update[OwnTensors, Scores]:
        train = client.data.train
        drawn = client.key.fold("score").permutation(len(train))[: self.training.batch_size]
        with torch.no_grad():
            hidden = client.task.hidden_states(client.state.own, train.batch(drawn.tolist()))
        return Update(Scores(layer_scores(hidden), train.weight), client.state)

    def _choose(self, server: FedPepTaoServer, received: Sequence[Received[Scores]], now: Round) -> FedPepTaoServer:
        """The ceil(ratio L) layers with the largest mean score, weighted by n_k; at least one."""
        mean = weighted_mean([{"scores": r.message.scores} for r in received], [r.message.num_samples for r in received])["scores"]
        return replace(server, scores=mean, layers=choose_layers(mean, ceil_share(server.ratio, len(mean))))

    # Tuning

    def _tune(self, client: ClientView[OwnTensors], message: SharedModel, now: Round) -> Update[OwnTensors, LocalLayersAndSteps]:
        result = self.train(client, self.personalise(message, client.state), now)
        own = OwnTensors({name: value for name, value in result.params.items() if name not in message.shared})
        shared = pick(result.params, message.shared.keys())
        return Update(LocalLayersAndSteps(shared, client.data.train.weight, result.steps), own, work_of(result))

    def _aggregate(self, server: FedPepTaoServer, received: Sequence[Received[LocalLayersAndSteps]], now: Round) -> FedPepTaoServer:
        """The corrected step for the averaged layers; the head takes the mean [C: the published model has none]."""
        mean = mean_by_size(received)
        steps = {name: self._step(server, received, name, mean[name]) for name in _in_layers(server, mean)}
        return replace(
            server,
            params={**server.params, **mean, **{name: step.moved for name, step in steps.items()}},
            difference={**server.difference, **{name: step.difference for name, step in steps.items()}},
            velocity={**server.velocity, **{name: step.velocity for name, step in steps.items()}},
            control={**server.control, **{name: step.control for name, step in steps.items()}},
            rounds=server.rounds + 1,
        )

    def _step(self, server: FedPepTaoServer, received: Sequence[Received[LocalLayersAndSteps]], name: str, mean: Tensor) -> _Step:
        """One tensor, its velocity and its control moved on; from the second round on [S] the tensor leaves the mean.

        With m clients k of K, w_k their tensors, w the one before and w_mean the mean by n_k, all in float64:

            d   = w - w_mean
            c_k <- c_k - c + (w - w_k) / (steps_k learning_rate)
            c   <- c + m/K times the mean of the changes of c_k, weighted by steps_k
            v   <- momentum v + (1 - momentum) g + c - mean_k c_k, weighted by n_k
            w   <- w_mean - server_learning_rate v
        """
        old, target = server.params[name].double(), mean.double()
        zero = torch.zeros_like(old)
        control, velocity = server.control.get(name, zero).double(), server.velocity.get(name, zero).double()
        sizes, paces = [float(r.message.num_samples) for r in received], [self._pace(server, r) for r in received]
        changed = [self._client_control(server, r, name) for r in received]
        change = _mean([new - _control_before(r, name, zero) for new, r in zip(changed, received, strict=True)], paces)
        control = control + len(received) / self.num_clients * change
        update, moved = old - target, mean
        if server.rounds:
            gradient = update if self.gradient == "update" else server.difference[name].double() - update
            velocity = self.momentum * velocity + (1 - self.momentum) * gradient + control - _mean(changed, sizes)
            moved = (target - self.server_rate(server.rounds) * velocity).to(moved)
        return _Step(moved, update.to(moved), velocity.to(moved), control.to(moved))

    def _keep(self, server: FedPepTaoServer, received: Received[LocalLayersAndSteps]) -> ClientControl:
        """c_k after the round, of the averaged layers."""
        names = _in_layers(server, received.message.shared)
        return ClientControl({name: self._client_control(server, received, name).to(server.params[name]) for name in names})

    def _client_control(self, server: FedPepTaoServer, received: Received[LocalLayersAndSteps], name: str) -> Tensor:
        """c_k of one tensor after the round, in float64."""
        old = server.params[name].double()
        zero = torch.zeros_like(old)
        drift = (old - received.message.shared[name].double()) / self._pace(server, received)
        return _control_before(received, name, zero) - server.control.get(name, zero).double() + drift

    def _pace(self, server: FedPepTaoServer, received: Received[LocalLayersAndSteps]) -> float:
        return received.message.steps * self.training.learning_rate * factor(self.training, server.rounds, self.num_rounds)

    def server_rate(self, step: int) -> float:
        """The server's learning rate in its step number 1, 2, ..."""
        return max(self.server_learning_rate * self.server_decay**step, LEAST_SERVER_RATE)


@dataclass(frozen=True)
class _Step:
    """What a round makes of one tensor: w, d, v, c."""

    moved: Tensor
    difference: Tensor
    velocity: Tensor
    control: Tensor


def build(options: FedPepTaoOptions, context: MethodContext) -> FedPepTao:
    """FedPepTAO as its options say."""
    return FedPepTao(
        training=context.training,
        num_rounds=context.num_rounds,
        num_clients=context.num_clients,
        rule=options.rule,
        layers=options.layers,
        spectrum_clients=options.spectrum_clients,
        gradient=options.gradient,
        server_learning_rate=options.server_learning_rate,
        server_decay=options.server_decay,
        momentum=options.momentum,
    )


def layer_scores(hidden: Sequence[Float[Tensor, "batch token hidden"]]) -> Float[Tensor, " layers"]:
    """sum_i ln(lambda_i) + 1 / lambda_i, lambda_i = eigenvalue + 1e-5 of the matrix of cosines between the examples' hidden states.

    The hidden state of an example is that of all its tokens, padding included, end to end. The last layer is not scored and stays at 0,
    below every other: each summand is at least 1.

    Args:
        hidden: output of each block.

    Returns:
        float64 on the CPU, larger is better.
    """
    scores = torch.zeros(len(hidden), dtype=torch.float64)
    for layer, states in enumerate(hidden[:-1]):
        flat = torch.nn.functional.normalize(states.detach().cpu().double().flatten(1), dim=1)
        eigenvalues = torch.linalg.eigvalsh(flat @ flat.T).clamp(min=0) + EIGENVALUE_SHIFT  # rounding can take a 0 below it
        scores[layer] = (eigenvalues.log() + 1 / eigenvalues).sum()
    return scores


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = sum(weights)
    return torch.stack([weight / total * tensor for tensor, weight in zip(tensors, weights, strict=True)]).sum(0)


def _ask_scores(server: FedPepTaoServer, now: Round) -> AskScores:
    return AskScores()


def _broadcast(server: FedPepTaoServer, now: Round) -> SharedModel:
    return SharedModel(of_layers(server.params, server.tensor_layers, server.layers))


def _in_layers(server: FedPepTaoServer, names: Iterable[str]) -> list[str]:
    """Those of the tensors that lie in a layer and not in the head, sorted."""
    where = dict(zip(sorted(server.params), server.tensor_layers, strict=True))
    return [name for name in sorted(names) if where[name] >= 0]


def _control_before(received: Received[LocalLayersAndSteps], name: str, zero: Tensor) -> Tensor:
    return zero if received.kept is None else received.kept.control[name].double()


def _no_steps(server: FedPepTaoServer, message: LocalLayersAndSteps) -> str | None:
    """The server divides by a client's steps."""
    return None if message.steps > 0 else f"it took {message.steps} steps, expected at least 1"
