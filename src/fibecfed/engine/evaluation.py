"""Scoring: every client counts on its own slice with its own model, the server on everything with the global one where they differ."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch

from ..core import metrics
from ..core.errors import Diverged, RunFailed
from ..core.method import Method
from ..core.records import EvalRecord
from ..core.rng import Key
from ..core.task import Task
from ..core.trees import checksum
from ..core.types import ClientId, Examples, Failure, Round
from ..core.wire import WireError, encode
from .checks import MAX_COUNTS_BYTES, Refused, checked_both_counts, checked_counts, counted
from .client import Changed, Counts, confusion, global_params
from .failures import NEW, STOP, Counted, Standing, Tolerance, printable
from .loop import REPEATS, STOPS, USABLE
from .requests import Requests, total_bytes
from .transport import Action, Transport, exchange


def sample(clients: Sequence[ClientId], number: int | None, key: Key) -> tuple[ClientId, ...]:
    """The clients that every evaluation of a run asks: `number` of them, drawn from the run's key, in ascending order; None: all."""
    if number is None or number >= len(clients):
        return tuple(clients)
    return tuple(sorted(clients[int(place)] for place in key.fold("evaluation").permutation(len(clients))[:number]))


@dataclass(frozen=True)
class Evaluator:
    """Scores a method's state.

    Attributes:
        clients: those that are asked.
        test, validation: their slices together, for the global model.
        batch_size: examples per forward pass.
        tolerance: what becomes of clients that fail; a quorum is not asked for.
        start: stream of the tensors at the start, given where the clients hold all examples and the server none: they then count for the
            global model too.
    """

    method: Method[Any, Any]
    task: Task
    transport: Transport
    clients: Sequence[ClientId]
    test: Examples
    validation: Examples
    batch_size: int
    tolerance: Tolerance = STOP
    start: Key | None = None

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
        broadcast = phase.broadcast(server, now)
        requests = Requests(phase, server, broadcast, asked)
        with_global = self.start is not None and self.method.is_personal
        both = with_global and phase.address is None and self._clients_know_global(server, broadcast, asked)
        got = self._asked("evaluate_both" if both else "evaluate", now, requests, rounds, standing.counted)
        bytes_down, bytes_up, of_global = got.bytes_down, got.bytes_up, got.of_global
        if with_global and not both:
            same = {client: counted(counts) for client, counts in got.own.items()}
            more = self._asked_of_global(server, now, list(got.own), rounds, same)
            failures = {**got.failures, **more.failures}
            got = replace(got, own={client: got.own[client] for client in more.own}, failures=failures, repeats=got.repeats + more.repeats)
            bytes_down, bytes_up, of_global = bytes_down + more.bytes_down, bytes_up + more.bytes_up, more.own
        if got.failures and not got.own:
            raise self._failed(got.failures, got.repeats, rounds)
        pooled = self._added(got.own)
        complete = (_number(pooled.test), _number(pooled.validation)) == (len(self.test), len(self.validation))
        if with_global:
            of_server = self._added(of_global)
        elif self.start is None and (self.method.is_personal or not complete):
            of_server = self._global(server)
        else:  # the clients have tested that very model, on just these examples
            of_server = pooled
        record = EvalRecord(
            rounds=rounds,
            clients={client: got.own[client].test.tolist() for client in sorted(got.own)},
            pooled=pooled.test,
            pooled_validation=pooled.validation,
            server=of_server.test,
            server_validation=of_server.validation,
            loss_pooled=pooled.loss,
            loss_server=of_server.loss,
            bytes_down=bytes_down,
            bytes_up=bytes_up,
            seconds=time.perf_counter() - start,
            failures={client: got.failures[client] for client in sorted(got.failures)},
        )
        return record, standing.evaluated({client: counted(got.own[client]) for client in record.clients})

    def untrained(self, server: Any) -> EvalRecord:
        """Scores of the model at the start, which is the same for everybody. Nothing is sent where the server has the examples.

        Raises:
            RunFailed: a client failed and `tolerance.on_failure` is "stop".
        """
        start = time.perf_counter()
        if self.start is None:
            found, got = self._global(server), _NOBODY
        else:
            got = self._asked_of_global(server, Round("", 0, 0, -1), self.clients, 0, {})
            found = self._added(got.own)
        return EvalRecord(
            rounds=0,
            clients={},
            pooled=found.test,
            pooled_validation=found.validation,
            server=found.test,
            server_validation=found.validation,
            loss_pooled=found.loss,
            loss_server=found.loss,
            bytes_down=got.bytes_down,
            bytes_up=got.bytes_up,
            seconds=time.perf_counter() - start,
            failures={client: got.failures[client] for client in sorted(got.failures)},
        )

    def _asked(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], rounds: int, known: Mapping[ClientId, Counted]
    ) -> _Answers:
        """The counts of the clients that gave usable ones, in the order of the requests; the reasons of the others.

        Args:
            known: examples of each class that a client must count.
        """
        classes, most = self.task.num_classes, self.tolerance.max_samples
        own: dict[ClientId, Counts] = {}
        of_global: dict[ClientId, Counts] = {}
        failures: dict[ClientId, str] = {}
        bytes_up = repeats = 0
        for client, reply in exchange(self.transport, action, now, requests, self.tolerance.timeout_s, MAX_COUNTS_BYTES):
            if isinstance(reply, Failure):
                failures[client] = printable(reply.reason)
                repeats += reply.repeats
                continue
            bytes_up += len(reply)
            try:
                if action == "evaluate_both":
                    both = checked_both_counts(reply, classes, most, known.get(client))
                    own[client], of_global[client] = both.own, both.of_global
                else:
                    own[client] = checked_counts(reply, classes, most, known.get(client))
            except (Refused, WireError) as error:
                failures[client] = printable(f"client {client}: {error}")
        failures.update({client: f"client {client}: no answer" for client in requests if client not in own and client not in failures})
        if failures and self.tolerance.on_failure == "stop":
            raise self._failed(failures, repeats, rounds)
        own, of_global = ({client: found[client] for client in requests if client in found} for found in (own, of_global))
        return _Answers(own, of_global, failures, repeats, total_bytes(requests), bytes_up)

    def _failed(self, failures: Mapping[ClientId, str], repeats: int, rounds: int) -> RunFailed:
        text = f"evaluation after {rounds} rounds: {failures[min(failures)]}"
        if repeats == len(failures):
            return Diverged(f"{text}. {REPEATS}")
        return RunFailed(f"{text}. {STOPS if self.tolerance.on_failure == 'stop' else USABLE}")

    def _asked_of_global(
        self, server: Any, now: Round, clients: Sequence[ClientId], rounds: int, known: Mapping[ClientId, Counted]
    ) -> _Answers:
        """Counts of the global model alone, of which clients are sent what is not as at the start."""
        params, before = self.method.server_params(server), self.task.init_params(self._key)
        changed = {name: value for name, value in params.items() if name not in before or not torch.equal(value, before[name])}
        return self._asked("evaluate_global", now, dict.fromkeys(clients, encode(Changed(changed))), rounds, known)

    def _clients_know_global(self, server: Any, broadcast: Any, clients: Sequence[ClientId]) -> bool:
        """Whether each client can make the global model of the broadcast, to the last bit."""
        found = checksum(self.method.server_params(server))
        return all(checksum(global_params(self.method, self.task, broadcast, client, self._key)) == found for client in clients)

    @property
    def _key(self) -> Key:
        assert self.start is not None
        return self.start

    def _added(self, counts: Mapping[ClientId, Counts]) -> _Scored:
        """Sums in the order of `counts`, which is not that of arrival, on which the last bits would hang."""
        test = validation = metrics.zeros(self.task.num_classes)
        loss = 0.0
        for of_one in counts.values():
            test = metrics.add(test, of_one.test.tolist())
            validation = metrics.add(validation, of_one.validation.tolist())
            loss += of_one.test_loss
        return _Scored(test, validation, loss / max(1, _number(test)))

    def _global(self, server: Any) -> _Scored:
        params = self.method.server_params(server)
        test, loss = confusion(self.task, params, self.test, self.batch_size)
        validation, _ = confusion(self.task, params, self.validation, self.batch_size)
        return _Scored(test.tolist(), validation.tolist(), loss / max(1, int(test.sum())))


