"""Rounds of a finished run once more, to see what was sent in them: the same bits, and nothing in the run's folder is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from ..build import Prepared
from ..client_manager import in_process
from ..core.errors import UserError
from ..core.files import CHECKPOINTS, RECORDS
from ..core.method import Phase
from ..core.records import EvalRecord
from ..core.types import ClientId, Failure, Params, Round
from ..core.wire import decode, encode, tensors_of
from ..engine.checkpoint import Checkpoint, Checkpoints
from ..engine.checks import expected
from ..engine.failures import Standing
from ..engine.log import read_records
from ..engine.loop import run, schedule
from ..engine.pooled import MeanPool
from ..engine.private_examples import ExampleRounds
from ..engine.runtime import unframe
from ..engine.states import OnServer, StatesAt
from ..engine.stopping import EarlyStopping
from ..engine.transport import Action, Answer, Ticket, Transport
from ..private_run import Private, private_of


@dataclass(frozen=True)
class Observed:
    """What a server sees in one round, in the names of the trainable tensors.

    Attributes:
        before, after: the global model before and after it.
        updates: by client, what it sent minus what it had been sent.
    """

    now: Round
    before: Params
    after: Params
    updates: Mapping[ClientId, Params]

    @cached_property
    def mean(self) -> dict[str, Tensor]:
        """What the round has made of the global model: all that is seen of it where only a sum arrives."""
        names = {name for update in self.updates.values() for name in update}
        return {name: self.after[name] - self.before[name] for name in sorted(names) if name in self.before}


@dataclass
class _Scratch:
    """Clients' states as a checkpoint names them, or none; newer ones stay in memory."""

    base: StatesAt | None = None
    own: dict[ClientId, bytes] = field(default_factory=dict[ClientId, bytes])

    def get(self, client: ClientId) -> bytes | None:
        if client in self.own or self.base is None:
            return self.own.get(client)
        return self.base.get(client)

    def put(self, client: ClientId, blob: bytes) -> None:
        self.own[client] = bytes(blob)

    def begin(self, number: int) -> None:
        """Each round is asked for once."""

    def before(self, client: ClientId) -> bytes | None:
        return self.get(client)


@dataclass
class _Seen:
    """A transport that keeps the answers to trainings, as they are on the wire."""

    inner: Transport
    answers: dict[ClientId, bytes] = field(default_factory=dict[ClientId, bytes])

    def send(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], timeout_s: float | None = None, max_bytes: int | None = None
    ) -> Sequence[Ticket]:
        self.answers.clear()
        return self.inner.send(action, now, requests, timeout_s, max_bytes)

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        for answer in self.inner.receive(tickets):
            if not isinstance(answer.reply, Failure):
                self.answers[answer.ticket.client] = bytes(answer.reply)
            yield answer

    def drop(self, tickets: Collection[Ticket]) -> Mapping[ClientId, int]:
        return self.inner.drop(tickets)

    def notes(self) -> Mapping[ClientId, Mapping[str, Any]]:
        return self.inner.notes()


def observed(prepared: Prepared, out: Path) -> tuple[tuple[Observed, ...], Any, str | None]:
    """The first round in which clients train, and the last one.

    The first is computed from the start, the last from the checkpoint before it.

    Returns:
        The rounds; the server's state at the end of the run; why the last round is not among them, or None.

    Raises:
        UserError: the run kept no checkpoint, or its rounds cannot be computed one by one.
    """
    config, method = prepared.inputs.config, prepared.method
    if config.federation.schedule != "synchronous":
        raise UserError(
            f'federation.schedule: got "{config.federation.schedule}", expected "synchronous", where each round has '
            "answers of its own; audit a synchronous run of the same configuration"
        )
    if prepared.cohorts is not None:
        raise UserError(
            f'privacy.secure_aggregation: got "{config.privacy.secure_aggregation}", expected "none": an audit looks at single updates, '
            "which this run has none of; audit a run of the same configuration without it"
        )
    kept = Checkpoints(out / CHECKPOINTS, config.resources.keep_checkpoints)
    end = kept.load_latest()
    if end is None:
        raise UserError(f"{out}: got a run without checkpoints, expected a finished run as `fibecfed run` leaves it; run it again")
    rounds = _held(prepared, out)[: end.number]  # a private run may have ended by its budget
    phases = {phase.name: phase for phase in method.phases}
    training = [now for now in rounds if phases[now.phase].trains]
    first, last = training[0], training[-1]
    server = decode(method.server_state, end.server)
    seen = [_rounds(prepared, out, first.number, None)]
    if first.number == last.number:
        return (replace(seen[0], after=method.server_params(server)),), server, None
    try:
        before = kept.load(last.number)
    except UserError:
        return (
            tuple(seen),
            server,
            f"round {last.number} is not audited: the checkpoint before it was not kept (resources.keep_checkpoints)",
        )
    found = _rounds(prepared, out, last.number, before)
    return (*seen, replace(found, after=method.server_params(server))), server, None  # with the noise that the run drew, if it drew any


