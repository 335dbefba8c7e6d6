"""The federated loop: sample, broadcast, collect, aggregate. One generator over rounds; everything else is written around it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from ..core.clock import joined
from ..core.errors import Diverged, RunFailed
from ..core.method import Method, Phase
from ..core.records import FailedAttempt, RoundRecord
from ..core.rng import Key
from ..core.types import ClientId, Round
from ..core.wire import encode
from ..privacy.ledger import BudgetSpent
from ..privacy.participation import cyclic
from .checks import expected
from .collecting import Arrived, collect
from .failures import NEW, REPEATS, STOP, Standing
from .gathering import USABLE, Gathering, InMemory, Kept, gather
from .options import FederationOptions
from .pooled import MeanPool, pooled_round
from .private_examples import ExampleRounds
from .requests import Requests
from .robust import RobustGathering
from .schedules import RoundPlan, Sent, UnderWay, plan_of, sent_again, under_way
from .summed import summed_round
from .summing import SumPool
from .transport import Ticket, Transport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """The state after one round.

    Attributes:
        number: rounds completed, over all phases.
        now: the round that was just completed.
        server: the server's state after it.
        standing: what is remembered of the clients' answers after it.
        asked: the requests whose answers are still under way after it.
    """

    number: int
    now: Round
    server: Any
    record: RoundRecord
    standing: Standing
    asked: tuple[UnderWay, ...] = ()


def schedule(method: Method[Any, Any]) -> tuple[Round, ...]:
    """Every round of a run, in order."""
    rows = [(phase.name, index, phase.num_rounds) for phase in method.phases for index in range(phase.num_rounds)]
    return tuple(Round(name, index, total, number) for number, (name, index, total) in enumerate(rows))


def cohort(
    phase: Phase[Any, Any, Any, Any],
    clients: Sequence[ClientId],
    size: int,
    key: Key,
    sampled_before: int,
    attempt: int = 0,
    excluded: Collection[ClientId] = (),
) -> tuple[ClientId, ...]:
    """Who takes part, sorted by id.

    Sampled rounds draw from `key.fold("cohort", n)`, n = number of sampled rounds before, so every method sees the same clients, whatever
    happened in earlier rounds. A further attempt at a round samples from the stream below, under its number.

    Args:
        size: how many are asked, see `schedules.plan_of`.
        excluded: their places go to the clients that come next in the order drawn.
    """
    stream = key.fold("cohort", sampled_before) if phase.cohort == "sampled" else key.fold("cohort", phase.name)
    if size >= len(clients):
        return tuple(sorted(client for client in clients if client not in excluded))
    order: list[int] = (stream.fold("attempt", attempt) if attempt else stream).permutation(len(clients)).tolist()
    drawn = (clients[place] for place in order if clients[place] not in excluded)
    return tuple(sorted(islice(drawn, size)))


def planned(
    method: Method[Any, Any],
    clients: Sequence[ClientId],
    per_round: int,
    key: Key,
    options: FederationOptions = STOP,
    in_turn: bool = False,
) -> Iterator[tuple[Phase[Any, Any, Any, Any], Round, tuple[ClientId, ...]]]:
    """Every round of a run, in order, with its phase and the clients that it asks first; arguments as for `run`.

    Which clients are at work when a buffered round begins is not known before: it is taken to ask any that are as many.

    Args:
        in_turn: whether clients take part one after the other, as in a run that is private for them.
    """
    phases, sampled = {phase.name: phase for phase in method.phases}, 0
    for now in schedule(method):
        phase = phases[now.phase]
        plan = plan_of(phase, now, options, per_round)
        asked = plan.enough if plan.buffered and now.index else plan.at_work
        yield phase, now, cyclic(clients, asked, key, sampled) if in_turn else cohort(phase, clients, asked, key, sampled)
        sampled += phase.cohort == "sampled"


def run(
    method: Method[Any, Any],
    transport: Transport,
    clients: Sequence[ClientId],
    *,
    per_round: int,
    key: Key,
    server: Any,
    start: int = 0,
    tolerance: FederationOptions = STOP,
    standing: Standing = NEW,
    kept: Kept | None = None,
    asked: Sequence[UnderWay] = (),
    pool: MeanPool | None = None,
    sums: SumPool | None = None,
    examples: ExampleRounds | None = None,
    rounds: Sequence[Round] | None = None,
) -> Iterator[Step]:
    """Yield the state after each round, from round `start` on.

    Args:
        clients: ids of all clients.
        per_round: clients of a sampled round.
        server: the server's state before round `start`.
        tolerance: when a round ends, what becomes of clients that fail, and of rounds in which too few answer.
        standing: what is remembered of the clients' answers before round `start`.
        kept: where phases keep something of each client; left out, in memory alone.
        asked: the requests that were under way before round `start`.
        pool: how answers are pooled where the run is private for clients; it ends before a round that would pass its budget.
        sums: how they are summed where the server sees no single one, and nothing is noised.
        examples: what each round may cost where the run is private for examples; it ends likewise.
        rounds: what is held, each looked up when its turn comes; left out: all rounds of the method.

    Raises:
        RunFailed: a client failed and `tolerance.on_failure` is "stop", or too few answered in every attempt at a round.
        Diverged: the same, where a loss or a tensor is not finite, so that it would happen again.
    """
    phases = {phase.name: phase for phase in method.phases}
    kept = InMemory() if kept is None else kept
    rounds = schedule(method) if rounds is None else rounds
    sampled = sum(phases[now.phase].cohort == "sampled" for now in rounds[:start])
    at_work = sent_again(asked, phases, transport, tolerance.timeout_s)
    for now in islice(rounds, start, None):
        phase = phases[now.phase]
        if pool is not None:
            try:
                server, record = pooled_round(phase, transport, server, now, tolerance.timeout_s, pool)
            except BudgetSpent:
                return
            yield Step(now.number + 1, now, server, record, standing)
            continue
        if sums is not None:
            chosen = cohort(phase, clients, per_round, key, sampled)
            server, record = summed_round(phase, transport, chosen, server, now, tolerance, sums)
            sampled += 1
            yield Step(now.number + 1, now, server, record, standing)
            continue
        plan = plan_of(phase, now, tolerance, per_round)
        choose: Callable[[int, Collection[ClientId]], tuple[ClientId, ...]]
        choose = partial(cohort, phase, clients, plan.at_work - len(at_work), key, sampled)
        if examples is not None:
            try:
                examples.charge(now, encode(server))
            except BudgetSpent:
                return
            choose = partial(_in_turn, examples, now.number)
        held = _round(phase, transport, choose, server, now, plan, tolerance, standing, kept, at_work)
        server, standing, at_work = held.server, held.standing, held.at_work
        sampled += phase.cohort == "sampled"
        yield Step(now.number + 1, now, server, held.record, standing, under_way(at_work))


def _in_turn(examples: ExampleRounds, number: int, attempt: int, excluded: Collection[ClientId]) -> tuple[ClientId, ...]:
    return examples.cohort(number)


@dataclass(frozen=True)
class _Held:
    """A round that is over; who is still at work after it."""

    server: Any
    record: RoundRecord
    standing: Standing
    at_work: Mapping[Ticket, Sent]


def _round(
    phase: Phase[Any, Any, Any, Any],
    transport: Transport,
    choose: Callable[[int, Collection[ClientId]], tuple[ClientId, ...]],
    server: Any,
    now: Round,
    plan: RoundPlan,
    tolerance: FederationOptions,
    standing: Standing,
    kept: Kept,
    before: Mapping[Ticket, Sent],
) -> _Held:
    """One round.

    Args:
        choose: whom it asks, given the attempt and who is not to be asked.
        before: who is at work already.
    """
    start = time.perf_counter()
    broadcast = phase.broadcast(server, now)
    expect = expected(phase, server, broadcast, now)
    excluded, attempts, fields_down = standing.excluded, list[FailedAttempt](), dict[str, int]()
    hopeless = True  # in each attempt the quorum would have been missed even if every client with finite numbers had answered
    while True:
        chosen = choose(len(attempts), {*standing.excluded, *(ticket.client for ticket in before)})
        requests = Requests(phase, server, broadcast, chosen)
        present = Sent(now, broadcast, requests.common)
        tickets = transport.send("train", now, requests, tolerance.timeout_s, expect.max_bytes)
        at_work = {**before, **dict.fromkeys(tickets, present)}
        gathering: Gathering = RobustGathering(phase, server, broadcast, now, tolerance)
        if tolerance.aggregation == "mean":
            gathering = gather(phase, server, now, [ticket.client for ticket in at_work], expect.usual_bytes, kept)
        going_on: dict[Ticket, Sent] = {}
        try:
            got = collect(transport, at_work, phase, server, present, expect, plan, tolerance, standing, gathering)
            going_on = {ticket: at_work[ticket] for ticket in got.late} if plan.goes_on else {}
        finally:
            in_vain = transport.drop([ticket for ticket in at_work if ticket not in going_on])
        sizes, fields_down = requests.sizes(), _added([fields_down, *requests.fields().values()])
        standing = standing.after(got.samples, got.refused, tolerance.exclude_after)
        needed = tolerance.needed(min(plan.enough, len(at_work)))
        if len(got.samples) >= needed:
            break
        logger.info("%s round %d: too few usable answers, %d of %d", now.phase, now.index, len(got.samples), len(at_work))
        attempts.append(FailedAttempt(chosen, sizes, got.bytes_up, got.failures, got.refused))
        hopeless = hopeless and len(at_work) - len(got.repeats) < needed and bool(at_work)
        if len(attempts) == tolerance.round_attempts:
            raise (Diverged if hopeless else RunFailed)(_too_few(got, len(at_work), needed, now, tolerance, standing))
    after = gathering.aggregated()
    bytes_down = _added([*(attempt.bytes_down for attempt in attempts), sizes])
    bytes_up = _added([*(attempt.bytes_up for attempt in attempts), got.bytes_up, in_vain])
    fields_up = _added(list(got.fields.values()))
    if discarded := sum(bytes_up.values()) - sum(fields_up.values()):
        fields_up["discarded"] = discarded
    record = RoundRecord(
        phase=now.phase,
        index=now.index,
        number=now.number,
        cohort=chosen,
        bytes_down=bytes_down,
        bytes_up=bytes_up,
        fields_down=fields_down,
        fields_up=fields_up,
        steps={client: work.steps for client, work in got.work.items()},
        examples={client: work.examples for client, work in got.work.items()},
        loss={client: work.loss for client, work in got.work.items()},
        compute_s={client: work.compute_s for client, work in got.work.items()},
        failures=got.failures,
        server={},
        seconds=time.perf_counter() - start,
        notes=dict(transport.notes()),
        compute_clock=joined(work.compute_clock for work in got.work.values()),
        refused=got.refused,
        excluded=tuple(sorted(standing.excluded - excluded)),
        attempts=tuple(attempts),
        dropped=tuple(sorted(ticket.client for ticket in got.late if ticket not in going_on)),
        virtual_s=got.at_s,
        staleness=got.staleness if plan.buffered else {},
    )
    return _Held(after, record, standing, going_on)


def _too_few(got: Arrived, asked: int, needed: int, now: Round, tolerance: FederationOptions, standing: Standing) -> str:
    where, usable = f"{now.phase} round {now.index}", len(got.samples)
    if not asked:
        return f"{where}: none of the {len(standing.excluded)} clients is left that is not excluded (federation.exclude_after). {USABLE}"
    text = f"{where}: {usable or 'none'} of {asked} clients gave a usable answer"
    text += f", expected at least {needed} (federation.quorum)" if needed > 1 else ""
    text += f", the last of {tolerance.round_attempts} cohorts that were asked" if tolerance.round_attempts > 1 else ""
    return f"{text}; the first: {next(iter(got.failures.values()))}. {REPEATS if got.repeats else USABLE}"


def _added(tables: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for table in tables:
        for name, size in table.items():
            total[name] = total.get(name, 0) + size
    return total
