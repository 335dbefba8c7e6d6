"""The federated loop: sample, broadcast, collect, aggregate. One generator over rounds; everything else is written around it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..core.errors import RunFailed
from ..core.method import Method, Phase, Received, Work
from ..core.records import RoundRecord
from ..core.rng import Key
from ..core.types import ClientId, Failure, Round
from ..core.wire import WireError, decode, encode, payload_bytes
from .client import NotFinite, check_finite, unframe
from .simulator import Transport

_ADVICE = (
    "The checkpoint before it stays usable, but `fibecfed resume` would meet the same again: start anew with a lower "
    'training.learning_rate, or with federation.on_failure = "drop" to go on without such clients'
)


@dataclass(frozen=True)
class Step:
    """The state after one round.

    Attributes:
        number: rounds completed, over all phases.
        now: the round that was just completed.
        server: the server's state after it.
    """

    number: int
    now: Round
    server: Any
    record: RoundRecord


def schedule(method: Method[Any, Any]) -> tuple[Round, ...]:
    """Every round of a run, in order."""
    rows = [(phase.name, index, phase.num_rounds) for phase in method.phases for index in range(phase.num_rounds)]
    return tuple(Round(name, index, total, number) for number, (name, index, total) in enumerate(rows))


def cohort(
    phase: Phase[Any, Any, Any, Any], clients: Sequence[ClientId], per_round: int, key: Key, sampled_before: int
) -> tuple[ClientId, ...]:
    """Who takes part, sorted by id.

    Sampled rounds draw from `key.fold("cohort", n)`, n = number of sampled rounds before, so every method sees the same clients.
    """
    if phase.cohort == "sampled":
        size, stream = per_round, key.fold("cohort", sampled_before)
    else:
        size, stream = phase.cohort, key.fold("cohort", phase.name)
    if size >= len(clients):
        return tuple(sorted(clients))
    drawn = stream.permutation(len(clients))[:size]
    return tuple(sorted(clients[int(i)] for i in drawn))


def run(
    method: Method[Any, Any],
    transport: Transport,
    clients: Sequence[ClientId],
    *,
    per_round: int,
    key: Key,
    server: Any,
    start: int = 0,
    on_failure: Literal["stop", "drop"] = "stop",
) -> Iterator[Step]:
    """Yield the state after each round, from round `start` on.

    Args:
        clients: ids of all clients.
        per_round: clients of a sampled round.
        server: the server's state before round `start`.
        on_failure: a client that failed stops the run, or is left out of the round and recorded.

    Raises:
        RunFailed: a client failed and `on_failure` is "stop", or nobody answered.
    """
    phases = {phase.name: phase for phase in method.phases}
    rounds = schedule(method)
    sampled = sum(phases[now.phase].cohort == "sampled" for now in rounds[:start])
    for now in rounds[start:]:
        phase = phases[now.phase]
        chosen = cohort(phase, clients, per_round, key, sampled)
        sampled += phase.cohort == "sampled"
        server, record = _round(phase, transport, chosen, server, now, on_failure)
        yield Step(now.number + 1, now, server, record)


def _round(
    phase: Phase[Any, Any, Any, Any], transport: Transport, chosen: Sequence[ClientId], server: Any, now: Round, on_failure: str
) -> tuple[Any, RoundRecord]:
    start = time.perf_counter()
    broadcast = phase.broadcast(server, now)
    blob = encode(broadcast)
    received: dict[ClientId, Any] = {}
    work: dict[ClientId, Work] = {}
    bytes_up: dict[ClientId, int] = {}
    failures: dict[ClientId, str] = {}
    for client, reply in transport.exchange("train", now, dict.fromkeys(chosen, blob)):
        try:
            if isinstance(reply, Failure):
                raise NotFinite(reply.reason)
            encoded, work_done = unframe(reply)
            message = decode(phase.up, encoded)
            check_finite(message, phase, client, now)
        except (NotFinite, WireError) as error:
            reason = f"client {client}, {now.phase} round {now.index}: {error}" if isinstance(error, WireError) else str(error)
            if on_failure == "stop":
                raise RunFailed(f"{reason}. {_ADVICE}") from None
            failures[client] = reason
            continue
        received[client], work[client], bytes_up[client] = message, work_done, len(reply)
    if not received:
        first = next(iter(failures.values()))
        raise RunFailed(f"{now.phase} round {now.index}: none of {len(chosen)} clients gave a usable answer; the first: {first}. {_ADVICE}")
    answers = [Received(client, received[client]) for client in sorted(received)]
    after = phase.aggregate(server, answers, now)
    record = RoundRecord(
        phase=now.phase,
        index=now.index,
        number=now.number,
        cohort=tuple(chosen),
        bytes_down=dict.fromkeys(chosen, len(blob)),
        bytes_up=bytes_up,
        fields_down={name: size * len(chosen) for name, size in payload_bytes(broadcast, len(blob)).items()},
        fields_up=_added([payload_bytes(answer.message, bytes_up[answer.client]) for answer in answers]),
        steps={client: work[client].steps for client in sorted(work)},
        examples={client: work[client].examples for client in sorted(work)},
        loss={client: work[client].loss for client in sorted(work)},
        compute_s={client: work[client].compute_s for client in sorted(work)},
        failures=failures,
        server={},
        seconds=time.perf_counter() - start,
        notes=dict(transport.notes()),
    )
    return after, record


def _added(tables: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for table in tables:
        for name, size in table.items():
            total[name] = total.get(name, 0) + size
    return total
