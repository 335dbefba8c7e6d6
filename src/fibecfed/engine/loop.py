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
from ..core.method import Method, Phase, Work
from ..core.records import FailedAttempt, RoundRecord
from ..core.rng import Key
from ..core.types import ClientId, Failure, Round
from ..core.wire import WireError, payload_bytes
from .checks import Expected, Refused, checked, expected, num_samples
from .failures import NEW, STOP, Standing, printable
from .gathering import USABLE, Gathering, InMemory, Kept, gather
from .options import FederationOptions
from .requests import Requests
from .transport import Transport, exchange

logger = logging.getLogger(__name__)

REPEATS = (
    "The checkpoint before it stays usable, but `fibecfed resume` would meet the same again: start a new run with a lower "
    'training.learning_rate, or with federation.on_failure = "drop" to continue without such clients'
)
STOPS = 'The checkpoint before it stays usable. With federation.on_failure = "drop" a run continues without such clients'


@dataclass(frozen=True)
class Step:
    """The state after one round.

    Attributes:
        number: rounds completed, over all phases.
        now: the round that was just completed.
        server: the server's state after it.
        standing: what is remembered of the clients' answers after it.
    """

    number: int
    now: Round
    server: Any
    record: RoundRecord
    standing: Standing


def schedule(method: Method[Any, Any]) -> tuple[Round, ...]:
    """Every round of a run, in order."""
    rows = [(phase.name, index, phase.num_rounds) for phase in method.phases for index in range(phase.num_rounds)]
    return tuple(Round(name, index, total, number) for number, (name, index, total) in enumerate(rows))


def cohort(
    phase: Phase[Any, Any, Any, Any],
    clients: Sequence[ClientId],
    per_round: int,
    key: Key,
    sampled_before: int,
    attempt: int = 0,
    excluded: Collection[ClientId] = (),
) -> tuple[ClientId, ...]:
    """Who takes part, sorted by id.

    Sampled rounds draw from `key.fold("cohort", n)`, n = number of sampled rounds before, so every method sees the same clients, whatever
    happened in earlier rounds. A further attempt at a round samples from the stream below, under its number.

    Args:
        excluded: their places go to the clients that come next in the order drawn.
    """
    if phase.cohort == "sampled":
        size, stream = per_round, key.fold("cohort", sampled_before)
    else:
        size, stream = phase.cohort, key.fold("cohort", phase.name)
    if size >= len(clients):
        return tuple(sorted(client for client in clients if client not in excluded))
    order: list[int] = (stream.fold("attempt", attempt) if attempt else stream).permutation(len(clients)).tolist()
    drawn = (clients[place] for place in order if clients[place] not in excluded)
    return tuple(sorted(islice(drawn, size)))


def planned(
    method: Method[Any, Any], clients: Sequence[ClientId], per_round: int, key: Key
) -> Iterator[tuple[Phase[Any, Any, Any, Any], Round, tuple[ClientId, ...]]]:
    """Every round of a run, in order, with its phase and the clients that it asks first; arguments as for `run`."""
    phases, sampled = {phase.name: phase for phase in method.phases}, 0
    for now in schedule(method):
        phase = phases[now.phase]
        yield phase, now, cohort(phase, clients, per_round, key, sampled)
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
) -> Iterator[Step]:
    """Yield the state after each round, from round `start` on.

    Args:
        clients: ids of all clients.
        per_round: clients of a sampled round.
        server: the server's state before round `start`.
        tolerance: what becomes of clients that fail, and of rounds in which too few answer.
        standing: what is remembered of the clients' answers before round `start`.
        kept: where phases keep something of each client; left out, in memory alone.

    Raises:
        RunFailed: a client failed and `tolerance.on_failure` is "stop", or too few answered in every attempt at a round.
        Diverged: the same, where a loss or a tensor is not finite, so that it would happen again.
    """
    phases = {phase.name: phase for phase in method.phases}
    kept = InMemory() if kept is None else kept
    rounds = schedule(method)
    sampled = sum(phases[now.phase].cohort == "sampled" for now in rounds[:start])
    for now in rounds[start:]:
        phase = phases[now.phase]
        choose = partial(cohort, phase, clients, per_round, key, sampled)
        server, record, standing = _round(phase, transport, choose, server, now, tolerance, standing, kept)
        sampled += phase.cohort == "sampled"
        yield Step(now.number + 1, now, server, record, standing)


@dataclass(frozen=True)
class _Exchange:
    """What came back from one cohort, by client; the messages are where they were gathered.

    Attributes:
        samples: the number of training examples that each usable answer names, if any.
        fields: bytes by message field of each usable answer.
        bytes_up: of every reply, rejected ones too.
        failures: reasons; `refused` are those of them that sent an answer, `repeats` those that would fail in the same way again.
    """

    cohort: tuple[ClientId, ...]
    samples: Mapping[ClientId, int | None]
    work: Mapping[ClientId, Work]
    fields: Mapping[ClientId, Mapping[str, int]]
    bytes_up: Mapping[ClientId, int]
    failures: Mapping[ClientId, str]
    refused: tuple[ClientId, ...]
    repeats: tuple[ClientId, ...]


