"""Federated averaging (McMahan et al. 2017) with exchangeable parts, and the methods that are made of them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.method import Client, Phase, Received, Update, Work
from ..core.rng import Key
from ..core.task import Task
from ..core.trees import pick
from ..core.types import ClientId, Params, Round
from ..core.wire import Tensors, message
from ..local.batches import shuffled_batches
from ..local.optimise import Fit, fit
from ..local.options import TrainingOptions
from .catalogue import (
    AdapterOptions,
    AttemptOptions,
    FedPromptOptions,
    FedSALoraOptions,
    FFALoraOptions,
    IdpgOptions,
    LocalOptions,
    LoraOptions,
    LptOptions,
    MomdOptions,
    MomsAdamwOptions,
    PromptTuningOptions,
    PTuningOptions,
    SelfEvolutionOptions,
    Setting,
    ShortformerOptions,
    SlwOptions,
    VocOptions,
)
from .parts import (
    ADAPTER,
    ALL_DATA,
    EVERYTHING,
    HEAD,
    MEAN,
    NOTHING,
    TRUE_LABELS,
    Competence,
    Curriculum,
    GrowingLength,
    Names,
    SelfEvolution,
    ServerMomentum,
    ServerRule,
    ShortFirst,
    Targets,
    mean_by_size,
)


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
class OwnTensors:
    """A client's state: the tensors that stay with it; they take the place of the shared ones."""

    own: Tensors


@dataclass(frozen=True)
class FedAvg:
    """Every sampled client trains on its examples; the server takes the mean weighted by n_k.

    With the parts as they are by default: on all of them in random order, every tensor, and the mean is the next shared model.

    Attributes:
        trained: which tensors move at all; the others stay as they were at the start.
        travels: which tensors are sent both ways; the others stay on each client, which begins with those of the start.
        curriculum: which examples a client trains on in a round.
        targets: what the loss compares with.
        server: what becomes of the mean.
        finetune: after the last round every client trains once more from the shared model, and keeps the result for itself.
    """

    training: TrainingOptions
    num_rounds: int
    num_clients: int
    trained: Names = EVERYTHING
    travels: Names = EVERYTHING
    curriculum: Curriculum = ALL_DATA
    targets: Targets = TRUE_LABELS
    server: ServerRule = MEAN
    finetune: bool = False

    client_state = OwnTensors

    @property
    def server_state(self) -> type[Any]:
        """As the server's rule needs it."""
        return self.server.state

    @property
    def is_personal(self) -> bool:
        """Where something stays on the clients."""
        return self.finetune or self.travels != EVERYTHING

    @property
    def phases(self) -> tuple[Phase[Any, OwnTensors, Any, Any], ...]:
        """Tuning, then personal training if asked for."""
        tune = Phase("tune", self.num_rounds, "sampled", SharedModel, LocalModel, self._broadcast, self._tune, self._aggregate)
        alone = Phase("finetune", 1, self.num_clients, SharedModel, Done, self._broadcast, self._finetune, _keep)
        return (tune, alone) if self.finetune else (tune,)

    def init(self, task: Task, key: Key) -> Any:
        """P at the start."""
        return self.server.start(task.init_params(key))

    def init_client(self, task: Task, client: ClientId, key: Key) -> OwnTensors:
        """What does not travel, as it is at the start."""
        travelling = set(self.travels.of(task.names))
        if travelling == set(task.names):
            return OwnTensors({})
        return OwnTensors({name: value for name, value in task.init_params(key).items() if name not in travelling})

    def personalise(self, message: SharedModel, state: OwnTensors) -> Params:
        """The shared tensors, under its own."""
        return {**message.shared, **state.own}

    def server_params(self, server: Any) -> Params:
        """The shared model; what does not travel is as at the start."""
        return server.params

    def summary(self, server: Any) -> Mapping[str, Any]:
        """What travels."""
        return {"shared_tensors": len(self.travels.of(server.params))}

    def train(self, client: Client[OwnTensors], params: Params, now: Round) -> Fit:
        """What a client makes of a model in round `now`."""
        train, key = client.data.train, client.key
        positions = self.curriculum.positions(train, now, self.training.batch_size)
        max_length = self.curriculum.max_length(now)
        beside = self.targets.beside(client.task, params, train, now)
        epochs = [
            shuffled_batches(train, positions, self.training, key.fold("order", epoch), max_length=max_length, beside=beside)
            for epoch in range(self.training.local_epochs)
        ]
        return fit(client.task, params, epochs, self.training, key.fold("dropout"), trained=self.trained.of(client.task.names))

    def _broadcast(self, server: Any, now: Round) -> SharedModel:
        return SharedModel(pick(server.params, self.travels.of(server.params)))

    def _tune(self, client: Client[OwnTensors], message: SharedModel, now: Round) -> Update[OwnTensors, LocalModel]:
        return answer(client, message, self.train(client, self.personalise(message, client.state), now))

    def _finetune(self, client: Client[OwnTensors], message: SharedModel, now: Round) -> Update[OwnTensors, Done]:
        # as in the round behind the last one: the schedules of the parts have come to their ends
        last = replace(now, index=self.num_rounds, num_rounds=self.num_rounds)
        result = self.train(client, self.personalise(message, client.state), last)
        return Update(Done(), OwnTensors(result.params), work_of(result))

    def _aggregate(self, server: Any, received: Sequence[Received[LocalModel]], now: Round) -> Any:
        return self.server.step(server, mean_by_size(received))


