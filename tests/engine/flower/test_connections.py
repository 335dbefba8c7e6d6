"""Machines that are silent, slow or gone: what they cost the others, and how they come back. Seconds are those of a clock of our own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made import KEY, made_data, made_method, made_task
from made_flower import Clock, Grid, Other, ask, be_an_app, connected, gone, residents, stop_time

from fibecfed.core.records import RoundRecord
from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.engine.flower import connections
from fibecfed.engine.flower import transport as transport_module
from fibecfed.engine.flower.transport import FlowerTransport
from fibecfed.engine.loop import run
from fibecfed.engine.options import FederationOptions
from fibecfed.engine.transport import exchange

pytestmark = pytest.mark.flower

NOW = Round("importance", 0, 1, 0)
HEALTHY = ("0", "1", "2")
TIMEOUT_S, TAKES_S, SILENT = 20.0, 4.0, 9
"""How long a round may take and an answer takes; the number of a node that never answers."""


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    be_an_app()
    return stop_time(monkeypatch)


def connected_transport(folder: Path, takes_s: float = TAKES_S, names: tuple[ClientId, ...] | None = None) -> tuple[FlowerTransport, Grid]:
    """A transport that knows its clients, each of which takes so long for every answer."""
    transport, grid, _ = connected(residents(folder))
    grid.takes_s = dict.fromkeys(grid.nodes, takes_s)
    transport.wait_for(5, names, 60.0)
    return transport, grid


def asked(transport: FlowerTransport, *clients: ClientId) -> Mapping[ClientId, bytes | Failure]:
    return dict(exchange(transport, "train", NOW, dict.fromkeys(clients, ask()), TIMEOUT_S))


def seconds_of_rounds(folder: Path, clock: Clock, names: tuple[ClientId, ...], silent: bool) -> list[tuple[float, RoundRecord]]:
    """A run of the healthy clients and of whoever else is named, in which everybody is asked in every round; how long each round took."""
    transport, grid, _ = connected({client: resident for client, resident in residents(folder).items() if client in HEALTHY})
    grid.takes_s = dict.fromkeys(grid.nodes, TAKES_S)
    if silent:
        grid.nodes[SILENT] = None
    assert transport.wait_for(len(names), names, 10.0) == names
    method = made_method(rounds=4)
    first, tolerance = method.init(made_task(), KEY.fold("run", "init")), FederationOptions(on_failure="drop", round_timeout_s=TIMEOUT_S)
    found, begun = list[tuple[float, RoundRecord]](), clock.now
    for step in run(method, transport, names, per_round=len(names), key=KEY.fold("run"), server=first, tolerance=tolerance):
        found.append((clock.now - begun, step.record))
        begun = clock.now
    return found


def test_a_silent_and_an_absent_client_cost_the_others_no_round_and_no_time(tmp_path: Path, clock: Clock) -> None:
    assert TIMEOUT_S < connections.HANDSHAKE_S
    without = seconds_of_rounds(tmp_path / "without", clock, HEALTHY, silent=False)
    rounds = seconds_of_rounds(tmp_path / "with", clock, (*HEALTHY, "3", "4"), silent=True)
    ratios = [took / alone for (took, _), (alone, _) in zip(rounds, without, strict=True)]
    print("time of each round, relative to that without the two: " + " ".join(f"{ratio:.2f}" for ratio in ratios))
    assert len(ratios) >= 5 and max(ratios) <= 1.2
    for _, record in rounds:
        assert set(record.bytes_up) == set(HEALTHY) and set(record.failures) == {"3", "4"}


@pytest.mark.parametrize("takes_s", [0.0, TAKES_S])
def test_a_silent_node_is_waited_for_once_while_the_others_work_or_for_a_tenth_of_the_time(
    tmp_path: Path, clock: Clock, takes_s: float
) -> None:
    transport, grid = connected_transport(tmp_path, takes_s)
    grid.nodes[SILENT] = None
    for most in (max(takes_s, 0.1 * TIMEOUT_S), takes_s):
        begun = clock.now
        replies = asked(transport, "0", "away")
        assert isinstance(replies["0"], bytes) and clock.now - begun <= most + transport_module.POLL_S
        assert replies["away"] == Failure("client away is not connected (1 connected SuperNode has not answered a handshake)")


def test_a_client_that_falls_silent_costs_one_timeout_and_is_asked_again_once_it_answers(tmp_path: Path, clock: Clock) -> None:
    transport, grid = connected_transport(tmp_path)
    grid.nodes[1] = None
    for most, reason in (
        (TIMEOUT_S, "client 0 did not answer within 20 s"),
        (TAKES_S, "client 0 has been silent since it did not answer within 20 s"),
        (TAKES_S, "client 0 has been silent since it did not answer within 20 s"),
    ):
        begun = clock.now
        replies = asked(transport, "0", "1")
        assert isinstance(replies["1"], bytes) and replies["0"] == Failure(reason)
        assert clock.now - begun <= most + transport_module.POLL_S
    grid.deliver_late(residents(tmp_path)["0"].answer)
    grid.nodes[1] = residents(tmp_path)["0"].answer
    clock.now += TAKES_S
    assert all(isinstance(reply, bytes) for reply in asked(transport, "0", "1").values())


def test_a_client_that_does_not_take_its_initial_tensors_costs_the_others_nothing(tmp_path: Path, clock: Clock) -> None:
    other = residents(tmp_path, task=Other(made_task()))["0"]
    transport, grid, _ = connected({**residents(tmp_path), "0": other})
    transport.wait_for(5, None, 1.0)
    grid.nodes[1] = None
    for most in (0.1 * TIMEOUT_S, 0.0):
        begun = clock.now
        replies = asked(transport, "0", "1")
        assert isinstance(replies["1"], bytes) and clock.now - begun <= most + transport_module.POLL_S
        assert replies["0"] == Failure("client 0 has not taken the server's initial tensors yet")
    grid.deliver_late(other.answer)
    grid.nodes[1] = other.answer
    assert all(isinstance(reply, bytes) for reply in asked(transport, "0", "1").values()) and set(transport.notes()) == {"0"}


def test_where_nobody_is_there_greetings_are_waited_for(tmp_path: Path) -> None:
    transport, grid, _ = connected(residents(tmp_path))
    grid.takes_s = dict.fromkeys(grid.nodes, TAKES_S)
    assert all(isinstance(reply, bytes) for reply in asked(transport, *made_data().clients).values())


def test_a_client_whose_supernode_started_again_between_two_rounds_takes_part_in_the_next(tmp_path: Path) -> None:
    transport, grid = connected_transport(tmp_path)
    del grid.nodes[1]
    grid.nodes[77] = residents(tmp_path)["0"].answer
    assert all(isinstance(reply, bytes) for reply in asked(transport, *made_data().clients).values())


def test_a_client_whose_node_goes_away_while_it_is_at_work_fails_as_soon_as_flower_reports_it(tmp_path: Path, clock: Clock) -> None:
    transport, grid = connected_transport(tmp_path)
    grid.nodes[1] = None
    begun = clock.now
    answers = exchange(transport, "train", NOW, {"0": ask(), "1": ask()}, TIMEOUT_S)
    assert next(answers)[0] == "1"
    del grid.nodes[1]
    assert next(answers) == ("0", Failure("client 0: Flower could not get an answer (Error: Node Unavailable)"))
    assert clock.now - begun <= TAKES_S + 2 * transport_module.POLL_S


def test_a_silent_node_is_greeted_less_and_less_often_and_one_that_comes_back_at_once(tmp_path: Path, clock: Clock) -> None:
    transport, grid = connected_transport(tmp_path)
    grid.nodes[SILENT] = None
    at: list[float] = []
    while clock.now < 5000.0:
        before = len(grid.sent)
        list(exchange(transport, "train", NOW, {}, TIMEOUT_S))
        at += [clock.now] * (("query", SILENT) in grid.sent[before:])
        clock.sleep(1.0)
    assert [round(later - earlier) for earlier, later in pairwise(at[:8])] == [60, 120, 240, 480, 960, 960, 960]
    del grid.nodes[SILENT]
    list(exchange(transport, "train", NOW, {}, TIMEOUT_S))
    grid.nodes[SILENT] = None
    list(exchange(transport, "train", NOW, {}, TIMEOUT_S))
    assert grid.sent[-1] == ("query", SILENT)


def test_a_client_that_is_not_started_is_waited_for_once_and_found_again(tmp_path: Path, clock: Clock) -> None:
    """Its SuperNode answers after a while that nobody listens."""
    transport, grid = connected_transport(tmp_path, 1.0)
    grid.nodes[1], grid.takes_s[1] = gone, 2 * TAKES_S
    for most in (2 * TAKES_S, 0.1 * TIMEOUT_S, 1.0, 1.0):  # it fails, gets a handshake, and is known to be away
        begun = clock.now
        replies = asked(transport, "0", "1")
        assert isinstance(replies["1"], bytes) and isinstance(replies["0"], Failure)
        assert clock.now - begun <= most + transport_module.POLL_S
    clock.sleep(20.0)
    asked(transport, "1")  # takes in that nobody listened
    clock.sleep(20.0)
    grid.nodes[1], grid.takes_s[1] = residents(tmp_path)["0"].answer, 1.0
    asked(transport, "1")  # starts a handshake
    assert isinstance(asked(transport, "0", "1")["0"], bytes)


def test_an_answer_that_is_there_when_the_time_is_over_is_taken(tmp_path: Path) -> None:
    transport, _ = connected_transport(tmp_path, TIMEOUT_S - 0.1)
    assert isinstance(asked(transport, "0")["0"], bytes)
