"""Answers that are folded in as they arrive: the same state whatever their order, and never a cohort in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import KEY, federation, made_data, made_method, made_task
from toy import Number, Reply, Scripted, Toy, numbered
from transport_laws import Delayed

from fibecfed.core.errors import Diverged, RunFailed
from fibecfed.core.method import Phase, Received
from fibecfed.core.trees import WeightedSum
from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.core.wire import encode
from fibecfed.engine import gathering
from fibecfed.engine.loop import Step, run
from fibecfed.engine.options import FederationOptions

CLIENTS = tuple(str(number) for number in range(6))
NOW = Round("tune", 0, 3, 0)
DROP = FederationOptions(on_failure="drop", quorum=0.5, round_attempts=2)


@pytest.fixture
def fold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "FOLD_FROM", 0)


@dataclass
class Adding:
    """A folding of the toy's answers that remembers whose they were."""

    clients: list[ClientId] = field(default_factory=list[ClientId])
    total: WeightedSum = field(default_factory=WeightedSum)
    error: Exception | None = None

    def add(self, received: Received[Reply], /) -> None:
        if self.error is not None:
            raise self.error
        self.clients.append(received.client)
        self.total.add(received.message.shared, received.message.num_samples)

    def state(self) -> Number:
        return Number(self.total.mean())


@dataclass(frozen=True)
class Folding(Toy):
    """The toy, whose answers may be folded."""

    error: Exception | None = None
    used: list[Adding] = field(default_factory=list[Adding])

    @property
    def phases(self) -> tuple[Phase[Any, Any, Any, Any], ...]:
        return tuple(replace(phase, fold=self._begin) for phase in super().phases)

    def _begin(self, server: Number, now: Round) -> Adding:
        self.used.append(Adding(error=self.error))
        return self.used[-1]


def steps(method: Toy, transport: Any, tolerance: FederationOptions = DROP) -> list[Step]:
    start = Number({"w": torch.zeros(3)})
    return list(run(method, transport, CLIENTS, per_round=5, key=KEY, server=start, tolerance=tolerance))


def final(found: Sequence[Step]) -> tuple[list[Any], bytes]:
    """Records without what a clock says, and the server's state."""
    return [replace(step.record, seconds=0.0) for step in found], encode(found[-1].server)


def script() -> dict[tuple[ClientId, int], Any]:
    """Values whose sum depends on its order, a failure, and an answer that is rejected."""
    values = {(client, number): 10.0 ** (7 - 3 * int(client)) / 3 for client in CLIENTS for number in range(3)}
    return {**values, ("1", 1): Failure("client 1 is gone"), ("4", 0): float("nan"), ("0", 2): Failure("client 0 is gone")}


@pytest.mark.usefixtures("fold_all")
@given(st.dictionaries(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 2)), st.floats(0, 10)))
def test_answers_in_any_order_are_folded_in_that_of_client_ids(seconds: dict[tuple[ClientId, int], float]) -> None:
    method = Folding()
    found = steps(method, Delayed(Scripted(script()), seconds))
    assert final(found) == final(steps(Folding(), Scripted(script())))
    for step, used in zip(found, method.used, strict=True):
        assert used.clients == sorted(set(step.record.cohort) - step.record.failures.keys())


@pytest.mark.usefixtures("fold_all")
def test_a_round_is_recorded_the_same_and_ends_the_same_up_to_rounding() -> None:
    folded, held = steps(Folding(), Scripted(script())), steps(Toy(), Scripted(script()))
    assert final(folded)[0] == final(held)[0]
    for a, b in zip(folded, held, strict=True):
        torch.testing.assert_close(a.server.shared["w"], b.server.shared["w"], rtol=1e-6, atol=0.0)


@pytest.mark.usefixtures("fold_all")
def test_only_what_comes_before_its_turn_is_kept() -> None:
    folding = Adding()
    found = gathering._Folded(folding, NOW, CLIENTS)
    message = Reply({"w": torch.ones(3)}, 1)
    waiting: list[int] = []
    for client in "143052":
        found.settle(client, None if client == "3" else message)
        waiting.append(len(found._early))
    assert waiting == [1, 2, 3, 2, 3, 0] and folding.clients == list("01245")