@dataclass(frozen=True)
class _Answers:
    """What came back from an exchange; `of_global` where both models were asked for; `repeats` of the failures would come again."""

    own: Mapping[ClientId, Counts]
    of_global: Mapping[ClientId, Counts]
    failures: Mapping[ClientId, str]
    repeats: int
    bytes_down: int
    bytes_up: int


_NOBODY = _Answers({}, {}, {}, 0, 0, 0)


@dataclass(frozen=True)
class _Scored:
    """Confusion matrices of one model, and its mean test loss."""

    test: list[list[int]]
    validation: list[list[int]]
    loss: float


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
    """The evaluation with the best pooled accuracy on the validation parts, the earliest of equals; None where nothing can be chosen by it.

    Never the best on test.

    Args:
        records: in the order of the run.
    """
    return reduce(better_by_validation, records, None)


def better_by_validation(best: EvalRecord | None, record: EvalRecord) -> EvalRecord | None:
    """The best evaluation so far, after one more.

    Scores of different clients are not compared: an evaluation in which a client is missing is left out, and where fewer clients are asked
    than before, since some were excluded, the choice begins again.
    """
    if record.failures or not _number(record.pooled_validation):
        return best
    if best is None or best.clients.keys() != record.clients.keys():
        return record
    return record if metrics.accuracy(record.pooled_validation) > metrics.accuracy(best.pooled_validation) else best
