"""When a training round ends (`federation.schedule`): with the last answer, with enough of more than are needed, or with every few.

| schedule | asked | ends with | the others |
|---|---|---|---|
| synchronous | m clients | all their answers | |
| over-select | f m clients, rounded up | m answers | are dropped (Bonawitz et al., MLSys 2019) |
| buffered | as many as are missing from m at work | k answers | go on (FedBuff: Nguyen et al., AISTATS 2022) |

Phases with a fixed cohort, and those of one round, are synchronous under "buffered". Under "over-select" a phase that asks a fixed number
of clients, as one that measures, ends with the first so many answers too; one that asks everybody waits for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from torch import Tensor

from ..core.errors import UserError
from ..core.method import Method, Phase
from ..core.types import ClientId, Round
from ..core.wire import decode, field_kinds, tensors_of
from .options import FederationOptions
from .transport import Ticket, Transport


@dataclass(frozen=True)
class RoundPlan:
    """How a round is held.

    Attributes:
        at_work: clients that are, once it has begun.
        enough: usable answers that end it.
        goes_on: whether those who have not answered by then stay at work; else they are dropped.
        buffered: whether answers of earlier rounds may be among them.
    """

    at_work: int
    enough: int
    goes_on: bool = False
    buffered: bool = False


def plan_of(phase: Phase[Any, Any, Any, Any], now: Round, options: FederationOptions, per_round: int) -> RoundPlan:
    """How a round of a phase is held.

    Args:
        per_round: m, clients of a sampled round.
    """
    wanted = per_round if phase.cohort == "sampled" else phase.cohort
    if options.schedule == "over-select" and "over-select" in phase.schedules:
        return RoundPlan(math.ceil(options.over_selection * wanted - 1e-9), wanted)
    if phase.cohort != "sampled":
        return RoundPlan(wanted, wanted)
    if options.schedule == "buffered" and _is_buffered(phase):
        enough = math.ceil(per_round / 2) if options.buffer_size is None else min(options.buffer_size, per_round)
        return RoundPlan(per_round, enough, goes_on=now.index + 1 < now.num_rounds, buffered=True)
    return RoundPlan(per_round, per_round)


def _is_buffered(phase: Phase[Any, Any, Any, Any]) -> bool:
    return phase.cohort == "sampled" and phase.num_rounds > 1


def reject_schedule(method: Method[Any, Any], options: FederationOptions, kind: str) -> None:
    """A schedule that a method cannot serve.

    Args:
        kind: what the method is called.

    Raises:
        UserError: naming the method and why.
    """
    schedule = options.schedule
    for phase in method.phases:
        if phase.cohort == "sampled" and schedule not in phase.schedules:
            others = [f'"{other}"' for other in ("synchronous", "over-select", "buffered") if other in phase.schedules]
            raise UserError(
                f'federation.schedule: got "{schedule}", which the method {kind} cannot be run with: {_why(method, phase, schedule)}; '
                f"set {' or '.join(others)}" + (', or `method.preset` = "paper"' if kind == "fibecfed" and schedule == "buffered" else "")
            )


def _why(method: Method[Any, Any], phase: Phase[Any, Any, Any, Any], schedule: str) -> str:
    if schedule == "over-select":
        return "what a dropped client remembers would no longer fit what the server remembers"
    if len({other.down for other in method.phases if other.cohort == "sampled"}) > 1:
        return "answers to one of its stages cannot be added to what another one trains"
    if phase.address is not None:
        return "each client is sent a message of its own, which an answer cannot be compared with later"
    always = {one.name for one in fields(phase.up) if one.default is MISSING and one.default_factory is MISSING}
    if phase.keep is not None or always - field_kinds(phase.down).keys() - {"num_samples"}:
        return "its server computes with more than the change of the tensors that it sent"
    return "its answers to an earlier model are not changes that could be added to a later one"


# ---- answers to earlier rounds


@dataclass(frozen=True)
class Sent:
    """What the clients of a round were sent.

    Attributes:
        blob: encoded; None where each client gets a message of its own.
    """

    now: Round
    broadcast: Any
    blob: bytes | None


@dataclass(frozen=True)
class UnderWay:
    """A request whose answer is still to come, as a checkpoint holds it."""

    client: ClientId
    now: Round
    blob: bytes


def under_way(at_work: Mapping[Ticket, Sent]) -> tuple[UnderWay, ...]:
    """The requests of tickets that were kept open, in the order in which they were sent."""
    found: list[UnderWay] = []
    for ticket in sorted(at_work, key=lambda ticket: ticket.number):
        blob = at_work[ticket].blob
        assert blob is not None, "reject_schedule lets no phase with addressed messages go on"
        found.append(UnderWay(ticket.client, ticket.now, blob))
    return tuple(found)


def sent_again(
    requests: Sequence[UnderWay], phases: Mapping[str, Phase[Any, Any, Any, Any]], transport: Transport, timeout_s: float | None
) -> dict[Ticket, Sent]:
    """Send what was under way when a run stopped: clients compute it once more, from the states before it."""
    found: dict[Ticket, Sent] = {}
    for now, blob in dict.fromkeys((request.now, request.blob) for request in requests):
        sent = Sent(now, decode(phases[now.phase].down, blob), blob)
        blobs = {request.client: blob for request in requests if request.now == now}
        found.update(dict.fromkeys(transport.send("train", now, blobs, timeout_s), sent))
    return found


def staleness_weight(staleness: int) -> float:
    """1 / sqrt(1 + s) (Nguyen et al. 2022), s = rounds that ended between the broadcast that a client got and its answer."""
    return 1.0 / math.sqrt(1.0 + staleness)


def moved(message: Any, base: Any, present: Any, weight: float) -> Any:
    """An answer to an earlier broadcast as one to the present broadcast that changed it by `weight` times as much.

    A client k that was sent w_v and answers w_k is taken to answer w + weight (w_k - w_v), w = the present broadcast. The mean over
    answers by n_k is then w + sum_k n_k weight_k (w_k - w_v) / sum_k n_k, FedBuff's step; it divides by all of n_k, not by the weighted
    ones, so that late answers move less. A server optimiser gets that change as its gradient.

    Args:
        message: its fields of tensors are fields of the broadcast.
        base: the broadcast that it answers.
        present: that of the round under way.
    """
    before, now, kinds = tensors_of(base), tensors_of(present), field_kinds(type(message))
    fields: dict[str, Any] = {}
    for field, tensors in tensors_of(message).items():
        found = {name: _moved(value, before[field][name], now[field][name], weight) for name, value in tensors.items()}
        fields[field] = found[""] if kinds[field] == "tensor" else found
    return replace(message, **fields)


def _moved(value: Tensor, base: Tensor, present: Tensor, weight: float) -> Tensor:
    return (present.double() + weight * (value.double() - base.double())).to(value)