def answer(client: Client[OwnTensors], message: SharedModel, result: Fit) -> Update[OwnTensors, LocalModel]:
    """A client's update after a training: what it was sent goes back, what is its own stays."""
    shared, own = pick(result.params, message.shared.keys()), pick(result.params, client.state.own.keys())
    return Update(LocalModel(shared, len(client.data.train)), OwnTensors(own), work_of(result))


def work_of(result: Fit) -> Work:
    """The counts of a training."""
    return Work(result.steps, result.examples, result.loss)


AdapterMethods = AdapterOptions | PromptTuningOptions | PTuningOptions | IdpgOptions | AttemptOptions | LptOptions
FedAvgOptions = (
    LoraOptions
    | LocalOptions
    | VocOptions
    | SlwOptions
    | ShortformerOptions
    | SelfEvolutionOptions
    | FFALoraOptions
    | FedSALoraOptions
    | FedPromptOptions
    | AdapterMethods
)


def build(options: FedAvgOptions, setting: Setting) -> FedAvg:
    """The method whose options these are."""
    plain = FedAvg(setting.training, setting.num_rounds, setting.num_clients)
    match options:
        case LoraOptions():
            return replace(plain, finetune=options.finetune)
        case LocalOptions():
            return replace(plain, travels=NOTHING)
        case VocOptions():
            return replace(plain, curriculum=Competence(options.start, options.share))
        case SlwOptions():
            return replace(plain, curriculum=GrowingLength(options.start, options.step, options.share, setting.longest()))
        case ShortformerOptions():
            return replace(plain, curriculum=ShortFirst(max(1, int(options.cut * setting.longest())), options.share))
        case SelfEvolutionOptions():
            return replace(plain, targets=SelfEvolution(options.after, options.smoothing, options.weight))
        case FFALoraOptions():
            return replace(plain, trained=Names(without=("lora_A",)), travels=Names(without=("lora_A",)))
        case FedSALoraOptions():
            return replace(plain, travels=Names(only=("lora_A",) if options.head == "stays" else ("lora_A", HEAD)))
        case FedPromptOptions():
            return replace(plain, travels=Names(only=(ADAPTER,)))
        case AdapterOptions() | PromptTuningOptions() | PTuningOptions() | IdpgOptions() | AttemptOptions() | LptOptions():
            return plain  # what sets it apart is the adapter of its task
        case MomdOptions():
            training = setting.training.model_copy(update={"optimizer": "sgd", "momentum": options.momentum})
            return replace(plain, training=training)
        case MomsAdamwOptions():
            training = setting.training.model_copy(update={"optimizer": "adamw", "momentum": 0.0})
            return replace(plain, training=training, server=ServerMomentum(options.server_learning_rate, options.momentum))


def _keep(server: Any, received: Sequence[Received[Done]], now: Round) -> Any:
    return server
