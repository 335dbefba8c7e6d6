"""A client's side of the engine: bytes in, bytes out. The same for one process and for many machines."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from ..core.clock import CLOCKS
from ..core.method import ClientView, Method, Phase, Update, Work
from ..core.process import bound_freed_memory
from ..core.rng import Key
from ..core.task import Task
from ..core.trees import first_not_finite
from ..core.types import ClientData, ClientId, Params, Round
from ..core.wire import Tensors, WireError, decode, encode, field_kinds, message, tensors_of
from ..privacy.fixed import Adding
from .counting import TOKEN_BLOCKS, CountedTask
from .lockstep import OwnTask, in_lockstep
from .scoring import totals, with_written, writes
from .shared_fields import only_clipped
from .stopwatch import Stopwatch
from .summands import summand_of

_WORK = struct.Struct("<QQdd")
"""Every reply ends in these 32 bytes: steps, examples, loss, compute_s. A fixed size keeps the recorded bytes the same in every run."""

_CLOCK = 56
"""Two bits of the steps from here on, far above any number of steps, say which of `CLOCKS` measured compute_s: 0 in version 0.1."""

_FREED = 2**30
"""Bytes of freed memory that stay with the process for the next client."""

TOO_LARGE = 2**63
"""Integers from here on do not fit into 64 bits with a sign, and at some size not into floating point either."""


@message
class Scored:
    """Client to server, at an evaluation: the task's sums over its test part and over its validation part."""

    test: Tensors
    validation: Tensors


@message
class BothScored:
    """Client to server, at an evaluation where the server holds no examples: as `Scored`, of its own model and of the global one."""

    test: Tensors
    validation: Tensors
    global_test: Tensors
    global_validation: Tensors

    @classmethod
    def of(cls, own: Scored, of_global: Scored) -> BothScored:
        return cls(own.test, own.validation, of_global.test, of_global.validation)

    @property
    def own(self) -> Scored:
        return Scored(self.test, self.validation)

    @property
    def of_global(self) -> Scored:
        return Scored(self.global_test, self.global_validation)


@message
class Changed:
    """Server to client: the tensors of the global model that are not as at the start."""

    params: Tensors


def frame(message: bytes | memoryview, work: Work) -> bytes:
    """What is sent up: the encoded message, then the counts of the work."""
    return b"".join((message, packed(work)))


def packed(work: Work) -> bytes:
    """The counts as a reply ends in them."""
    steps = work.steps | CLOCKS.index(work.compute_clock) << _CLOCK
    return _WORK.pack(steps, work.examples, work.loss, work.compute_s)


def unframe(blob: bytes) -> tuple[memoryview, Work]:
    """The encoded message and the work of a reply.

    Raises:
        WireError: too short to be one.
    """
    if len(blob) < _WORK.size:
        raise WireError(f"a reply of {len(blob)} bytes; expected at least {_WORK.size}")
    steps, examples, loss, compute_s = _WORK.unpack(blob[-_WORK.size :])
    clock = steps >> _CLOCK & 3
    work = Work(steps ^ clock << _CLOCK, examples, loss, compute_s, CLOCKS[clock])
    return memoryview(blob)[: -_WORK.size], work


class NoAnswer(Exception):
    """A client has no answer, and would have none if it were asked again; the text says why."""


class NotFinite(NoAnswer):
    """A loss or an update that is not finite; the text says where."""


@dataclass(frozen=True)
class TrainedClient:
    """A client's part of a round: its reply, its state afterwards, and its notes."""

    reply: bytes
    state: bytes
    notes: Mapping[str, Any]


class PrivateExamples(Protocol):
    """How the clients of a run that is private for examples train."""

    def train(self, phase: Phase[Any, Any, Any, Any], view: ClientView[Any], broadcast: Any, now: Round, again: bool) -> TrainedClient:
        """A client's part of a round, charged to its ledger before it is returned.

        Args:
            again: whether it took part before.

        Raises:
            NoAnswer: its budget is spent.
            NotFinite: what it trained is not.
        """
        ...


class States(Protocol):
    """Where clients' states are kept."""

    def get(self, client: ClientId) -> bytes | None: ...

    def put(self, client: ClientId, blob: bytes) -> None: ...

    def begin(self, number: int) -> None:
        """The round `number` is under way from now on."""
        ...

    def before(self, client: ClientId) -> bytes | None:
        """The state before the round under way, from which a client starts that is asked again in it."""
        ...


