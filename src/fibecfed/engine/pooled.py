"""A round under differential privacy for clients: answers become one noised mean, and nothing else of them is kept, recorded or looked at.

    next = aggregate(broadcast + (1/m) (sum over the cohort of clip_C(answer - broadcast) + N(0, z^2 C^2)))

m is the cohort's planned size, never the number of those who answered. A client that does not answer, or whose answer cannot be used,
counts as one that changed nothing: the round goes on as if nothing had happened, since what happened may follow from its data.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import torch

from ..core.errors import Diverged, RunFailed, UserError
from ..core.method import Method, Phase, Received, Work
from ..core.records import RoundRecord
from ..core.rng import Key
from ..core.trees import first_not_finite
from ..core.types import ClientId, Failure, Params, Round
from ..core.wire import WireError, decode, encode, payload_bytes, tensors_of
from ..privacy.adaptive import LANE, AdaptiveClip
from ..privacy.clip import Integers, clipped_or_whole, digest, grid_step, nothing, on_grid
from ..privacy.fixed import ClippedGrid, NotASum
from ..privacy.ledger import EVALUATION, BudgetSpent, Ledger, Release
from ..privacy.noise import noised
from ..privacy.options import HELPER
from ..privacy.participation import cyclic
from .checks import OVERHEAD_BYTES
from .gathering import USABLE
from .requests import Requests
from .runtime import frame, named, unframe
from .shared_fields import pooled_fields, shared_of, with_shared
from .summing import SumPool, SumRequest
from .transport import Transport, exchange

logger = logging.getLogger(__name__)

POOLED = "mean"
"""What the one answer is called that a method aggregates."""


@dataclass(frozen=True)
class MeanPool:
    """How the answers of a run are pooled.

    Attributes:
        clients: all of the run.
        size: m, clients of a round.
        key: the run's key, of the order in which clients take part; nothing secret.
        noise_multiplier: z.
        clip_norm: C.
        ledger: where each release is charged.
        sums: how the clients' updates are summed where the server sees no single one; None: it clips and adds them.
        adaptive: C as it follows the updates' norms; None: it is `clip_norm` in every round.
    """

    clients: Sequence[ClientId]
    size: int
    key: Key
    noise_multiplier: float
    clip_norm: float
    ledger: Ledger
    sums: SumPool | None = None
    adaptive: AdaptiveClip | None = None

    @property
    def moved_by(self) -> float:
        """The L2 norm by which one client moves the sum of the next round."""
        return self.clip_norm if self.adaptive is None else self.adaptive.moved_by

    def cohort(self, number: int) -> tuple[ClientId, ...]:
        """Who takes part in round `number` of the run."""
        return cyclic(self.clients, self.size, self.key, number)

    def affords(self, number: int, scored: Sequence[ClientId] = ()) -> bool:
        """Whether round `number` stays within the budget, or was charged already, as one that is computed again.

        Args:
            scored: clients that an evaluation before it is charged to.
        """
        chosen = self.cohort(number)
        times = 1 + (self.affords_evaluation(number - 1, scored) and not self.ledger.charged(number - 1, EVALUATION)) * any(
            client in scored for client in chosen
        )
        return self.ledger.charged(number) or self.ledger.affords(chosen, self.noise_multiplier, times)

    def affords_evaluation(self, number: int, clients: Sequence[ClientId]) -> bool:
        """Whether scores after round `number` stay within the budget, or were charged already."""
        return self.ledger.charged(number, EVALUATION) or self.ledger.affords(clients, self.noise_multiplier)


def why_unpooled(method: Method[Any, Any]) -> str | None:
    """Why the server cannot be given one answer that stands for all of a round, as part of a sentence; None: it can."""
    for phase in method.phases:
        if not pooled_fields(phase):
            return f'in its stage "{phase.name}" clients send no update of what they got, which is not supported so far'
        if not phase.pools or not _can_pool(phase):
            return f'in its stage "{phase.name}" the server uses more of the clients\' answers than the mean of their updates'
    return None


def reject_unpooled(method: Method[Any, Any], kind: str) -> None:
    """A method whose server needs more of the answers than their mean.

    Raises:
        UserError: naming the method and the stage.
    """
    if (why := why_unpooled(method)) is not None:
        raise UserError(
            f'privacy.unit: got "client", which the method {kind} cannot be run with: {why}; {instead_of(kind)} (docs/privacy.md says how)'
        )


def instead_of(kind: str) -> str:
    """What to set for a method whose server needs more of the answers than their mean."""
    if kind == "fibecfed":
        return 'set `method.layers.rule` = "last" without `method.finetune`, or choose another method, such as lora'
    return "choose another method, such as lora, or leave that stage out"


def _can_pool(phase: Phase[Any, Any, Any, Any]) -> bool:
    """Whether a phase's message can be made of a mean alone, and every client is sent the same."""
    shared = pooled_fields(phase)
    always = {one.name for one in fields(phase.up) if one.default is MISSING and one.default_factory is MISSING}
    same = phase.cohort == "sampled" and phase.address is None and phase.keep is None and phase.problem is None
    return same and always <= {*shared, "num_samples"}