def _round(
    phase: Phase[Any, Any, Any, Any],
    transport: Transport,
    choose: Callable[[int, Collection[ClientId]], tuple[ClientId, ...]],
    server: Any,
    now: Round,
    tolerance: FederationOptions,
    standing: Standing,
    kept: Kept,
) -> tuple[Any, RoundRecord, Standing]:
    start = time.perf_counter()
    broadcast = phase.broadcast(server, now)
    expect = expected(phase, server, broadcast, now)
    before, attempts, fields_down = standing, list[FailedAttempt](), dict[str, int]()
    hopeless = True  # in each attempt the quorum would have been missed even if every client with finite numbers had answered
    while True:
        chosen = choose(len(attempts), standing.excluded)
        requests = Requests(phase, server, broadcast, chosen)
        gathering = gather(phase, server, now, chosen, expect.usual_bytes, kept)
        got = _exchange(transport, requests, now, expect, tolerance, standing, gathering)
        sizes, fields_down = requests.sizes(), _added([fields_down, *requests.fields().values()])
        standing = standing.after(got.samples, got.refused, tolerance.exclude_after)
        if len(got.samples) >= tolerance.needed(len(chosen)):
            break
        logger.info("%s round %d: too few usable answers, %d of %d", now.phase, now.index, len(got.samples), len(chosen))
        attempts.append(FailedAttempt(chosen, sizes, got.bytes_up, got.failures, got.refused))
        hopeless = hopeless and len(chosen) - len(got.repeats) < tolerance.needed(len(chosen)) and bool(chosen)
        if len(attempts) == tolerance.round_attempts:
            raise (Diverged if hopeless else RunFailed)(_too_few(got, now, tolerance, standing))
    after = gathering.aggregated()
    bytes_down = _added([*(attempt.bytes_down for attempt in attempts), sizes])
    bytes_up = _added([*(attempt.bytes_up for attempt in attempts), got.bytes_up])
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
        excluded=tuple(sorted(standing.excluded - before.excluded)),
        attempts=tuple(attempts),
    )
    return after, record, standing


def _exchange(
    transport: Transport,
    requests: Mapping[ClientId, bytes],
    now: Round,
    expect: Expected,
    tolerance: FederationOptions,
    standing: Standing,
    gathering: Gathering,
) -> _Exchange:
    """Ask a cohort, and check and gather what it answers; everything in the order of client ids, whatever order it came in."""
    samples: dict[ClientId, int | None] = {}
    work: dict[ClientId, Work] = {}
    fields: dict[ClientId, Mapping[str, int]] = {}
    bytes_up: dict[ClientId, int] = {}
    failures: dict[ClientId, str] = {}
    refused: list[ClientId] = []
    repeats: list[ClientId] = []
    chosen = tuple(requests)
    for client, reply in exchange(transport, "train", now, requests, tolerance.timeout_s, expect.max_bytes):
        if isinstance(reply, Failure):
            failures[client] = printable(reply.reason)
            if reply.repeats:
                repeats.append(client)
        else:
            bytes_up[client] = len(reply)
            try:
                message, work[client] = checked(reply, expect, tolerance, standing.num_samples.get(client), copy=not gathering.folds)
                samples[client], fields[client] = num_samples(message), payload_bytes(message, len(reply))
                gathering.settle(client, message)
                del message  # where it is folded, its memory is free for the next one
            except (Refused, WireError) as error:
                failures[client] = printable(f"client {client}, {now.phase} round {now.index}: {error}")
                refused.append(client)
        del reply
        if client in failures:
            if tolerance.on_failure == "stop":
                raise Diverged(f"{failures[client]}. {REPEATS}") if client in repeats else RunFailed(f"{failures[client]}. {STOPS}")
            gathering.settle(client, None)
    for client in chosen:
        if client not in work and client not in failures:
            failures[client] = f"client {client}, {now.phase} round {now.index}: no answer"
    if failures and tolerance.on_failure == "stop":
        raise RunFailed(f"{next(iter(failures.values()))}. {STOPS}")
    answered = sorted(work)
    return _Exchange(
        cohort=chosen,
        samples={client: samples[client] for client in answered},
        work={client: work[client] for client in answered},
        fields={client: fields[client] for client in answered},
        bytes_up={client: bytes_up[client] for client in sorted(bytes_up)},
        failures={client: failures[client] for client in sorted(failures)},
        refused=tuple(sorted(refused)),
        repeats=tuple(sorted(repeats)),
    )


def _too_few(got: _Exchange, now: Round, tolerance: FederationOptions, standing: Standing) -> str:
    where, asked, usable = f"{now.phase} round {now.index}", len(got.cohort), len(got.samples)
    if not asked:
        return f"{where}: none of the {len(standing.excluded)} clients is left that is not excluded (federation.exclude_after). {USABLE}"
    needed = tolerance.needed(asked)
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