class ClientRuntime:
    """Answers for clients: looks up their data and state, runs the method's half, keeps the new state.

    A client that is asked again in the same round, since too few others answered, starts from its state before that round.

    Args:
        data: the data of a client.
        key: the run's key, the same on every machine.
        clip_norm: C, where the run is private for clients: an answer then holds its shared tensors, at most C from those that were sent,
            and nothing else; None: it is as its method makes it.
        adding: how answers become words that are summed; None: they are sent as they are.
        examples: where the run is private for examples, how clients train.
    """

    def __init__(
        self,
        method: Method[Any, Any],
        task: Task,
        data: Callable[[ClientId], ClientData],
        states: States,
        key: Key,
        evaluation_batch_size: int,
        clip_norm: float | None = None,
        adding: Adding | None = None,
        examples: PrivateExamples | None = None,
    ) -> None:
        self.method = method
        self.task = task
        self.data = data
        self.states = states
        self.key = key
        self.evaluation_batch_size = evaluation_batch_size
        self.clip_norm = clip_norm
        self.adding = adding
        self.examples = examples
        self._phases = {phase.name: phase for phase in method.phases}

    def train(self, client: ClientId, blob: bytes, now: Round) -> tuple[bytes, Mapping[str, Any]]:
        """The reply to a broadcast, and the client's notes. Its state is replaced only when everything went well.

        Raises:
            NotFinite: a loss or an update that is not.
            NoAnswer: its budget for privacy is spent.
            WireError: a broadcast that is not what the phase sends.
        """
        watch = Stopwatch(self.task.device)
        trained = self._trained(client, blob, now, CountedTask(self.task), watch)
        self.keep(client, trained, now)
        bound_freed_memory(_FREED)
        return trained.reply, trained.notes

    def train_together(self, requests: Mapping[ClientId, bytes], now: Round) -> dict[ClientId, TrainedClient | NotFinite]:
        """What each of several clients makes of its broadcast, with as many passes joined as can be; nothing is kept yet.

        Raises:
            WireError: as for `train`.
        """

        def training(client: ClientId) -> Callable[[OwnTask], TrainedClient | NotFinite]:
            def train(task: OwnTask) -> TrainedClient | NotFinite:
                try:
                    return self._trained(client, requests[client], now, task, task.watch)
                except NotFinite as error:
                    return error

            return train

        found = in_lockstep(self.task, [(client, training(client)) for client in requests])
        return dict(zip(requests, found, strict=True))

    def keep(self, client: ClientId, trained: TrainedClient, now: Round) -> None:
        """Put away the state that a client has after round `now`."""
        self.states.begin(now.number)
        self.states.put(client, trained.state)

    def joins(self, now: Round) -> bool:
        """Whether passes of several clients can be joined in a round."""
        return self._phases[now.phase].trains and hasattr(self.task, "together")

    def _trained(self, client: ClientId, blob: bytes, now: Round, task: CountedTask, watch: Stopwatch) -> TrainedClient:
        phase = self._phases[now.phase]
        self.states.begin(now.number)
        state = self._decoded(client, self.states.before(client))
        key = self.key.fold("client", client, "round", now.number)
        view = ClientView(client, cast("Task", task), self.data(client), state, key)
        broadcast = decode(phase.down, blob)
        if self.examples is not None:
            return self.examples.train(phase, view, broadcast, now, self.states.before(client) is not None)
        try:
            update = phase.client_update(view, broadcast, now)
            if self.clip_norm is not None:
                return self._private(phase, broadcast, update, state)
        except FloatingPointError as error:
            if self.clip_norm is not None:
                return self._private(phase, broadcast, None, state)
            raise NotFinite(f"client {client}, {now.phase} round {now.index}: {error}") from error
        check_finite(update.message, phase, client, now)
        after = encode(update.state)
        if self.adding is not None:
            return TrainedClient(summand_of(phase, broadcast, update.message, self.adding), after, {})
        work = replace(update.work, compute_s=watch.seconds(), compute_clock=watch.kind)
        notes = {**update.notes, TOKEN_BLOCKS: task.token_blocks} if any(task.token_blocks) else update.notes
        return TrainedClient(encode(update.message, after=packed(work)), after, notes)

    def _private(self, phase: Phase[Any, Any, Any, Any], broadcast: Any, update: Update[Any, Any] | None, before: Any) -> TrainedClient:
        """An answer from which its clipped update alone can be read, of the same length whatever the client holds. A training that failed
        leaves the client's state as it was, and looks like one that changed nothing."""
        assert self.clip_norm is not None
        failed = update is None or not_finite(update.message) is not None
        message = only_clipped(phase, broadcast, None if failed or update is None else update.message, self.clip_norm)
        after = before if failed or update is None else update.state
        if self.adding is not None:
            return TrainedClient(summand_of(phase, broadcast, message, self.adding), encode(after), {})
        return TrainedClient(encode(message, after=packed(Work())), encode(after), {})

    def evaluate(self, action: str, client: ClientId, blob: bytes, now: Round) -> bytes:
        """Sums over the client's own test and validation parts.

        Args:
            action: "evaluate": `Scored` of its personalised model; "evaluate_both": `BothScored`, from the same broadcast;
                "evaluate_global": `Scored` of the global model, from a `Changed`.

        Raises:
            NotFinite: a sum that is not.
            WireError: a broadcast that is not what the phase sends.
        """
        where = f"client {client}, evaluation after {now.phase} round {now.index}" if now.phase else f"client {client}, evaluation"
        if action == "evaluate_global":
            changed = decode(Changed, blob).params
            return encode(self._scored(client, {**self.task.init_params(self.key.fold("init")), **changed}, where, now))
        own = self._scored(client, self.personal_params(client, blob, now), where, now)
        if action == "evaluate":
            return encode(own)
        broadcast = decode(self._phases[now.phase].down, blob)
        shared = global_params(self.method, self.task, broadcast, client, self.key.fold("init"))
        return encode(BothScored.of(own, self._scored(client, shared, f"{where}, global model", now)))

    def _scored(self, client: ClientId, params: Params, where: str, now: Round) -> Scored:
        data = self.data(client)
        test, validation = (totals(self.task, params, part, self.evaluation_batch_size) for part in (data.test, data.validation))
        if writes(self.task) and now.number + 1 == sum(phase.num_rounds for phase in self.method.phases):
            test = with_written(self.task, params, [data.test], test)
        for part, sums in (("test", test), ("validation", validation)):
            if (bad := first_not_finite(sums)) is not None:
                raise NotFinite(f"{where}: the sum of {bad} over its {part} part is not finite")
        bound_freed_memory(_FREED)
        return Scored(test, validation)

    def personal_params(self, client: ClientId, blob: bytes, now: Round) -> Params:
        """The model that the client answers with, from the last broadcast."""
        return self.method.personalise(decode(self._phases[now.phase].down, blob), self._state(client))

    def _state(self, client: ClientId) -> Any:
        return self._decoded(client, self.states.get(client))

    def _decoded(self, client: ClientId, stored: bytes | None) -> Any:
        if stored is not None:
            return decode(self.method.client_state, stored)
        return self.method.init_client(self.task, client, self.key.fold("init"))


