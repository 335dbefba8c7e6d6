"""Who is asked, what becomes of the answers, and how a round may fail."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import KEY, federation, made_data, made_method, made_task
from toy import Count, Number, Scripted, Toy

from fibecfed.core.errors import Diverged, RunFailed
from fibecfed.core.records import to_line
from fibecfed.core.rng import Key
from fibecfed.core.types import Failure
from fibecfed.core.wire import encode
from fibecfed.engine.failures import STOP
from fibecfed.engine.loop import Step, cohort, run, schedule
from fibecfed.engine.options import FederationOptions

CLIENTS = tuple(str(i) for i in range(6))


def rounds(
    method: Any, script: dict[tuple[str, int], Any] | None = None, *, clients: Any = CLIENTS, per_round: int = 3, **more: Any
) -> list[Step]:
    server = more.pop("server", Number({"w": torch.zeros(3)}))
    return list(run(method, Scripted(script or {}), clients, per_round=per_round, key=KEY, server=server, **more))


def test_the_schedule_counts_rounds_inside_a_phase_and_over_the_run():
    table = [(now.phase, now.index, now.num_rounds, now.number) for now in schedule(Toy(rounds=2, before=2))]
    assert table == [("first", 0, 2, 0), ("first", 1, 2, 1), ("tune", 0, 2, 2), ("tune", 1, 2, 3)]


def test_every_method_sees_the_same_cohorts_whatever_phases_go_before():
    task, data = made_task(2), made_data(6, 4)
    seen = {}
    for name, method in {
        "lora": made_method("lora", clients=6),
        "personal": made_method("lora", clients=6, finetune=True),
        "local": made_method("local"),
        "fibecfed": made_method(layers={"importance_clients": 2}),
        "fixed": made_method(layers={"rule": "last"}),
        "spectrum": made_method(layers={"rule": "layer_gap", "importance_clients": 2, "spectrum_clients": 1}),
    }.items():
        steps = federation(method, task, data, per_round=2).finish()
        seen[name] = [step.record.cohort for step in steps if step.now.phase == "tune"]
    assert len(seen["lora"]) == 4 and len(set(seen["lora"])) > 1
    assert all(cohorts == seen["lora"] for cohorts in seen.values())


def test_a_fixed_cohort_is_drawn_once_for_its_phase():
    steps = rounds(Toy(before=3, fixed=2))
    assert len({step.record.cohort for step in steps if step.now.phase == "first"}) == 1
    assert len(steps[0].record.cohort) == 2


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 40))
def test_a_cohort_has_its_size_no_client_twice_and_stands_in_order(count: int, size: int, n: int):
    clients = [f"{i:02}" for i in range(count)]
    (phase,) = Toy().phases
    drawn = cohort(phase, clients, size, Key(1), n)
    assert len(drawn) == min(size, count) and list(drawn) == sorted(set(drawn)) and set(drawn) <= set(clients)


def test_over_many_rounds_every_client_is_asked_about_as_often():
    steps = rounds(Toy(rounds=600), per_round=2)
    counts = [sum(client in step.record.cohort for step in steps) for client in CLIENTS]
    assert sum(counts) == 1200 and min(counts) > 150 and max(counts) < 250


def test_a_run_starts_again_from_any_round_with_the_cohorts_it_would_have_had():
    full = rounds(Toy(rounds=3, before=2))
    for start in range(5):
        server = Number({"w": torch.zeros(3)}) if start == 0 else full[start - 1].server
        rest = rounds(Toy(rounds=3, before=2), start=start, server=server)
        assert [step.record.cohort for step in rest] == [step.record.cohort for step in full[start:]]
        assert encode(rest[-1].server) == encode(full[-1].server) and rest[-1].number == 5
    assert rounds(Toy(), start=3) == []


def test_the_records_hold_what_the_clients_said_of_their_work():
    (step,) = rounds(Toy(rounds=1), per_round=2)
    record = step.record
    assert set(record.steps) == set(record.cohort) and len(record.cohort) == 2
    assert set(record.steps.values()) == {2} and set(record.examples.values()) == {4}
    assert set(record.loss.values()) == {0.25} and set(record.compute_s.values()) == {0.1}
    assert record.fields_down["shared"] == 2 * 12 and record.failures == {} and record.seconds > 0


def test_a_round_without_failures_has_no_words_about_failures_in_its_line():
    (step,) = rounds(Toy(rounds=1), per_round=2, tolerance=DROP)
    names = "kind phase index number cohort bytes_down bytes_up fields_down fields_up steps examples loss compute_s failures server"
    assert list(json.loads(to_line(step.record))) == [*names.split(), "seconds", "notes", "cpu_s", "compute_clock"]
    assert step.record.fields_up.keys() == {"shared", "overhead"}


def test_notes_of_clients_get_into_the_records_and_into_no_message():
    world = federation(Toy(rounds=3), made_task(2), made_data(4, 5))
    steps = world.finish()
    assert len({step.record.cohort for step in steps}) > 1
    for step in steps:  # each with those of its own clients
        assert {client: notes["n"] for client, notes in step.record.notes.items()} == step.record.examples
    assert all(b'"n"' not in up for *_, up in world.transport.carried)


NAN, GONE = float("nan"), Failure("client 2 does not answer")
DIVERGED = Failure("client 2: the loss of step 0 is nan", repeats=True)
FAILED = (GONE, DIVERGED)
DROP = FederationOptions(on_failure="drop")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (NAN, "client 2, tune round 1: shared w of its update is not finite"),
        (float("inf"), "client 2, tune round 1: shared w of its update is not finite"),
        (GONE, "client 2 does not answer"),
        (DIVERGED, "client 2: the loss of step 0 is nan"),
        (b"short", "client 2, tune round 1: a reply of 5 bytes"),
        (bytes(64), "client 2, tune round 1: 32 bytes that are not a fibecfed message"),
        (encode(Count(1)) + bytes(32), "client 2, tune round 1: got a message of type 'Count', expected 'Reply'"),
    ],
    ids=["nan", "inf", "gone", "diverged", "short", "zeros", "another message"],
)
def test_a_client_that_fails_stops_the_run_or_is_left_out_of_the_round(answer: Any, text: str):
    script = {("2", 1): answer}
    with pytest.raises(RunFailed, match=text) as stopped:
        rounds(Toy(), script, per_round=6)
    assert "on_failure" in str(stopped.value) and ("learning_rate" in str(stopped.value)) == (answer is DIVERGED)
    assert isinstance(stopped.value, Diverged) == (answer is DIVERGED)

    first, second, third = rounds(Toy(), script, per_round=6, tolerance=DROP)
    assert text in second.record.failures["2"] and set(second.record.failures) == {"2"}
    assert not first.record.failures and not third.record.failures
    assert "2" in second.record.cohort and "2" in second.record.bytes_down
    assert "2" not in {**second.record.steps, **second.record.examples, **second.record.loss}
    sent = second.record.bytes_up.get("2", 0)
    assert sent == second.record.fields_up.get("discarded", 0) and (sent > 0) == (second.record.refused == ("2",)) == (answer not in FAILED)
    others = [int(client) + 1 for client in CLIENTS if client != "2"]
    torch.testing.assert_close(second.server.shared["w"], torch.full((3,), sum(others) / len(others)))
    torch.testing.assert_close(third.server.shared["w"], torch.full((3,), 3.5))


@pytest.mark.parametrize("tolerance", [DROP, STOP], ids=["drop", "stop"])
def test_a_round_in_which_nobody_answers_stops_the_run(tolerance: FederationOptions):
    script = {(client, 1): Failure(f"client {client} is gone") for client in CLIENTS}
    steps = run(Toy(), Scripted(script), CLIENTS, per_round=6, key=KEY, server=Number({"w": torch.zeros(3)}), tolerance=tolerance)
    assert next(steps).number == 1
    with pytest.raises(RunFailed, match="client 0 is gone" if tolerance is STOP else "tune round 1: none of 6 clients .* client 0 is gone"):
        next(steps)


@pytest.mark.parametrize(
    ("gone", "nan", "quorum", "diverged"),
    [(0, 6, 0.0, True), (1, 5, 0.0, False), (0, 4, 0.5, True), (1, 3, 0.5, False), (3, 1, 0.5, False), (6, 0, 0.0, False)],
)
def test_a_missed_quorum_is_a_divergence_only_where_those_who_were_gone_could_not_have_reached_it(
    gone: int, nan: int, quorum: float, diverged: bool
):
    answers = [GONE] * gone + [DIVERGED] * nan
    script = dict(zip([(client, 1) for client in CLIENTS], answers, strict=False))
    with pytest.raises(RunFailed, match="tune round 1: ") as stopped:
        rounds(Toy(), script, per_round=6, tolerance=DROP.model_copy(update={"quorum": quorum}))
    assert isinstance(stopped.value, Diverged) == diverged


def test_rounds_are_run_one_at_a_time_as_they_are_asked_for():
    world = federation(Toy(), made_task(2), made_data(4, 5))
    steps = world.run()
    next(steps)
    assert len(world.transport.carried) == 2


@dataclass(frozen=True)
class Broken(Toy):
    """A method whose server cannot use what came."""

    after: Any = None

    @property
    def phases(self) -> Any:
        (tune,) = super().phases

        def aggregate(server: Any, received: Any, now: Any) -> Any:
            if isinstance(self.after, Exception):
                raise self.after
            return Number({"w": torch.tensor([1.0, self.after, 1.0])})

        return (replace(tune, aggregate=aggregate),)


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        (float("nan"), "make shared w of the server's state not finite"),
        (float("inf"), "federation.max_update_norm"),
        (OverflowError("too large"), r"cannot be aggregated \(OverflowError: too large\)"),
        (RuntimeError("shapes"), r"cannot be aggregated \(RuntimeError: shapes\)"),
        (FloatingPointError("the importance of the layers is [nan]"), r"the importance of the layers is \[nan\]\. The checkpoint"),
    ],
    ids=str,
)
def test_a_server_state_that_is_not_finite_or_cannot_be_made_stops_the_run_before_it_is_yielded(after: Any, sentence: str):
    with pytest.raises(RunFailed, match=f"tune round 0, answers of .*{sentence}") as stopped:
        rounds(Broken(after=after))
    assert isinstance(stopped.value, Diverged) == isinstance(after, float | FloatingPointError)
