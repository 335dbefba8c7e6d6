"""Federated averaging (McMahan et al. 2017) with exchangeable parts, and the methods that are made of them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import ClientView, Defaults, Folding, Load, Phase, Received, Update, Work
from ..core.rng import Key
from ..core.task import Task, Use
from ..core.trees import pick
from ..core.types import ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.batches import shuffled_batches
from ..local.optimise import Fit, fit
from ..local.options import TrainingOptions
from ..local.private import fit_private
from ..local.schedule import in_round
from . import depth as blocks
from .aggregation import MEAN, Aggregation, Exact, ServerModel, ServerMomentum, aggregation_of, deltas, pools, residual_ratio, schedules_of
from .catalogue import MethodContext
from .depth import Depth, depth_of, of_trained, untrained
from .options import (
    DepthParts,
    FedExLoraOptions,
    FedPromptOptions,
    FedProxOptions,
    FedSALoraOptions,
    FFALoraOptions,
    LocalOptions,
    LoraParts,
    MethodOptions,
    MomdOptions,
    MomsAdamwOptions,
    SelfEvolutionOptions,
    ServerParts,
    ShortformerOptions,
    SlwOptions,
    VocOptions,
)
from .parts import (
    ADAPTER,
    ALL_DATA,
    EVERYTHING,
    FROZEN_A,
    HEAD,
    NOTHING,
    TRUE_LABELS,
    Competence,
    Curriculum,
    GrowingLength,
    Names,
    SelfEvolution,
    ShortFirst,
    Targets,
    trained_on,
)


@message
class SharedModel:
    """Server to client: the tensors that everybody shares, by weight what is added to the frozen ones (exact aggregation alone), and the
    blocks that are trained, none where all are."""

    shared: Tensors
    residual: Tensors = field(default_factory=dict[str, Tensor])
    trained: tuple[int, ...] = ()


@message
class LocalModel:
    """Client to server: its shared tensors after local training, and how many training examples it holds (n_k)."""

    shared: Tensors
    num_samples: int


@message
class OwnTensors:
    """A client's state: the tensors that stay with it; they take the place of the shared ones."""

    own: Tensors


