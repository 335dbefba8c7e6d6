"""Over-selection and buffered aggregation: a slow FedBuff, planted rounds, and what they have in common with synchronous ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import KEY, Federation, Shuffled, federation, made_data, made_method, made_task
from toy import Number, Reply, Scripted, Toy
from transport_laws import Delayed

from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.method import Work
from fibecfed.core.records import to_line
from fibecfed.core.types import ClientId, Failure
from fibecfed.core.wire import encode
from fibecfed.engine.failures import STOP
from fibecfed.engine.held import HeldStates
from fibecfed.engine.loop import Step, planned, run
from fibecfed.engine.options import FederationOptions, LinkOptions, SpeedOptions
from fibecfed.engine.runtime import ClientRuntime, frame
from fibecfed.engine.schedules import reject_schedule, staleness_weight
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.virtual import VirtualTime, devices

CLIENTS = tuple(str(number) for number in range(6))
OVER = FederationOptions(schedule="over-select", over_selection=1.5)
BUFFERED = FederationOptions(schedule="buffered", buffer_size=2)


@dataclass(frozen=True)
class AnySchedule(Toy):
    """The toy, whose answers are means of changes."""

    @property
    def phases(self) -> Any:
        return tuple(replace(phase, schedules=("synchronous", "over-select", "buffered")) for phase in super().phases)


def answer(client: ClientId, value: float) -> bytes:
    """The reply of a client with as many examples as its number says, and one."""
    return frame(encode(Reply({"w": torch.full((3,), value)}, int(client) + 1)), Work(2, 4, 0.25, 0.1))


def rounds(
    options: FederationOptions,
    seconds: Mapping[tuple[ClientId, int], float],
    script: Mapping[tuple[ClientId, int], Any] | None = None,
    *,
    rounds: int = 6,
    per_round: int = 3,
    before: int = 0,
) -> tuple[list[Step], Delayed]:
    values = {(client, number): answer(client, 1.0 + int(client) + number) for client in CLIENTS for number in range(before + rounds)}
    transport = Delayed(Scripted({**values, **(script or {})}), seconds)
    server, method = Number({"w": torch.zeros(3)}), AnySchedule(rounds=rounds, before=before)
    return list(run(method, transport, CLIENTS, per_round=per_round, key=KEY, server=server, tolerance=options)), transport


DELAYS = st.dictionaries(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 5)), st.floats(0.1, 9))


# ---- buffered


def fedbuff(asked: list[tuple[ClientId, ...]], seconds: Mapping[tuple[ClientId, int], float], k: int) -> list[tuple[float, dict[str, int]]]:
    """FedBuff as its paper writes it, one number at a time: model and staleness after each aggregation.

    Args:
        asked: the clients that begin at each round.
    """
    models, at_work, clock, found = [0.0], list[tuple[float, int, ClientId, float]](), 0.0, []
    for number, clients in enumerate(asked):
        at_work += [(clock + seconds.get((client, number), 1.0), number, client, 1.0 + int(client) + number) for client in clients]
        at_work.sort()
        arrived, at_work = at_work[:k], at_work[k:]
        clock = max(clock, arrived[-1][0])
        total, change = 0.0, 0.0
        for _, version, client, value in arrived:
            examples, weight = int(client) + 1, 1 / (1 + number - version) ** 0.5
            change += examples * weight * (value - models[version])
            total += examples
        models.append(models[-1] + change / total)
        found.append((models[-1], {client: number - version for _, version, client, _ in sorted(arrived, key=lambda one: one[2])}))
    return found


@given(seconds=DELAYS, k=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_buffered_rounds_are_those_of_a_slow_fedbuff(seconds: dict[tuple[ClientId, int], float], k: int) -> None:
    steps, _ = rounds(FederationOptions(schedule="buffered", buffer_size=k), seconds)
    expected = fedbuff([step.record.cohort for step in steps], seconds, k)
    for step, (model, staleness) in zip(steps, expected, strict=True):
        assert float(step.server.shared["w"][0]) == pytest.approx(model, rel=1e-5)
        assert step.record.staleness == staleness and sorted(step.record.steps) == sorted(staleness)


def test_staleness_weights() -> None:
    assert [staleness_weight(s) for s in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]


def test_planted_rounds_of_a_federation_with_one_slow_client() -> None:
    """All of four clients at work, two answers a round; client 0 takes as long as three rounds and a half."""
    steps, transport = rounds(BUFFERED, {("0", 0): 3.5, ("1", 0): 1.5}, rounds=5, per_round=6)
    told = [(step.record.cohort, dict(step.record.staleness), step.record.dropped) for step in steps]
    assert told == [
        (("0", "1", "2", "3", "4", "5"), {"2": 0, "3": 0}, ()),
        (("2", "3"), {"4": 1, "5": 1}, ()),
        (("4", "5"), {"1": 2, "2": 1}, ()),
        (("1", "2"), {"3": 2, "4": 1}, ()),
        (("3", "4"), {"1": 1, "5": 2}, ("0", "2", "3", "4")),
    ]
    assert transport.clock == 3.0
    assert [request.client for request in steps[1].asked] == ["0", "1", "2", "3"] and steps[-1].asked == ()
    assert [request.now.index for request in steps[1].asked] == [0, 0, 1, 1]


@given(seconds=DELAYS)
@settings(max_examples=25, deadline=None)
def test_nobody_is_asked_while_it_is_at_work_and_as_many_as_may_be_are(seconds: dict[tuple[ClientId, int], float]) -> None:
    steps, _ = rounds(BUFFERED, seconds)
    at_work: set[ClientId] = set()
    for step in steps:
        assert not at_work & set(step.record.cohort)
        at_work |= set(step.record.cohort)
        assert len(at_work) == 3
        at_work -= step.record.steps.keys()
        assert step.number == len(steps) or at_work == {request.client for request in step.asked}


@pytest.mark.parametrize("number", range(1, 7))
def test_a_run_goes_on_with_the_answers_that_were_under_way(number: int) -> None:
    """All take the same time, so that it may begin again."""
    values = {(client, index): answer(client, 1.0 + int(client) + index) for client in CLIENTS for index in range(7)}

    def go(server: Any, **more: Any) -> list[Step]:
        transport, method = Delayed(Scripted(values), {}), AnySchedule(rounds=7)
        return list(run(method, transport, CLIENTS, per_round=4, key=KEY, server=server, tolerance=BUFFERED, **more))

    whole = go(Number({"w": torch.zeros(3)}))
    step = whole[number - 1]
    rest = go(step.server, start=number, standing=step.standing, asked=step.asked)
    assert [encode(one.server) for one in rest] == [encode(one.server) for one in whole[number:]]
    facts = [[{**asdict(one.record), "seconds": 0.0} for one in steps] for steps in (rest, whole[number:])]
    assert facts[0] == facts[1] and [one.asked for one in rest] == [one.asked for one in whole[number:]]


def test_a_client_that_fails_is_left_out_and_its_place_is_filled_in_the_next_round() -> None:
    drop = FederationOptions(schedule="buffered", buffer_size=2, on_failure="drop")
    gone = {("3", 0): Failure("client 3 is gone")}
    (first, second), _ = rounds(drop, {}, gone, rounds=2, per_round=6)
    assert first.record.failures == {} or "3" in first.record.failures
    assert len(first.record.steps) == len(second.record.steps) == 2
    everybody = {(client, 0): Failure(f"client {client} is gone") for client in CLIENTS}
    with pytest.raises(RunFailed, match="none of 6 clients gave a usable answer"):
        rounds(drop, {}, everybody, rounds=2, per_round=6)
    with pytest.raises(RunFailed, match="client 0 is gone"):
        rounds(BUFFERED, {}, everybody, rounds=2, per_round=6)


def test_phases_with_a_cohort_of_their_own_and_of_one_round_are_synchronous() -> None:
    steps, _ = rounds(BUFFERED, {}, before=2, rounds=1)
    assert [step.record.staleness for step in steps] == [{}, {}, {}] and [len(step.record.steps) for step in steps] == [2, 2, 3]


# ---- over-select


def test_over_selection_closes_with_enough_and_drops_the_rest() -> None:
    steps, transport = rounds(OVER, {(client, number): 9.0 for client in "01" for number in range(6)})
    for step in steps:
        record = step.record
        assert len(record.cohort) == 5 and len(record.steps) == 3 and not record.failures
        assert record.dropped == tuple(sorted(set(record.cohort) - record.steps.keys()))
        assert set("01") & set(record.cohort) <= set(record.dropped)
        assert set(record.bytes_down) == set(record.cohort) and step.asked == ()
    assert transport.clock == 6.0
    assert "dropped" in json.loads(to_line(steps[0].record)) and "staleness" not in json.loads(to_line(steps[0].record))


def test_a_failure_among_more_than_enough_costs_nothing_and_the_quorum_is_of_those_needed() -> None:
    drop = replace_options(OVER, on_failure="drop", quorum=1.0)
    (step, *_), _ = rounds(drop, {}, {("0", 0): Failure("client 0 is gone")}, per_round=2)
    assert "0" in step.record.cohort and step.record.failures == {"0": "client 0 is gone"}
    assert len(step.record.cohort) == 3 and len(step.record.steps) == 2 and step.record.dropped == ()
    with pytest.raises(RunFailed, match="expected at least 3"):
        rounds(drop, {}, {(client, 0): Failure("gone") for client in CLIENTS})


def replace_options(options: FederationOptions, **more: Any) -> FederationOptions:
    return options.model_copy(update=more)


# ---- with models


def world(kind: str, options: FederationOptions, wrap: Any = lambda inner: inner, per_round: int = 3, **method: Any) -> Federation:
    """A federation on virtual time: fibecfed or another method on clients of unlike size."""
    made = federation(
        made_method(kind, **({"layers": {"importance_clients": 2}} if kind == "fibecfed" else {}), **method),
        one_task(),
        made_data(),
        per_round=per_round,
    )
    held = HeldStates(made.states)
    runtime = ClientRuntime(made.method, made.task, made.data.client, held, KEY.fold("run"), 64)
    machines = devices(options, made.data.clients, KEY)
    return replace(made, transport=VirtualTime(wrap(Simulator(runtime)), held, machines))


TASKS: list[Any] = []


def one_task() -> Any:
    if not TASKS:
        TASKS.append(made_task(2))
    return TASKS[0]


def ended(made: Federation, options: FederationOptions) -> tuple[bytes, dict[str, Any], list[dict[str, Any]]]:
    records = [asdict(step.record) for step in made.run(tolerance=options)]
    without = ("seconds", "cpu_s", "compute_s", "virtual_s", "staleness")
    states = {client: made.states.get(client) for client in made.data.clients}
    return encode(made.server), states, [{name: value for name, value in one.items() if name not in without} for one in records]


SLOW = SpeedOptions(slow_share=0.2, spread=0.4)
KINDS = ("fibecfed", "lora", "fedavgm", "fedalt")


@pytest.mark.parametrize("kind", ["fibecfed", "hetlora", "scaffold", "fedpeptao"])
def test_virtual_time_changes_nothing_of_synchronous_rounds(kind: str) -> None:
    plain = federation(made_method(kind, **({"layers": {"importance_clients": 2}} if kind == "fibecfed" else {})), one_task(), per_round=3)
    timed = FederationOptions(speeds=SLOW, links=LinkOptions(up_mbit=1.0))
    assert ended(world(kind, timed), timed) == ended(plain, STOP)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", ["over-select", "buffered"])
def test_with_nothing_to_gain_a_schedule_is_the_synchronous_one(kind: str, schedule: Any) -> None:
    """A factor of 1, and a buffer of all clients at work, whatever the speeds."""
    options = FederationOptions(schedule=schedule, over_selection=1.0, buffer_size=3, speeds=SLOW)
    assert ended(world(kind, options), options) == ended(world(kind, STOP), STOP)


@pytest.mark.parametrize("kind", ["fibecfed", "lora"])
@pytest.mark.parametrize("options", [OVER, BUFFERED], ids=["over-select", "buffered"])
def test_the_order_in_which_clients_are_computed_changes_no_bit(kind: str, options: FederationOptions) -> None:
    options = replace_options(options, speeds=SLOW, links=LinkOptions(up_mbit=0.5, latency_ms=20.0))
    first = ended(world(kind, options), options)
    assert first == ended(world(kind, options, Shuffled), options)
    assert first[0] != ended(world(kind, STOP), STOP)[0]


def test_a_late_answer_of_fibecfed_moves_the_global_layers_and_its_own_layers_stay_with_the_client() -> None:
    made = world("fibecfed", options := replace_options(BUFFERED, speeds=SpeedOptions(factors=(4.0, 1.0, 1.0, 1.0, 1.0))), rounds=8)
    late = [step.record for step in made.run(tolerance=options) if any(step.record.staleness.values())]
    assert late and all(record.notes[client]["kept_neurons"] for record in late for client in record.staleness)
    assert any("0" in record.staleness for record in late)
    trained = {client: made.state(client).trainings for client in made.data.clients}  # each of its own layers, late or not
    assert sum(trained.values()) >= 8 * 2 and trained["0"] < max(trained.values())


# ---- who can be served


@pytest.mark.parametrize(
    ("kind", "options", "schedule", "why"),
    [
        ("hetlora", {}, "buffered", "each client is sent a message of its own"),
        ("slora", {}, "buffered", "answers to one of its stages cannot be added to what another one trains"),
        ("fedpeptao", {}, "buffered", "its server computes with more than the change of the tensors that it sent"),
        ("scaffold", {}, "buffered", "its server computes with more than the change"),
        ("scaffold", {}, "over-select", "what a dropped client remembers would no longer fit"),
        ("lora", {"aggregation": "exact"}, "buffered", "are not changes that could be added to a later one"),
        ("fibecfed", {"aggregation": "exact"}, "buffered", "are not changes that could be added to a later one"),
        ("fedex-lora", {}, "buffered", "are not changes that could be added to a later one"),
    ],
)
def test_a_schedule_that_a_method_cannot_serve_is_rejected_in_a_sentence(kind: str, options: Any, schedule: Any, why: str) -> None:
    with pytest.raises(UserError, match=why) as rejected:
        reject_schedule(made_method(kind, **options), FederationOptions(schedule=schedule), kind)
    assert f'federation.schedule: got "{schedule}", which the method {kind} cannot be run with' in str(rejected.value)
    assert '"synchronous"' in str(rejected.value)


@pytest.mark.parametrize(
    "kind", ["fibecfed", "lora", "lora-finetune", "fedavgm", "fedadam", "ffa-lora", "fedsa-lora", "fedalt", "local", "voc"]
)
def test_methods_that_average_changes_serve_every_schedule(kind: str) -> None:
    for schedule in ("synchronous", "over-select", "buffered"):
        reject_schedule(made_method(kind), FederationOptions(schedule=schedule), kind)


def test_the_plan_of_a_run_asks_as_many_as_the_schedule_does() -> None:
    sizes = {
        options.schedule: [len(clients) for *_, clients in planned(AnySchedule(before=1), CLIENTS, 3, KEY, options)]
        for options in (STOP, OVER, BUFFERED)
    }
    assert sizes == {"synchronous": [2, 3, 3, 3], "over-select": [3, 5, 5, 5], "buffered": [2, 3, 2, 2]}


def test_over_selection_measures_by_the_first_answers_too() -> None:
    late = {("0", 0): 9.0, ("1", 0): 9.0}
    steps, _ = rounds(OVER, late, before=1, rounds=1)
    assert len(steps[0].record.cohort) == 3 and len(steps[0].record.steps) == 2
