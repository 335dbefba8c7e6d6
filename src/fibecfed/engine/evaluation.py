"""Scoring: every client counts on its own slice with its own model, the server on everything with the global one where they differ."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core import metrics
from ..core.errors import Diverged, RunFailed
from ..core.method import Method
from ..core.records import EvalRecord
from ..core.task import Task
from ..core.types import ClientId, Examples, Failure, Round
from ..core.wire import WireError
from .checks import MAX_COUNTS_BYTES, Refused, checked_counts, counted
from .client import Counts, confusion
from .failures import NEW, STOP, Standing, Tolerance, printable
from .loop import REPEATS, STOPS, USABLE, addressed
from .simulator import Transport


@dataclass(frozen=True)
class Evaluator:
    """Scores a method's state.

    Attributes:
        test, validation: everything, for the global model: the clients' slices together.
        batch_size: examples a forward pass.
        tolerance: what becomes of clients that fail; a quorum is not asked for.
    """

    method: Method[Any, Any]
    task: Task
    transport: Transport
    clients: Sequence[ClientId]
    test: Examples
    validation: Examples
    batch_size: int
    tolerance: Tolerance = STOP

    def after(self, server: Any, now: Round, rounds: int, standing: Standing = NEW) -> tuple[EvalRecord, Standing]:
        """Scores after the round `now`: an exchange like the others, its bytes and seconds recorded apart.

        Args:
            standing: what is remembered of the clients' answers; those excluded are not asked.

        Returns:
            The scores, and the standing after them.

        Raises:
            RunFailed: a client failed and `tolerance.on_failure` is "stop", or none gave usable counts.
            Diverged: the same, because of losses that are not finite.
        """
        start = time.perf_counter()
        phase = next(phase for phase in self.method.phases if phase.name == now.phase)
        asked = [client for client in self.clients if client not in standing.excluded]
        _, requests = addressed(phase, server, phase.broadcast(server, now), asked)
        counts: dict[ClientId, Counts] = {}
        failures: dict[ClientId, str] = {}
        repeats = 0
        bytes_up = 0
        for client, reply in self.transport.exchange("evaluate", now, requests, self.tolerance.timeout_s, MAX_COUNTS_BYTES):
            if isinstance(reply, Failure):
                failures[client] = printable(reply.reason)
                repeats += reply.repeats
                continue
            bytes_up += len(reply)
            try:
                counts[client] = checked_counts(reply, self.task.num_classes, self.tolerance.max_samples, standing.counted.get(client))
            except (Refused, WireError) as error:
                failures[client] = printable(f"client {client}: {error}")
        failures.update({client: f"client {client}: no answer" for client in asked if client not in counts and client not in failures})
        if failures and (self.tolerance.on_failure == "stop" or not counts):
            text = f"evaluation after {rounds} rounds: {failures[min(failures)]}"
            if repeats == len(failures):
                raise Diverged(f"{text}. {REPEATS}")
            raise RunFailed(f"{text}. {STOPS if self.tolerance.on_failure == 'stop' else USABLE}")
        pooled = pooled_validation = metrics.zeros(self.task.num_classes)
        loss = 0.0
        for client in asked:  # not in the order of arrival, on which the last bits of the sum would hang
            if client in counts:
                pooled = metrics.add(pooled, counts[client].test.tolist())
                pooled_validation = metrics.add(pooled_validation, counts[client].validation.tolist())
                loss += counts[client].test_loss
        mean_loss = loss / max(1, _number(pooled))
        complete = (_number(pooled), _number(pooled_validation)) == (len(self.test), len(self.validation))
        if self.method.is_personal or not complete:
            server_counts, server_validation, server_loss = self._global(server)
        else:  # the clients have tested that very model, on just these examples
            server_counts, server_validation, server_loss = pooled, pooled_validation, mean_loss
        record = EvalRecord(
            rounds=rounds,
            clients={client: counts[client].test.tolist() for client in sorted(counts)},
            pooled=pooled,
            pooled_validation=pooled_validation,
            server=server_counts,
            server_validation=server_validation,
            loss_pooled=mean_loss,
            loss_server=server_loss,
            bytes_down=sum(map(len, requests.values())),
            bytes_up=bytes_up,
            seconds=time.perf_counter() - start,
            failures={client: failures[client] for client in sorted(failures)},
        )
        return record, standing.evaluated({client: counted(counts[client]) for client in record.clients})

    def untrained(self, server: Any) -> EvalRecord:
        """Scores of the model at the start, which is the same for everybody; nothing is sent."""
        start = time.perf_counter()
        counts, validation, loss = self._global(server)
        return EvalRecord(0, {}, counts, validation, counts, validation, loss, loss, 0, 0, time.perf_counter() - start)

    def _global(self, server: Any) -> tuple[list[list[int]], list[list[int]], float]:
        params = self.method.server_params(server)
        test, loss = confusion(self.task, params, self.test, self.batch_size)
        validation, _ = confusion(self.task, params, self.validation, self.batch_size)
        return test.tolist(), validation.tolist(), loss / max(1, int(test.sum()))


def worst_decile(clients: Mapping[ClientId, Sequence[Sequence[int]]]) -> float | None:
    """10th percentile of the clients' accuracies, interpolated linearly; of those with test examples. None where there are none."""
    scores = sorted(metrics.accuracy(counts) for counts in clients.values() if _number(counts))
    if not scores:
        return None
    place = 0.1 * (len(scores) - 1)
    low = int(place)
    high = min(low + 1, len(scores) - 1)
    return scores[low] + (place - low) * (scores[high] - scores[low])


def scores(record: EvalRecord, metric: metrics.Metric | None) -> dict[str, Any]:
    """Pooled personalised, global and worst decile on the test sets, accuracy in [0, 1]; `metric` beside it where the task has one."""
    table: dict[str, Any] = {
        "rounds": record.rounds,
        "pooled_personalised": _accuracy(record.pooled),
        "global": _accuracy(record.server),
        "worst_decile": worst_decile(record.clients),
    }
    if metric in ("matthews", "f1"):
        of = metrics.matthews if metric == "matthews" else metrics.f1
        table[f"pooled_personalised_{metric}"] = of(record.pooled)
        table[f"global_{metric}"] = of(record.server)
    return table


def _number(counts: Sequence[Sequence[int]]) -> int:
    """Examples that were counted."""
    return sum(map(sum, counts))


def _accuracy(counts: metrics.Confusion) -> float | None:
    """None where nothing was counted: a server of machines with their own data has no examples."""
    return metrics.accuracy(counts) if _number(counts) else None


def best_by_validation(records: Sequence[EvalRecord]) -> EvalRecord | None:
    """The evaluation with the best pooled accuracy on the validation parts, the earliest of equals; None without validation examples.

    Never the best on test.
    """
    counted = [record for record in records if _number(record.pooled_validation)]
    return max(counted, key=lambda record: (metrics.accuracy(record.pooled_validation), -record.rounds), default=None)