@pytest.mark.usefixtures("fold_all")
def test_a_repeated_round_folds_the_answers_of_its_last_cohort_alone() -> None:
    lost = {(client, 0): Failure("gone") for client in "012"}
    method = Folding(rounds=1)

    class Once(Scripted):
        def answer(self, ticket: Any, blob: bytes) -> bytes | Failure:
            return super().answer(ticket, blob) if ticket.number < 5 else numbered(2.0)

    (step,) = steps(method, Once(lost), FederationOptions(on_failure="drop", quorum=0.9, round_attempts=2))
    assert len(step.record.attempts) == 1 and len(method.used) == 2
    assert step.server.shared["w"].tolist() == [2.0] * 3 and method.used[1].clients == list(step.record.cohort)


def test_small_cohorts_are_held_and_so_are_those_of_phases_that_keep_something(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Folding()
    steps(method, Scripted({}))
    assert not method.used  # 5 answers of 12 bytes
    monkeypatch.setattr(gathering, "FOLD_FROM", 5 * 12)
    steps(method, Scripted({}))
    assert not method.used
    monkeypatch.setattr(gathering, "FOLD_FROM", 5 * 12 - 1)
    steps(method, Scripted({}))
    assert len(method.used) == 3
    keeping = replace(method.phases[0], keep=lambda server, answer: Number({}), kept=Number)
    assert not gathering.gather(keeping, Number({}), NOW, CLIENTS, 2**30, gathering.InMemory()).folds
    declined = replace(method.phases[0], fold=lambda server, now: None)
    assert not gathering.gather(declined, Number({}), NOW, CLIENTS, 2**30, gathering.InMemory()).folds


@pytest.mark.usefixtures("fold_all")
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("no such"), RunFailed, r"tune round 0, answers of 0: they cannot be aggregated \(ValueError: no such\)"),
        (FloatingPointError("w is not finite"), Diverged, "tune round 0, answers of 0: w is not finite"),
    ],
)
def test_what_goes_wrong_while_folding_is_named(error: Exception, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        steps(Folding(error=error), Scripted({}))


@pytest.mark.usefixtures("fold_all")
def test_finite_answers_whose_sum_is_not_end_the_run() -> None:
    class Huge(Adding):
        def state(self) -> Number:
            return Number({"w": self.total.mean()["w"] * 1e38 * 1e38})

    method = Folding()
    phase = replace(method.phases[0], fold=lambda server, now: Huge())
    gathered = gathering.gather(phase, Number({"w": torch.zeros(3)}), NOW, CLIENTS, 12, gathering.InMemory())
    gathered.settle("0", Reply({"w": torch.ones(3)}, 1))
    with pytest.raises(Diverged, match="answers of 0: they make shared w of the server's state not finite"):
        gathered.aggregated()


# ---- methods


@pytest.mark.parametrize("kind", ["lora", "fibecfed", "fedavgm", "fedadam", "fedalt", "slora"])
def test_a_run_whose_answers_are_folded_ends_where_one_does_that_holds_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(bytes_held: int) -> tuple[Any, Mapping[str, Any]]:
        monkeypatch.setattr(gathering, "FOLD_FROM", bytes_held)
        world = federation(made_method(kind, rounds=2, clients=4), made_task(2), made_data(4, 6), per_round=3)
        records = [replace(step.record, seconds=0.0, compute_s={}, loss={}, notes={}) for step in world.run()]
        return records, world.method.server_params(world.server)

    (held, a), (folded, b) = end(2**40), end(0)
    assert held == folded
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


# ---- memory

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "large_messages.py"


def memory_mb(clients: int) -> float:
    """The most that a round of so many clients takes, each with two million numbers (8 MB)."""
    command = [sys.executable, str(BENCHMARK), "--one", "ours", str(clients), "2000000", "1"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])["memory_mb"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cohort() -> None:
    few, many = memory_mb(10), memory_mb(100)
    assert many < few + 3 * 8 and many < 150