@dataclass(frozen=True)
class FedAvg(Defaults):
    """Every sampled client trains on its examples; the server takes the mean weighted by n_k.

    With the parts as they are by default: on all of them in random order, every tensor, and the mean is the next shared model.

    Attributes:
        trained: which tensors move at all; the others stay as they were at the start.
        shared: which tensors are sent both ways; the others stay on each client, which begins with those of the start.
        curriculum: which examples a client trains on in a round.
        targets: what the loss compares with.
        aggregation: how the answers become the next shared model.
        proximal: mu of FedProx, 0 = off: mu/2 times the squared distance to the model that a client was sent is added to its loss.
        depth: which blocks are trained; None: all.
    """

    training: TrainingOptions
    num_rounds: int
    trained: Names = EVERYTHING
    shared: Names = EVERYTHING
    curriculum: Curriculum = ALL_DATA
    targets: Targets = TRUE_LABELS
    aggregation: Aggregation = MEAN
    proximal: float = 0.0
    depth: Depth | None = None

    server_state = ServerModel
    client_state = OwnTensors

    @property
    def trains_whole(self) -> bool:
        """Whether a round trains on all examples as they are; with a curriculum it may be on a part of them."""
        return self.curriculum == ALL_DATA

    @property
    def is_personal(self) -> bool:
        """Where something stays on the clients."""
        return self.shared != EVERYTHING

    @property
    def phases(self) -> tuple[Phase[ServerModel, OwnTensors, Any, Any], ...]:
        """Tuning, after the choice of the trained blocks where that needs measuring."""
        row = ("tune", self.num_rounds, "sampled", SharedModel, LocalModel, self._broadcast, self._tune, self._aggregate)
        schedules = schedules_of(self.aggregation) if type(self)._aggregate is FedAvg._aggregate else schedules_of(Exact())
        only_mean = pools(self.aggregation) and type(self)._aggregate is FedAvg._aggregate
        sums = (lambda now, earlier: self.training.local_epochs) if self._trains_by_private else None
        return (*blocks.phases(self.depth), Phase(*row, fold=self._fold, schedules=schedules, pools=only_mean, sums=sums))

    @property
    def _trains_by_private(self) -> bool:
        """Whether nothing but `train` reads training examples, and that in no order that depends on them."""
        own = type(self)._tune is FedAvg._tune and type(self).train is FedAvg.train and type(self).finetuned is FedAvg.finetuned
        return own and self.curriculum == ALL_DATA and self.targets == TRUE_LABELS

    def init(self, task: Task, key: Key) -> ServerModel:
        """P at the start."""
        return ServerModel(task.init_params(key), **self.aggregation.start(task), **blocks.start(self.depth, task))

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnTensors:
        """What is not sent, as it is at the start; everything, where some blocks are not trained: which are is not always known yet."""
        shared = set(self.shared.of(task.names)) if self.depth is None else set[str]()
        if shared == set(task.names):
            return OwnTensors({})
        return OwnTensors({name: value for name, value in task.init_params(key).items() if name not in shared})

    def personalise(self, message: SharedModel, state: OwnTensors) -> Params:
        """The shared tensors beside its own; residuals beside the frozen weights."""
        own = {name: value for name, value in state.own.items() if name not in message.shared}
        return {**message.shared, **own, **deltas(message.residual)}

    def server_params(self, server: ServerModel) -> Params:
        """The shared model; what is not sent is as at the start."""
        return {**server.params, **deltas(self.aggregation.beside(server, self._sent(server).keys()))}

    def summary(self, server: ServerModel) -> Mapping[str, Any]:
        """What is sent; with exact aggregation also how large the residuals are."""
        ratio = {"residual_ratio": residual_ratio(server)} if server.maps else {}
        return {"shared_tensors": len(self._sent(server)), **ratio, **blocks.summary(server)}

    @property
    def uses(self) -> frozenset[Use]:
        """Measuring which blocks are trained needs per-example gradients."""
        return frozenset(["per-example gradients"] if self.depth is not None and self.depth.measures else [])

    def outlook(self, server: ServerModel, now: Round) -> Sequence[ServerModel]:
        """Which blocks are trained is not known before it is measured; how many sometimes is."""
        return blocks.outlook(self.depth, server)

    def trains(self, task: Task, server: ServerModel) -> Sequence[str]:
        """What is trained, but for the blocks that are not."""
        return self._moving(task, server.trained)

    def load(self, size: int, now: Round, chance: float) -> Load:
        """The examples of the curriculum, and a pass over all of them where the targets ask for one."""
        if now.phase == blocks.PHASE and self.depth is not None:
            return self.depth.load(size)
        used = self.curriculum.num_examples(size, now, self.training.batch_size)
        return trained_on(used, self.training, passes=self.targets.passes(now) * size)

    def shortest(self) -> tuple[int, str] | None:
        """As the curriculum cuts them in its first round."""
        cut = self.curriculum.max_length(Round("tune", 0, self.num_rounds, 0))
        return None if cut is None else (cut, self.curriculum.key)

    def train(
        self,
        client: ClientView[Any],
        params: Params,
        now: Round,
        penalty: Callable[[Params], Tensor] | None = None,
        among: Sequence[int] = (),
    ) -> Fit:
        """What a client makes of a model in round `now`, with `penalty` on top of the loss; of its blocks only those of `among` are
        trained, all where that is empty."""
        train, key, trained = client.data.train, client.key, self._moving(client.task, among)
        if self.proximal and penalty is None:
            penalty = proximal_term(self.proximal, pick(params, trained))
        if client.private is not None:
            options, dropout = in_round(self.training, now), key.fold("dropout")
            return fit_private(client.task, params, train, options, dropout, client.private, trained=trained, penalty=penalty)
        positions = self.curriculum.positions(train, now, self.training.batch_size)
        max_length = self.curriculum.max_length(now)
        beside = self.targets.beside(client.task, params, train, now)
        epochs = [
            shuffled_batches(train, positions, self.training, key.fold("order", epoch), max_length=max_length, beside=beside)
            for epoch in range(self.training.local_epochs)
        ]
        return fit(client.task, params, epochs, in_round(self.training, now), key.fold("dropout"), trained=trained, penalty=penalty)

    def finetuned(self, client: ClientView[Any], message: SharedModel, now: Round) -> Fit:
        """As `train`, from the client's own model, but for the blocks that are not trained."""
        params = self.personalise(message, client.state)
        return self.train(client, params, now, among=message.trained) if message.trained else self.train(client, params, now)

    def _moving(self, task: Task, among: Sequence[int]) -> list[str]:
        still = set(untrained(task, among))
        return [name for name in self.trained.of(task.names) if name not in still]

    def _sent(self, server: ServerModel) -> Params:
        """The shared tensors as they are sent: those of trained blocks, and of none."""
        known = of_trained(server, server.params)
        return pick(known, self.shared.of(known))

    def _broadcast(self, server: ServerModel, now: Round) -> SharedModel:
        shared = dict(self._sent(server))
        return SharedModel(shared, self.aggregation.beside(server, shared.keys()), server.trained)

    def _tune(self, client: ClientView[OwnTensors], message: SharedModel, now: Round) -> Update[OwnTensors, LocalModel]:
        return answer(client, message, self.finetuned(client, message, now))

    def _aggregate(self, server: ServerModel, received: Sequence[Received[LocalModel]], now: Round) -> ServerModel:
        return self.aggregation.step(server, received)

    def _fold(self, server: ServerModel, now: Round) -> Folding[ServerModel, LocalModel] | None:
        """None where answers cannot be folded in: a subclass that aggregates otherwise, or a part that does not say how."""
        fold = getattr(self.aggregation, "fold", None)
        return None if fold is None or type(self)._aggregate is not FedAvg._aggregate else fold(server)


