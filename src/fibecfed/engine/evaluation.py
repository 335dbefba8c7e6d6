"""Scoring: every client sums over its own slice with its own model, the server over everything with the global one where they differ."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import Diverged, RunFailed
from ..core.method import Method
from ..core.metrics import Metric
from ..core.records import EvalRecord
from ..core.rng import Key
from ..core.statistics import Sums, Totals, added, plain
from ..core.task import Task
from ..core.trees import checksum
from ..core.types import ClientId, Examples, Failure, Params, Round
from ..core.wire import WireError, encode
from .checks import MAX_SUMS_BYTES, Refused, checked_both_sums, checked_sums, counted
from .failures import NEW, REPEATS, STOP, STOPS, Counted, Standing, printable
from .gathering import USABLE
from .options import FederationOptions
from .requests import Requests, total_bytes
from .runtime import Changed, Scored, global_params
from .scoring import totals, with_written, writes
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
        tests: each client's test slice, where answers are generated.
        totals: computes the sums of a model over several sets of examples, given also the batch size; None: in this process.
    """

    method: Method[Any, Any]
    task: Task
    transport: Transport
    clients: Sequence[ClientId]
    test: Examples
    validation: Examples
    batch_size: int
    tolerance: FederationOptions = STOP
    start: Key | None = None
    totals: Callable[[Params, Sequence[Examples], int], Sequence[Totals]] | None = None
    tests: Sequence[Examples] = ()

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
        got = self.answers(server, now, rounds, standing)
        with_global = self.start is not None and self.method.is_personal
        bytes_down, bytes_up, of_global = got.bytes_down, got.bytes_up, got.of_global
        pooled = self._added(got.own)
        complete = (self._number(pooled.test), self._number(pooled.validation)) == (len(self.test), len(self.validation))
        if with_global:
            of_server = self._added(of_global)
        elif self.start is None and (self.method.is_personal or not complete):
            of_server = self._global(server)
            if writes(self.task) and now.number + 1 == sum(phase.num_rounds for phase in self.method.phases):
                params = self.method.server_params(server)
                of_server = Scored(with_written(self.task, params, self.tests, of_server.test), of_server.validation)
        else:  # the clients have tested that very model, on just these examples
            of_server = pooled
        own = {client: got.own[client] for client in sorted(got.own)}
        record = EvalRecord(
            rounds=rounds,
            clients={client: plain(scored.test) for client, scored in own.items()},
            pooled=plain(pooled.test),
            pooled_validation=plain(pooled.validation),
            server=plain(of_server.test),
            server_validation=plain(of_server.validation),
            bytes_down=bytes_down,
            bytes_up=bytes_up,
            seconds=time.perf_counter() - start,
            failures={client: got.failures[client] for client in sorted(got.failures)},
        )
        return record, standing.evaluated({client: counted(scored, self.task.statistics) for client, scored in own.items()})

    def answers(self, server: Any, now: Round, rounds: int, standing: Standing = NEW) -> ClientAnswers:
        """The sums of the clients after the round `now`, of the global model too where they count for that one; arguments as for `after`.

        Raises:
            RunFailed, Diverged: as `after`.
        """
        phase = next(phase for phase in self.method.phases if phase.name == now.phase)
        asked = [client for client in self.clients if client not in standing.excluded]
        broadcast = phase.broadcast(server, now)
        requests = Requests(phase, server, broadcast, asked)
        with_global = self.start is not None and self.method.is_personal
        both = with_global and phase.address is None and self._clients_know_global(server, broadcast, asked)
        got = self._asked("evaluate_both" if both else "evaluate", now, requests, rounds, standing.counted)
        if with_global and not both:
            same = {client: counted(scored, self.task.statistics) for client, scored in got.own.items()}
            more = self._asked_of_global(server, now, list(got.own), rounds, same)
            got = ClientAnswers(
                {client: got.own[client] for client in more.own},
                more.own,
                {**got.failures, **more.failures},
                got.repeats + more.repeats,
                got.bytes_down + more.bytes_down,
                got.bytes_up + more.bytes_up,
            )
        if got.failures and not got.own:
            raise self._failed(got.failures, got.repeats, rounds)
        return got

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
            pooled=plain(found.test),
            pooled_validation=plain(found.validation),
            server=plain(found.test),
            server_validation=plain(found.validation),
            bytes_down=got.bytes_down,
            bytes_up=got.bytes_up,
            seconds=time.perf_counter() - start,
            failures={client: got.failures[client] for client in sorted(got.failures)},
        )

    def _asked(
        self, action: Action, now: Round, requests: Mapping[ClientId, bytes], rounds: int, known: Mapping[ClientId, Counted]
    ) -> ClientAnswers:
        """The sums of the clients that gave usable ones, in the order of the requests; the reasons of the others.

        Args:
            known: examples of each kind that a client must count.
        """
        statistics, most = self.task.statistics, self.tolerance.max_samples
        own: dict[ClientId, Scored] = {}
        of_global: dict[ClientId, Scored] = {}
        failures: dict[ClientId, str] = {}
        bytes_up = repeats = 0
        for client, reply in exchange(self.transport, action, now, requests, self.tolerance.timeout_s, MAX_SUMS_BYTES):
            if isinstance(reply, Failure):
                failures[client] = printable(reply.reason)
                repeats += reply.repeats
                continue
            bytes_up += len(reply)
            try:
                if action == "evaluate_both":
                    both = checked_both_sums(reply, statistics, most, known.get(client))
                    own[client], of_global[client] = both.own, both.of_global
                else:
                    own[client] = checked_sums(reply, statistics, most, known.get(client))
            except (Refused, WireError) as error:
                failures[client] = printable(f"client {client}: {error}")
        failures.update({client: f"client {client}: no answer" for client in requests if client not in own and client not in failures})
        if failures and self.tolerance.on_failure == "stop":
            raise self._failed(failures, repeats, rounds)
        own, of_global = ({client: found[client] for client in requests if client in found} for found in (own, of_global))
        return ClientAnswers(own, of_global, failures, repeats, total_bytes(requests), bytes_up)

    def _failed(self, failures: Mapping[ClientId, str], repeats: int, rounds: int) -> RunFailed:
        text = f"evaluation after {rounds} rounds: {failures[min(failures)]}"
        if repeats == len(failures):
            return Diverged(f"{text}. {REPEATS}")
        return RunFailed(f"{text}. {STOPS if self.tolerance.on_failure == 'stop' else USABLE}")

    def _asked_of_global(
        self, server: Any, now: Round, clients: Sequence[ClientId], rounds: int, known: Mapping[ClientId, Counted]
    ) -> ClientAnswers:
        """Sums of the global model alone, of which clients are sent what is not as at the start."""
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

    def _added(self, scored: Mapping[ClientId, Scored]) -> Scored:
        """Sums in the order of `scored`, which is not that of arrival, on which the last bits would hang."""
        zero = self.task.statistics.zero
        return Scored(added((one.test for one in scored.values()), zero), added((one.validation for one in scored.values()), zero))

    def _number(self, sums: Totals) -> int:
        return sum(self.task.statistics.counted(sums))

    def _global(self, server: Any) -> Scored:
        params, parts = self.method.server_params(server), (self.test, self.validation)
        if self.totals is not None:
            return Scored(*self.totals(params, parts, self.batch_size))
        return Scored(*(totals(self.task, params, part, self.batch_size) for part in parts))


