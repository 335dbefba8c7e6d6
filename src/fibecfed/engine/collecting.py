"""The answers of a round as they arrive: checked, and gathered, until there are enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import Diverged, RunFailed
from ..core.method import Phase, Work
from ..core.types import ClientId, Failure
from ..core.wire import WireError, payload_bytes
from .checks import Expected, Refused, checked, expected, num_samples
from .failures import REPEATS, STOPS, Standing, printable
from .gathering import Gathering
from .options import FederationOptions
from .schedules import RoundPlan, Sent, moved, staleness_weight
from .transport import Ticket, Transport


@dataclass(frozen=True)
class Arrived:
    """What came back from the clients at work, by client; the messages are where they were gathered.

    Attributes:
        samples: the number of training examples that each usable answer names, if any.
        fields: bytes by message field of each usable answer.
        bytes_up: of every reply, rejected ones too.
        failures: reasons; `refused` are those of them that sent an answer, `repeats` those that would fail in the same way again.
        staleness: rounds that ended between each usable answer's request and this round.
        at_s: virtual time of the last answer; None where time is not modelled.
        late: the tickets that were not waited for.
    """

    samples: Mapping[ClientId, int | None]
    work: Mapping[ClientId, Work]
    fields: Mapping[ClientId, Mapping[str, int]]
    bytes_up: Mapping[ClientId, int]
    failures: Mapping[ClientId, str]
    refused: tuple[ClientId, ...]
    repeats: tuple[ClientId, ...]
    staleness: Mapping[ClientId, int]
    at_s: float | None
    late: tuple[Ticket, ...]


def collect(
    transport: Transport,
    at_work: Mapping[Ticket, Sent],
    phase: Phase[Any, Any, Any, Any],
    server: Any,
    present: Sent,
    expect: Expected,
    plan: RoundPlan,
    tolerance: FederationOptions,
    standing: Standing,
    gathering: Gathering,
) -> Arrived:
    """Receive, check and gather answers until there are enough; the results are in the order of client ids.

    Args:
        present: what the clients of this round are sent; `expect` is what answers to it must look like.

    Raises:
        RunFailed: a client failed and `tolerance.on_failure` is "stop".
        Diverged: the same, because of a loss that is not finite.
    """
    samples: dict[ClientId, int | None] = {}
    work: dict[ClientId, Work] = {}
    fields: dict[ClientId, Mapping[str, int]] = {}
    bytes_up: dict[ClientId, int] = {}
    failures: dict[ClientId, str] = {}
    staleness: dict[ClientId, int] = {}
    refused: list[ClientId] = []
    repeats: list[ClientId] = []
    at_s: float | None = None
    waiting = dict(at_work)
    for answer in transport.receive(list(at_work)):
        client, reply, sent, at_s = answer.ticket.client, answer.reply, waiting.pop(answer.ticket), answer.at_s
        del answer
        if isinstance(reply, Failure):
            failures[client] = printable(reply.reason)
            if reply.repeats:
                repeats.append(client)
        else:
            bytes_up[client] = len(reply)
            try:
                like = expect if sent is present else expected(phase, server, sent.broadcast, sent.now)
                message, work[client] = checked(reply, like, tolerance, standing.num_samples.get(client), copy=not gathering.folds)
                samples[client], fields[client] = num_samples(message), payload_bytes(message, len(reply))
                staleness[client] = present.now.index - sent.now.index
                if staleness[client]:
                    message = moved(message, sent.broadcast, present.broadcast, staleness_weight(staleness[client]))
                gathering.settle(client, message)
                del message  # where it is folded, its memory is free for the next one
            except (Refused, WireError) as error:
                failures[client] = printable(f"client {client}, {sent.now.phase} round {sent.now.index}: {error}")
                refused.append(client)
        del reply
        if client in failures:
            if tolerance.on_failure == "stop":
                raise Diverged(f"{failures[client]}. {REPEATS}") if client in repeats else RunFailed(f"{failures[client]}. {STOPS}")
            gathering.settle(client, None)
        if len(work) == plan.enough:
            break
    else:
        for ticket in waiting:
            failures[ticket.client] = f"client {ticket.client}, {ticket.now.phase} round {ticket.now.index}: no answer"
        if failures and tolerance.on_failure == "stop":
            raise RunFailed(f"{next(iter(failures.values()))}. {STOPS}")
        waiting.clear()
    answered = sorted(work)
    return Arrived(
        samples={client: samples[client] for client in answered},
        work={client: work[client] for client in answered},
        fields={client: fields[client] for client in answered},
        bytes_up={client: bytes_up[client] for client in sorted(bytes_up)},
        failures={client: failures[client] for client in sorted(failures)},
        refused=tuple(sorted(refused)),
        repeats=tuple(sorted(repeats)),
        staleness={client: staleness[client] for client in answered},
        at_s=at_s,
        late=tuple(waiting),
    )