def proximal_term(weight: float, start: Params) -> Callable[[Params], Tensor]:
    """FedProx (Li et al., MLSys 2020): weight/2 times the squared L2 distance of the trained tensors to where they started."""

    def term(params: Params) -> Tensor:
        return weight / 2 * torch.stack([(params[name] - value.to(params[name])).square().sum() for name, value in start.items()]).sum()

    return term


def answer(client: ClientView[OwnTensors], message: SharedModel, result: Fit) -> Update[OwnTensors, LocalModel]:
    """A client's update after a training: what it was sent goes back, what is its own stays."""
    shared, own = pick(result.params, message.shared.keys()), pick(result.params, client.state.own.keys() - message.shared.keys())
    return Update(LocalModel(shared, client.data.train.weight), OwnTensors(own), work_of(result), model=result.params)


def work_of(result: Fit) -> Work:
    """The counts of a training."""
    return Work(result.steps, result.examples, result.loss)


def build(options: MethodOptions, context: MethodContext) -> FedAvg:
    """The method whose options these are."""
    training = context.training
    depth = depth_of(options, context.key.fold(blocks.PHASE)) if isinstance(options, DepthParts) else None
    plain = FedAvg(training, context.num_rounds, depth=depth)
    match options:
        case ServerParts():
            name = options.aggregation if isinstance(options, LoraParts) else options.optimizer
            still = FROZEN_A.only if name == "ffa" else ()
            head = (HEAD,) if options.head == "personal" else ()
            return replace(
                plain,
                trained=Names(without=still),
                shared=Names(without=(*still, *head)),
                aggregation=aggregation_of(name, options.server),
                proximal=options.proximal if isinstance(options, FedProxOptions) else 0.0,
            )
        case LocalOptions():
            return replace(plain, shared=NOTHING)
        case VocOptions():
            return replace(plain, curriculum=Competence(options.start, options.share))
        case SlwOptions():
            return replace(plain, curriculum=GrowingLength(options.start, options.step, options.share, context.longest()))
        case ShortformerOptions():
            return replace(plain, curriculum=ShortFirst(max(1, int(options.cut * context.longest())), options.share))
        case SelfEvolutionOptions():
            return replace(plain, targets=SelfEvolution(options.after, options.smoothing, options.weight))
        case FFALoraOptions():
            return replace(plain, trained=Names(without=FROZEN_A.only), shared=Names(without=FROZEN_A.only))
        case FedExLoraOptions():
            return replace(plain, aggregation=Exact())
        case FedSALoraOptions():
            return replace(plain, shared=Names(only=("lora_A",) if options.head == "personal" else ("lora_A", HEAD)))
        case FedPromptOptions():
            return replace(plain, shared=Names(only=(ADAPTER,)))
        case MomdOptions():
            return replace(plain, training=training.model_copy(update={"optimizer": "sgd", "momentum": options.momentum}))
        case MomsAdamwOptions():
            adamw = training.model_copy(update={"optimizer": "adamw", "momentum": 0.0})
            return replace(plain, training=adamw, aggregation=ServerMomentum(options.server_learning_rate, options.momentum))
        case _:
            return plain  # what sets it apart is the adapter of its task
