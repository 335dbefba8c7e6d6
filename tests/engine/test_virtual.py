"""Virtual time: planted orders of events, and what neither machines nor the order of computing may change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import KEY, Shuffled
from transport_laws import check_transport

from fibecfed.core.rng import Key
from fibecfed.core.types import ClientId, Failure, Round
from fibecfed.engine.held import HeldStates
from fibecfed.engine.options import FederationOptions, LinkOptions, SpeedOptions
from fibecfed.engine.states import ClientStates
from fibecfed.engine.transport import InTurn, Ticket, Transport
from fibecfed.engine.virtual import Device, VirtualTime, devices, slowness

CLIENTS = tuple(str(number) for number in range(6))
FIRST, SECOND, THIRD = (Round("tune", number, 3, number) for number in range(3))
DEVICE = Device(tokens_per_s=100.0)


class Working(InTurn):
    """Clients that answer with so many bytes, after counted work; each training makes a state of its own.

    Args:
        work: token-blocks by client, 100 for the others.
    """

    def __init__(self, states: HeldStates, work: Mapping[ClientId, int] | None = None, size: int = 500) -> None:
        super().__init__()
        self.states, self.work, self.size = states, work or {}, size
        self.computed: list[ClientId] = []

    def answer(self, ticket: Ticket, blob: bytes) -> bytes | Failure:
        client, tokens = ticket.client, self.work.get(ticket.client, 100)
        if ticket.action != "train":
            return self.states.get(client) or b"none"
        self.computed.append(client)
        self.states.put(client, (self.states.before(client) or b"") + str(ticket.now.number).encode())
        self._notes[client] = {"token_blocks": [tokens - 20, 20]}
        return bytes(self.size)


@pytest.fixture
def states(tmp_path: Path) -> HeldStates:
    return HeldStates(ClientStates(tmp_path, 2**20))


def times(transport: Transport, tickets: Any, most: int | None = None) -> dict[ClientId, float]:
    """When answers arrived, in the order in which they did."""
    found: dict[ClientId, float] = {}
    for answer in transport.receive(tickets):
        assert answer.at_s is not None
        found[answer.ticket.client] = answer.at_s
        if len(found) == most:
            break
    return found


def test_an_answer_takes_its_bytes_down_its_work_and_its_bytes_up(states: HeldStates) -> None:
    """By hand: 1,000 bytes at 0.004 Mbit/s are 2 s, 500 at 0.001 are 4 s, 0.5 s of latency each way, 300 token-blocks at 100 are 3 s."""
    device = Device(100.0, up_mbit=0.001, down_mbit=0.004, latency_ms=500.0)
    transport = VirtualTime(Working(states, {"a": 300}), states, {"a": device, "b": DEVICE})
    tickets = transport.send("train", FIRST, {"a": bytes(1000), "b": bytes(1000)})
    assert times(transport, tickets) == {"b": 1.0, "a": pytest.approx(0.5 + 2 + 3 + 0.5 + 4)}
    assert transport.now_s == pytest.approx(10.0)


def test_the_clock_stands_at_the_last_answer_received_and_the_next_round_begins_there(states: HeldStates) -> None:
    transport = VirtualTime(Working(states, {"0": 100, "1": 300, "2": 200}), states, dict.fromkeys(CLIENTS, DEVICE))
    tickets = transport.send("train", FIRST, dict.fromkeys("012", b""))
    assert times(transport, tickets, most=2) == {"0": 1.0, "2": 2.0}
    tickets = [*tickets, *transport.send("train", SECOND, dict.fromkeys("02", b""))]
    assert times(transport, tickets) == {"1": 3.0, "0": 3.0, "2": 4.0}  # asked earlier is earlier
    assert transport.notes()["1"] == {"token_blocks": [280, 20]}


def test_who_is_dropped_while_it_computes_goes_on_and_its_next_request_waits_for_that(states: HeldStates) -> None:
    transport = VirtualTime(Working(states, {"1": 1000}), states, dict.fromkeys(CLIENTS, DEVICE))
    tickets = transport.send("train", FIRST, dict.fromkeys("01", b""))
    assert times(transport, tickets, most=1) == {"0": 1.0}
    assert transport.drop(tickets) == {"1": 500} and states.get("1") == b"0"
    tickets = transport.send("train", SECOND, dict.fromkeys("01", b""))
    assert times(transport, tickets, most=1) == {"0": 2.0}
    assert transport.drop(tickets) == {} and states.get("1") == b"0"  # it was not begun, so it never is
    tickets = transport.send("train", THIRD, dict.fromkeys("1", b""))
    assert times(transport, tickets) == {"1": 20.0} and states.get("1") == b"02"


def test_an_evaluation_takes_no_time_and_sees_no_state_that_is_not_there_yet(states: HeldStates) -> None:
    transport = VirtualTime(Working(states, {"1": 300}), states, dict.fromkeys(CLIENTS, DEVICE))
    tickets = transport.send("train", FIRST, dict.fromkeys("01", b""))
    times(transport, tickets, most=1)
    scored = transport.send("evaluate", FIRST, dict.fromkeys("01", b""))
    assert {answer.ticket.client: answer.reply for answer in transport.receive(scored)} == {"0": b"0", "1": b"none"}
    assert transport.now_s == 1.0 and times(transport, tickets) == {"1": 3.0} and states.get("1") == b"0"


def test_what_was_under_way_has_the_same_times_in_a_run_that_is_resumed(tmp_path: Path) -> None:
    def begun(folder: str, before: Any = None) -> tuple[VirtualTime, HeldStates]:
        held = HeldStates(ClientStates(tmp_path / folder, 2**20))
        return VirtualTime(Working(held, {"1": 350, "2": 800}), held, dict.fromkeys(CLIENTS, DEVICE), before), held

    whole, _ = begun("a")
    tickets = whole.send("train", FIRST, dict.fromkeys("012", b""))
    times(whole, tickets, most=1)
    whole.drop([ticket for ticket in tickets if ticket.client == "2"])
    again, held = begun("b", whole.table())
    assert again.now_s == 1.0 and whole.table()["free_s"] == {"2": 8.0}
    open_ = [ticket for ticket in tickets if ticket.client == "1"]
    resent = again.send("train", FIRST, {"1": b""})
    for transport, one in ((whole, open_), (again, resent)):
        later = transport.send("train", SECOND, dict.fromkeys("02", b""))
        assert times(transport, [*one, *later]) == {"0": 2.0, "1": 3.5, "2": 16.0}
    assert held.get("1") == b"0"


@given(st.lists(st.integers(1, 900), min_size=6, max_size=6), st.permutations(CLIENTS))
def test_the_order_in_which_clients_are_computed_changes_no_time(work: list[int], order: list[ClientId]) -> None:
    class Nowhere(HeldStates):
        def __init__(self) -> None:
            self._held = {}

        def get(self, client: ClientId) -> bytes | None:
            return None

        before = get

        def release(self, client: ClientId) -> None:
            self._held.pop(client, None)

    def arrivals(shuffled: bool) -> list[tuple[ClientId, float]]:
        held = Nowhere()
        inner = Working(held, dict(zip(CLIENTS, work, strict=True)))
        transport = VirtualTime(Shuffled(inner) if shuffled else inner, held, dict.fromkeys(CLIENTS, DEVICE))
        asked = order if shuffled else CLIENTS
        return list(times(transport, transport.send("train", FIRST, dict.fromkeys(asked, b""))).items())

    assert arrivals(True) == arrivals(False)


def test_it_keeps_the_laws_of_transports(states: HeldStates) -> None:
    uneven = {client: Device(100.0 / (1 + number % 3), up_mbit=1.0) for number, client in enumerate(CLIENTS)}
    check_transport(VirtualTime(Working(states), states, uneven), dict.fromkeys(CLIENTS, b""), FIRST)


# ---- who is slow


def test_a_share_of_the_clients_is_slow_and_the_same_ones_whatever_else_is_drawn() -> None:
    clients = [f"{number:02}" for number in range(20)]
    found = slowness(SpeedOptions(slow_share=0.2, slow_factor=10.0), clients, KEY)
    slow = {client for client, factor in found.items() if factor == 10.0}
    assert len(slow) == 4 and set(found.values()) == {1.0, 10.0}
    spread = slowness(SpeedOptions(slow_share=0.2, slow_factor=10.0, spread=0.3), clients, KEY)
    plain = slowness(SpeedOptions(spread=0.3), clients, KEY)
    assert all(spread[client] == pytest.approx(plain[client] * found[client]) for client in clients)
    assert slowness(SpeedOptions(slow_share=0.01), clients, KEY).values() != {1.0}  # a share above 0 makes one slow at least
    assert slowness(SpeedOptions(slow_share=0.2, slow_factor=10.0), clients, Key(8)) != found


def test_a_log_normal_factor_has_its_spread_and_stays_with_the_client() -> None:
    clients = [str(number) for number in range(2000)]
    logs = {client: math.log(factor) for client, factor in slowness(SpeedOptions(spread=0.5), clients, KEY).items()}
    assert abs(sum(logs.values()) / 2000) < 0.05
    assert math.sqrt(sum(value**2 for value in logs.values()) / 2000) == pytest.approx(0.5, rel=0.1)
    fewer = slowness(SpeedOptions(spread=0.5), clients[::2], KEY)
    assert all(math.log(fewer[client]) == logs[client] for client in fewer)


def test_factors_divide_speeds_and_bandwidths_each_their_own() -> None:
    options = FederationOptions(
        speeds=SpeedOptions(tokens_per_s=1000.0, factors=(1.0, 4.0)),
        links=LinkOptions(up_mbit=8.0, latency_ms=5.0, factors=(2.0, 1.0)),
    )
    assert devices(options, ("a", "b"), KEY) == {"a": Device(1000.0, 4.0, None, 5.0), "b": Device(250.0, 8.0, None, 5.0)}


def test_without_a_bandwidth_only_the_latency_takes_time() -> None:
    assert Device(1.0, latency_ms=250.0).up_s(10**9) == 0.25 and Device(1.0).down_s(10**9) == 0.0