def pooled_round(
    phase: Phase[Any, Any, Any, Any], transport: Transport, server: Any, now: Round, timeout_s: float | None, pool: MeanPool
) -> tuple[Any, RoundRecord]:
    """One round: the server's state after it, and its record, which holds nothing that follows from a client's data but that state.

    Raises:
        RunFailed: nobody answered; nothing was charged.
        BudgetSpent: the release would pass the budget; nothing was charged.
        Diverged: the model is not finite after it.
    """
    chosen = pool.cohort(now.number)
    if not pool.affords(now.number):
        raise BudgetSpent
    broadcast = phase.broadcast(server, now)
    sent = shared_of(broadcast, pooled_fields(phase))
    asked = SumRequest(server, broadcast, sent, chosen, "drop")
    got = (
        _added(phase, transport, now, asked, timeout_s, pool)
        if pool.sums is None
        else _summed(phase, transport, now, asked, timeout_s, pool.sums)
    )
    total, heard, moved_by = got.total, got.heard, pool.moved_by
    silent = {client: f"client {client}: no answer" for client in chosen if client not in heard}
    if not heard:
        raise RunFailed(f"{now.phase} round {now.index}: none of {len(chosen)} clients answered. {USABLE}")
    release = Release(
        round=now.number,
        phase=now.phase,
        numbers=sum(value.size for value in total.values()),
        z=pool.noise_multiplier,
        clip=moved_by,
        divisor=len(chosen),
        sum=digest(total, moved_by),
        charged=chosen,
    )
    key = pool.ledger.charge(release)
    released = noised(total, moved_by, pool.noise_multiplier, key)
    mean = mean_of(released, sent, release)
    if pool.adaptive is not None:
        pool.adaptive.follow(released, len(chosen))
    after = phase.aggregate(server, [Received(POOLED, with_shared(phase, mean))], now)
    for field, tensors in tensors_of(after).items():
        if (bad := first_not_finite(tensors)) is not None:
            raise Diverged(f"{now.phase} round {now.index}: {named(field, bad)} of the server's state is not finite after it. {USABLE}")
    record = RoundRecord(
        phase=now.phase,
        index=now.index,
        number=now.number,
        cohort=chosen,
        bytes_down=got.bytes_down,
        bytes_up=got.bytes_up,
        fields_down=got.fields_down,
        fields_up=got.fields_up,
        steps={},
        examples={},
        loss={},
        compute_s={},
        failures=silent,
        server={},
        seconds=0.0,  # of the wall: they tell how much the clients hold
        notes={HELPER: got.helper} if got.helper else {},
    )
    return after, record


@dataclass(frozen=True)
class _Total:
    """The sum of a round's clipped updates, in steps of the grid; who is in it; bytes by client and by field, and the helper's."""

    total: Integers
    heard: Collection[ClientId]
    bytes_down: Mapping[ClientId, int]
    bytes_up: Mapping[ClientId, int]
    fields_down: Mapping[str, int]
    fields_up: Mapping[str, int]
    helper: Mapping[str, int]


def _added(
    phase: Phase[Any, Any, Any, Any], transport: Transport, now: Round, asked: SumRequest, timeout_s: float | None, pool: MeanPool
) -> _Total:
    """Clipped and added by the server."""
    sent, chosen = asked.sent, asked.cohort
    requests = Requests(phase, asked.server, asked.broadcast, chosen)
    likeness = frame(encode(with_shared(phase, sent)), Work())
    total, heard = {**nothing(sent), **_no_lane(pool)}, set[ClientId]()
    for client, reply in exchange(transport, "train", now, requests, timeout_s, len(likeness) + OVERHEAD_BYTES):
        if isinstance(reply, Failure) or client in heard or client not in chosen:
            continue
        heard.add(client)
        update = _update(phase, reply, sent, pool)
        if update is None:
            logger.info("%s round %d: the answer of client %s cannot be used and counts as no change", now.phase, now.index, client)
            continue
        for name, value in update.items():
            total[name] += value
    up = payload_bytes(with_shared(phase, sent), len(likeness))
    return _Total(
        total,
        heard,
        requests.sizes(),
        dict.fromkeys(sorted(heard), len(likeness)),
        _times(next(iter(requests.fields().values())), len(chosen)),
        _times(up, len(heard)),
        {},
    )


def _summed(
    phase: Phase[Any, Any, Any, Any], transport: Transport, now: Round, asked: SumRequest, timeout_s: float | None, sums: SumPool
) -> _Total:
    """Clipped by the clients, and summed so that the server sees no single one: the same integers."""
    assert isinstance(sums.adding, ClippedGrid)
    got = sums.sum_of(phase, transport, now, asked, timeout_s)
    try:
        total = sums.adding.integers(got.total, asked.sent)
    except NotASum as error:
        raise RunFailed(f"{now.phase} round {now.index}: what came does not add up to a sum of updates: {error}. {USABLE}") from None
    return _Total(total, got.clients, got.bytes_down, got.bytes_up, *got.fields(asked), got.helper)


def mean_of(total: Integers, sent: Params, release: Release) -> dict[str, torch.Tensor]:
    """sent + step total / m, in the dtypes of what was sent."""
    factor = grid_step(release.clip) / release.divisor
    return {name: (value.double().cpu() + factor * torch.from_numpy(total[name])).to(value) for name, value in sent.items()}


def _update(phase: Phase[Any, Any, Any, Any], reply: bytes, sent: Params, pool: MeanPool) -> Integers | None:
    """What a reply adds to the sum; None where it is not what a client sends."""
    adaptive = pool.adaptive
    try:
        encoded, _ = unframe(reply)
        shared = shared_of(decode(phase.up, encoded, copy=False), pooled_fields(phase))
        update, within = clipped_or_whole(shared, sent, pool.clip_norm if adaptive is None else adaptive.norm)
        found = on_grid(update, pool.moved_by)
        return found if adaptive is None else found | adaptive.lane(within)
    except (WireError, ValueError, TypeError, RuntimeError):
        return None


def _no_lane(pool: MeanPool) -> Integers:
    return {} if pool.adaptive is None else {LANE: np.zeros(1, np.int64)}


def _times(table: Mapping[str, int], factor: int) -> dict[str, int]:
    return {name: size * factor for name, size in table.items()}
