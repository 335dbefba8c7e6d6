"""The contract of a federated method, on one page.

A method is a frozen configuration with pure functions. Its table of phases is the algorithm's outline: in each round of a phase the server
makes one message for its cohort (`broadcast`), each client answers from its own data and state (`client_update`), and the server folds the
answers into its next state (`aggregate`). Engines move the bytes; they know nothing else. A toy, federated averaging of one number towards
each client's number of training examples:

>>> import dataclasses, torch
>>> from fibecfed.core.wire import Tensors, message
>>> @message
... class Down:
...     w: torch.Tensor
>>> @message
... class Up:
...     w: torch.Tensor
...     num_samples: int
>>> @message
... class Nothing:
...     '''A state with nothing in it.'''
>>> def update(client, down, round):
...     step = 0.5 * (len(client.data.train) - down.w)
...     work = Work(steps=1, examples=len(client.data.train), loss=float(step**2))
...     return Update(Up(down.w + step, len(client.data.train)), client.state, work)
>>> def mean(server, received, round):
...     total = sum(r.message.num_samples for r in received)
...     return Down(sum(r.message.w * r.message.num_samples for r in received) / total)
>>> tune = Phase("tune", num_rounds=2, cohort="sampled", down=Down, up=Up,
...              broadcast=lambda server, round: server, client_update=update, aggregate=mean)
>>> from fibecfed.core.rng import Key
>>> server, state = Down(torch.zeros(())), Nothing()
>>> for t in range(2):
...     now = Round("tune", t, 2, t)
...     clients = [ClientView(c, None, ClientData(train=[0] * n, validation=[], test=[]), state, Key(0)) for c, n in (("a", 1), ("b", 3))]
...     got = [Received(c.id, tune.client_update(c, tune.broadcast(server, now), now).message) for c in clients]
...     server = tune.aggregate(server, got, now)
>>> float(server.w)
1.875
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from .private import PrivateTraining
from .rng import Key
from .task import Task, Use
from .types import ClientData, ClientId, Params, Round

S = TypeVar("S")  # the server's state
C = TypeVar("C")  # what stays on a client
D = TypeVar("D")  # message down
U = TypeVar("U")  # message up
S_co = TypeVar("S_co", covariant=True)


@dataclass(frozen=True)
class ClientView(Generic[C]):
    """All that a client can read in a round, besides the message that it was sent.

    Attributes:
        id: its stable name.
        task: the model as functions of its trainable parameters.
        data: its own training, validation and test examples.
        state: its own state, from the last round in which it took part.
        key: the random stream of this client in this round; the same on any engine.
        private: where the run is private for examples, what a training goes through; None: nothing is protected, or clients are.
    """

    id: ClientId
    task: Task
    data: ClientData
    state: C
    key: Key
    private: PrivateTraining | None = None


@dataclass(frozen=True)
class Work:
    """The work of a client in one round; sent with its message, and included in the bytes counted.

    Attributes:
        steps: optimiser steps.
        examples: training examples that passed forward and backward through the model for those steps, with repetition.
        loss: mean training loss over them, nat; 0 where there were none.
        compute_s: compute seconds; set by the engine.
        compute_clock: the clock of `compute_s`, set by the engine: "cpu" = CPU time; "cuda" or "mps" = wall-clock time until the device
            had finished; "wall" = wall-clock time.
    """

    steps: int = 0
    examples: int = 0
    loss: float = 0.0
    compute_s: float = 0.0
    compute_clock: str = "wall"


@dataclass(frozen=True)
class Load:
    """Estimate of one client's work in a round, for `fibecfed check`.

    Attributes:
        steps: optimiser steps.
        passes: examples with a forward and a backward pass (or two forward passes) but no optimiser step: to score examples or layers.
    """

    steps: float = 0.0
    passes: float = 0.0


@dataclass(frozen=True)
class Update(Generic[C, U]):
    """The result of a client's round.

    Attributes:
        message: sent to the server.
        state: the client's next state; kept by the client.
        work: counts; sent to the server.
        notes: internal values of interest to researchers (difficulties, eigenvalues), as JSON values. They are written to the records
            of a simulation and never sent over a network.
        model: every parameter as the client's training left it, for what may keep it on the client (`methods.finetune`); engines drop
            it. None where a method does not say.
    """

    message: U
    state: C
    work: Work = field(default_factory=Work)
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: Params | None = None


@dataclass(frozen=True)
class Received(Generic[U]):
    """One client's answer, as the server sees it.

    Attributes:
        kept: what the server has stored about this client, by the phase's `keep`; None before it first took part.
    """

    client: ClientId
    message: U
    kept: Any = None


class Folding(Protocol[S_co, U]):
    """The answers of one round, folded into a running state one after the other, so that a cohort of large ones is never held at once."""

    def add(self, received: Received[U], /) -> None:
        """Fold in the next answer, in the order of client ids. Its tensors lie on received bytes: not to be kept, nor written to."""
        ...

    def state(self) -> S_co:
        """What `aggregate` makes of the same answers, up to the rounding of float64. Asked for once, when all are in."""
        ...


@dataclass(frozen=True)
class Phase(Generic[S, C, D, U]):
    """A phase of a method: rounds with the same messages and functions.

    Attributes:
        cohort: "sampled" = the federation's clients per round, sampled in each round, the same for every method; a number = that many
            clients, sampled once for the phase.
        down, up: message classes; they are the wire schema. An int field `num_samples` of `up` is the client's number of training
            examples, which must stay the same during a run; an int field `steps` its optimiser steps in the round.
        template: an answer as the server expects it, made from the server's state alone. Each answer must have its tensors' names,
            shapes and dtypes (a size of 0 means any size); values are ignored. Without it, a field of tensors must match the field
            of the same name in the broadcast, or else in the server's state; one that is in neither must only be finite.
        address: the message to one client, given the server's state and the broadcast. Without it, all get the broadcast.
        problem: extra validation of an answer, given the server's state: returns an error message, or None if the answer is valid. An
            invalid answer is rejected.
        keep: what the server stores about one client, given its state before the round and the client's answer. It is stored apart from
            the server's state, whose size thus does not depend on the number of clients, and is passed with that client's next answer.
        kept: message class of what `keep` returns.
        trains: whether clients take optimiser steps in it; only such rounds are followed by evaluations.
        fold: begins to fold the answers of a round, given the server's state; used instead of `aggregate` where the answers of a cohort
            are large together and the phase stores nothing about clients. Without it, or if it returns None, they are all held in memory.
        schedules: values of `federation.schedule` under which its rounds may be held. "buffered" asks that `aggregate` makes of answers
            whose every tensor moved like that of the broadcast: an answer to an earlier broadcast is given to it as the present one's
            tensors plus a weighted change (`engine.schedules.moved`).
        pools: whether `aggregate` depends on the answers only by the mean, weighted by `num_samples`, of the tensors that they have in
            common with the broadcast, so that it can be given that mean as a single answer: what privacy for clients asks for.
        sums: under privacy for examples, in how many noised sums each training example of a client is in a round of it, at most, given
            the earlier rounds of the phase in which the client took part; None: what clients make of their examples in it does not all
            go through `ClientView.private`, so that it cannot be held.
    """

    name: str
    num_rounds: int
    cohort: Literal["sampled"] | int
    down: type[D]
    up: type[U]
    broadcast: Callable[[S, Round], D]
    client_update: Callable[[ClientView[C], D, Round], Update[C, U]]
    aggregate: Callable[[S, Sequence[Received[U]], Round], S]
    template: Callable[[S, Round], U] | None = None
    address: Callable[[S, D, ClientId], D] | None = None
    problem: Callable[[S, U], str | None] | None = None
    keep: Callable[[S, Received[U]], Any] | None = None
    kept: type | None = None
    trains: bool = True
    fold: Callable[[S, Round], Folding[S, U] | None] | None = None
    schedules: tuple[str, ...] = ("synchronous", "over-select")
    pools: bool = False
    sums: Callable[[Round, Sequence[Round]], int] | None = None


class Method(Protocol[S, C]):
    """A federated method for one task. S (server state) and C (client state) are message classes, so that both can be stored and sent.

    A method that needs more of its task than losses and their gradients lists it in an attribute `uses`, a collection of `core.task.Use`: a
    model that cannot compute it is then rejected before the run starts.
    """

    @property
    def phases(self) -> tuple[Phase[S, C, Any, Any], ...]: ...

    @property
    def server_state(self) -> type[S]: ...

    @property
    def client_state(self) -> type[C]: ...

    @property
    def is_personal(self) -> bool:
        """Whether a client may predict with a model other than the global one.

        If False, the server skips its own evaluation: the clients' results are those of the global model.
        """
        ...

    def init(self, task: Task, key: Key) -> S:
        """The server's state before the first round."""
        ...

    def init_client(self, task: Task, client: ClientId, key: Key) -> C:
        """A client's state before it first takes part. `key` is the same one that `init` gets."""
        ...

    def personalise(self, message: Any, state: C) -> Params:
        """Parameters that the client predicts with, from the latest broadcast and its own state. Must not need anything else."""
        ...

    def server_params(self, server: S) -> Params:
        """The global model."""
        ...

    def summary(self, server: S) -> Mapping[str, Any]:
        """What was selected or learnt besides the tensors, as JSON values for summary.json."""
        ...

    # What `fibecfed check` asks

    def load(self, size: int, now: Round, chance: float) -> Load:
        """Work of a client with `size` training examples in round `now`; `chance` is the probability of being sampled in a round."""
        ...

    def outlook(self, server: S, now: Round) -> Sequence[S]:
        """Given the initial state: states whose messages have the sizes of those of round `now`.

        One state if the sizes are known beforehand, otherwise two or more that bound them; the last of them sends the most. Only
        names, shapes and dtypes matter, and tensors may be on the meta device, without values.
        """
        ...

    def shortest(self) -> tuple[int, str] | None:
        """Length in tokens to which texts are truncated in the first rounds, below `data.max_length`, and the key that sets it; or None."""
        ...


class Defaults:
    """Defaults for the optional parts of `Method`; inherit from it."""

    is_personal = False

    @property
    def uses(self) -> frozenset[Use]:
        """Only losses and their gradients."""
        return frozenset()

    def summary(self, server: Any) -> Mapping[str, Any]:
        """Nothing to report."""
        return {}

    def outlook(self, server: Any, now: Round) -> Sequence[Any]:
        """The sizes of messages do not change during a run."""
        return (server,)

    def shortest(self) -> tuple[int, str] | None:
        """Texts are not truncated further."""
        return None