@dataclass(frozen=True)
class Unscored:
    """In the place of an `Evaluator` where nobody is asked and nothing is scored: records that count nothing."""

    zero: Sums

    def after(self, server: Any, now: Round, rounds: int, standing: Standing = NEW) -> tuple[EvalRecord, Standing]:
        """As `Evaluator.after`."""
        return EvalRecord(rounds, {}, self.zero, self.zero, self.zero, self.zero, 0, 0, 0.0), standing

    def untrained(self, server: Any) -> EvalRecord:
        """As `Evaluator.untrained`."""
        return self.after(server, Round("", 0, 0, -1), 0)[0]


@dataclass(frozen=True)
class ClientAnswers:
    """What came back from an exchange; `of_global` where both models were asked for; `repeats` of the failures would come again."""

    own: Mapping[ClientId, Scored]
    of_global: Mapping[ClientId, Scored]
    failures: Mapping[ClientId, str]
    repeats: int
    bytes_down: int
    bytes_up: int


_NOBODY = ClientAnswers({}, {}, {}, 0, 0, 0)


def worst_decile(clients: Mapping[ClientId, Sums], metric: Metric) -> float | None:
    """The score that nine of ten clients reach: the 10th percentile from the worst, interpolated linearly; None where no client has one."""
    scores = sorted((score for sums in clients.values() if not math.isnan(score := metric.of(sums))), reverse=not metric.higher_is_better)
    if not scores:
        return None
    place = 0.1 * (len(scores) - 1)
    low = int(place)
    high = min(low + 1, len(scores) - 1)
    return scores[low] + (place - low) * (scores[high] - scores[low])


def scores(record: EvalRecord, metric: Metric) -> dict[str, Any]:
    """Pooled personalised, global and worst decile on the test sets under one metric; None where nothing was counted."""
    return {
        "rounds": record.rounds,
        "pooled_personalised": known(metric.of(record.pooled)),
        "global": known(metric.of(record.server)),  # a server of machines with their own data has no examples
        "worst_decile": worst_decile(record.clients, metric),
    }


def every_score(record: EvalRecord, metrics: Sequence[Metric]) -> dict[str, dict[str, float | None]]:
    """Each metric of the personalised models and of the global one, by name, on the test sets."""
    sums = {"personalised": record.pooled, "global": record.server}
    return {whose: {metric.name: known(metric.of(found)) for metric in metrics} for whose, found in sums.items()}


def known(score: float) -> float | None:
    """None in place of NaN, which is no JSON."""
    return None if math.isnan(score) else score


def best_by_validation(records: Sequence[EvalRecord], metric: Metric) -> EvalRecord | None:
    """The evaluation with the best pooled score on the validation parts, the earliest of equals; None where nothing can be chosen by it.

    Never the best on test.

    Args:
        records: in the order of the run.
    """
    best = None
    for record in records:
        best = better_by_validation(best, record, metric)
    return best


def better_by_validation(best: EvalRecord | None, record: EvalRecord, metric: Metric) -> EvalRecord | None:
    """The best evaluation so far, after one more.

    Scores of different clients are not compared: an evaluation in which a client is missing is left out, and where fewer clients are asked
    than before, since some were excluded, the choice begins again.
    """
    score = metric.of(record.pooled_validation)
    if record.failures or math.isnan(score):
        return best
    if best is None or best.clients.keys() != record.clients.keys():
        return record
    return record if metric.better(score, metric.of(best.pooled_validation)) else best