def global_params(method: Method[Any, Any], task: Task, broadcast: Any, client: ClientId, key: Key) -> Params:
    """The global model as far as a client can make it of a broadcast: the model of a client that has never trained.

    Args:
        key: of the tensors at the start.
    """
    return method.personalise(broadcast, method.init_client(task, client, key))


def check_finite(message: Any, phase: Phase[Any, Any, Any, Any], client: ClientId, now: Round) -> None:
    """Raise NotFinite for a value of `message` that is an infinity or NaN, naming client, round and field."""
    problem = not_finite(message)
    if problem is not None:
        raise NotFinite(f"client {client}, {phase.name} round {now.index}: {problem}")


def not_finite(message: Any) -> str | None:
    """A sentence about the first value of a message that is infinite, NaN or an integer of more than 63 bits; None if there is none."""
    tensors = tensors_of(message)
    for field in field_kinds(type(message)):
        if field in tensors:
            bad = first_not_finite(tensors[field])
            if bad is not None:
                return f"{named(field, bad)} of its update is not finite"
            continue
        value = getattr(message, field)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                return f"{field} of its update is not finite"
            if isinstance(number, int) and abs(number) >= TOO_LARGE:
                return f"{field} of its update is an integer of {number.bit_length()} bits, expected at most 63"
    return None


def named(field: str, tensor: str) -> str:
    """A tensor of a message as a sentence names it."""
    return f"{field} {tensor}".strip()
