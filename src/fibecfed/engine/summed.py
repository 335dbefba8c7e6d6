"""A round of which the server gets the sum of the clients' weighted updates and nothing else of them."""

from __future__ import annotations

import time
from typing import Any

from ..core.errors import Diverged, RunFailed, UserError
from ..core.method import Method, Phase, Received
from ..core.records import RoundRecord
from ..core.trees import first_not_finite
from ..core.types import ClientId, Round
from ..core.wire import tensors_of
from ..privacy.fixed import FixedPoint, NotASum, moved
from ..privacy.options import HELPER
from .failures import printable
from .gathering import USABLE
from .options import FederationOptions
from .pooled import instead_of, why_unpooled
from .runtime import named
from .shared_fields import pooled_fields, shared_of, with_shared
from .summing import SumPool, SumRequest
from .transport import Transport

SUMMED = "sum"
"""What the one answer is called that a method aggregates."""


def reject_unsummed(method: Method[Any, Any], kind: str, aggregation: str) -> None:
    """A method whose server needs more of the answers than their mean.

    Args:
        aggregation: the value of `privacy.secure_aggregation`.

    Raises:
        UserError: naming the method and the stage.
    """
    if (why := why_unpooled(method)) is not None:
        raise UserError(
            f'privacy.secure_aggregation: got "{aggregation}", which the method {kind} cannot be run with: {why}; {instead_of(kind)} '
            "(docs/privacy.md says how)"
        )


def summed_round(
    phase: Phase[Any, Any, Any, Any],
    transport: Transport,
    cohort: tuple[ClientId, ...],
    server: Any,
    now: Round,
    tolerance: FederationOptions,
    pool: SumPool,
) -> tuple[Any, RoundRecord]:
    """One round: the server's state after it, and its record, which tells of single clients only who answered and how many bytes.

    Raises:
        RunFailed: a client failed and `tolerance.on_failure` is "stop", fewer answered than a sum must be of, or what came is no sum.
        Diverged: the model is not finite after it.
    """
    assert isinstance(pool.adding, FixedPoint)
    start, where = time.perf_counter(), f"{now.phase} round {now.index}"
    broadcast = phase.broadcast(server, now)
    names = pooled_fields(phase)
    sent = shared_of(broadcast, names)
    asked = SumRequest(server, broadcast, sent, cohort, tolerance.on_failure)
    got = pool.sum_of(phase, transport, now, asked, tolerance.timeout_s)
    try:
        mean = pool.adding.mean(got.total, sent, len(got.clients))
    except NotASum as error:
        raise RunFailed(f"{where}: what {len(got.clients)} clients sent does not add up to a sum of updates: {error}. {USABLE}") from None
    after = phase.aggregate(server, [Received(SUMMED, with_shared(phase, moved(sent, mean.update)))], now)
    for field, tensors in tensors_of(after).items():
        if (bad := first_not_finite(tensors)) is not None:
            raise Diverged(f"{where}: {named(field, bad)} of the server's state is not finite after it. {USABLE}")
    fields_down, fields_up = got.fields(asked)
    helped = {HELPER: got.helper} if got.helper else {}
    record = RoundRecord(
        phase=now.phase,
        index=now.index,
        number=now.number,
        cohort=cohort,
        bytes_down=dict(sorted(got.bytes_down.items())),
        bytes_up=dict(sorted(got.bytes_up.items())),
        fields_down=fields_down,
        fields_up=fields_up,
        steps={},
        examples={},
        loss={},
        compute_s={},
        failures={client: printable(got.failures[client]) for client in sorted(got.failures)},
        server={},
        seconds=time.perf_counter() - start,
        notes=helped | {SUMMED: {"num_samples": mean.num_samples, "beyond_range": mean.saturated}},
    )
    return after, record