def _held(prepared: Prepared, out: Path) -> list[Round]:
    """The rounds of a run, without those that early stopping left out."""
    evaluations = [one for one in read_records(out / RECORDS)[1] if isinstance(one, EvalRecord)]
    return EarlyStopping(prepared.inputs.config.evaluation.patience, schedule(prepared.method), prepared.metric, evaluations).rounds


def _rounds(prepared: Prepared, out: Path, number: int, at: Checkpoint | None) -> Observed:
    """Round `number`, from a checkpoint or from the start."""
    inputs, method = prepared.inputs, prepared.method
    key = inputs.key.fold("run")
    states = _Scratch(None if at is None else StatesAt(out / CHECKPOINTS / "clients", at.where))
    begin = 0 if at is None else at.number
    server = method.init(prepared.task, key.fold("init")) if at is None else decode(method.server_state, at.server)
    standing = Standing.from_table({} if at is None else at.extra.get("standing", {}))
    with TemporaryDirectory() as folder:  # of a private run's noise, which is drawn anew, and ledgers for it: nothing is released
        manager = in_process(prepared, states, Path(folder), begin, anew=True)  # pyright: ignore[reportArgumentType]
        transport = _Seen(manager.transport)
        pool = private_of(prepared, Path(folder), key, None)
        return _computed(prepared, number, begin, _held(prepared, out), transport, server, standing, states, pool)


def _computed(
    prepared: Prepared,
    number: int,
    begin: int,
    rounds: Sequence[Round],
    transport: _Seen,
    server: Any,
    standing: Standing,
    states: _Scratch,
    pool: Private | None,
) -> Observed:
    """Compute the rounds up to `number`, and look at that one."""
    inputs, method = prepared.inputs, prepared.method
    options, key, clients = inputs.config.federation, inputs.key.fold("run"), inputs.data.clients
    steps = run(
        method,
        transport,
        clients,
        per_round=options.cohort_size(len(clients)),
        key=key,
        server=server,
        start=begin,
        tolerance=options,
        standing=standing,
        kept=OnServer(states),  # pyright: ignore[reportArgumentType]
        rounds=rounds,
        pool=pool if isinstance(pool, MeanPool) else None,
        examples=pool if isinstance(pool, ExampleRounds) else None,
    )
    for step in steps:
        if step.now.number == number:
            phase = next(phase for phase in method.phases if phase.name == step.now.phase)
            updates = _updates(phase, server, step.now, transport.answers, prepared.task.names)
            return Observed(step.now, method.server_params(server), method.server_params(step.server), updates)
        server = decode(method.server_state, encode(step.server))
    raise AssertionError(f"round {number} is not among the rounds of the method")


def _updates(
    phase: Phase[Any, Any, Any, Any], server: Any, now: Round, answers: Mapping[ClientId, bytes], names: Sequence[str]
) -> dict[ClientId, Params]:
    """By client, what it sent minus what it was sent, of the tensors that both have."""
    broadcast = phase.broadcast(server, now)
    expect = expected(phase, server, broadcast, now)
    updates: dict[ClientId, Params] = {}
    for client, reply in sorted(answers.items()):
        sent = broadcast if phase.address is None else phase.address(server, broadcast, client)
        before = {name: tensor for tensors in tensors_of(sent).values() for name, tensor in tensors.items()}
        got = {name: tensor for tensors in tensors_of(decode(expect.up, unframe(reply)[0])).values() for name, tensor in tensors.items()}
        updates[client] = {
            name: got[name].float() - before[name].float()
            for name in names
            if name in got and name in before and got[name].shape == before[name].shape
        }
    return updates
