"""Over-selection and buffered aggregation across machines: with the same order of arrival, the same bits as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made import KEY, federation, made_data, made_method, made_task
from made_flower import RUN, be_an_app, connected, residents, stop_time
from transport_laws import Delayed

from fibecfed.core.wire import decode, encode
from fibecfed.engine.flower.transport import FlowerTransport
from fibecfed.engine.loop import Step, run
from fibecfed.engine.options import FederationOptions

pytestmark = pytest.mark.flower

TAKES_S = {"0": 20.0, "1": 2.0, "2": 4.0, "3": 12.0, "4": 7.0}
"""Seconds of each client for an answer, far enough apart for the transport to see their order."""
OPTIONS = {
    "over-select": FederationOptions(schedule="over-select", over_selection=1.5),
    "buffered": FederationOptions(schedule="buffered", buffer_size=1),
}
METHOD = {"layers": {"importance_clients": 2}}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    be_an_app()
    return stop_time(monkeypatch)


def slow(clients: Any, completed: int = 0) -> FlowerTransport:
    """A transport to clients of which each takes its time."""
    transport, grid, _ = connected(clients, completed=completed)
    assert transport.wait_for(len(clients), list(clients), 5.0) == tuple(clients)
    grid.takes_s = {node: TAKES_S[client] for node, client in enumerate(clients, start=1)}
    return transport


def trained(transport: Any, options: FederationOptions, **more: Any) -> list[Step]:
    method, task = made_method(rounds=5, **METHOD), made_task()
    server = more.pop("server", None) or method.init(task, KEY.fold("run", "init"))
    clients = made_data().clients
    return list(run(method, transport, clients, per_round=3, key=KEY.fold("run"), server=server, tolerance=options, **more))


def simulated(options: FederationOptions) -> list[Step]:
    """The same rounds in one process, whose clients take as long."""
    seconds = {(client, number): takes_s for client, takes_s in TAKES_S.items() for number in range(6)}
    made = federation(made_method(rounds=5, **METHOD), per_round=3, wrap=lambda inner: Delayed(inner, seconds))
    return made.finish(tolerance=options)


def facts(steps: list[Step]) -> list[Any]:
    return [
        (s.record.cohort, s.record.steps, s.record.loss, s.record.dropped, s.record.staleness, s.record.bytes_down, s.record.failures)
        for s in steps
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", OPTIONS)
def test_the_same_order_of_arrival_gives_the_same_bits_as_in_one_process(schedule: str, tmp_path: Path) -> None:
    got, expected = (
        trained(slow(residents(tmp_path, method=made_method(rounds=5, **METHOD))), OPTIONS[schedule]),
        simulated(OPTIONS[schedule]),
    )
    assert facts(got) == facts(expected)
    assert encode(got[-1].server) == encode(expected[-1].server)
    assert any(step.record.dropped for step in got) and all(step.record.virtual_s is None for step in got)
    assert schedule != "buffered" or any(any(step.record.staleness.values()) for step in got)


def test_a_round_does_not_wait_for_the_slowest(clock: Any, tmp_path: Path) -> None:
    transport = slow(residents(tmp_path))
    begun = clock.now
    steps = trained(transport, OPTIONS["over-select"])
    closed = [max(sorted(TAKES_S[client] for client in step.record.cohort)[:3]) for step in steps if step.now.phase == "tune"]
    assert clock.now - begun <= sum(closed) + max(TAKES_S.values()) + 10 < 5 * max(TAKES_S.values())


@pytest.mark.parametrize("stopped", [2, 4])
def test_a_server_that_stops_asks_again_for_what_was_under_way(stopped: int, tmp_path: Path) -> None:
    """Killed one round after its checkpoint: clients may be done with what they are asked again, or ahead of the server."""
    options, method = FederationOptions(schedule="buffered", buffer_size=2), made_method(rounds=5, **METHOD)
    whole = trained(slow(residents(tmp_path / "whole", method=method)), options)
    steps = trained(slow(residents(tmp_path / "killed", method=method)), options)[: stopped + 1]
    at = steps[stopped - 1]
    assert at.asked
    again = slow(residents(tmp_path / "killed", method=method), completed=stopped)
    server = decode(type(at.server), encode(at.server))
    rest = trained(again, options, start=stopped, server=server, standing=at.standing, asked=at.asked)
    assert len(rest) == len(whole) - stopped and not any(step.record.failures for step in rest)
    for request in at.asked:  # computed once more, from the state before it
        name = f"state-{request.now.number:08d}.safetensors"
        first, second = (tmp_path / run / request.client / RUN / name for run in ("whole", "killed"))
        assert first.read_bytes() == second.read_bytes()
    for client in {client for step in rest for client in step.record.steps}:  # nothing is left of rounds that never were
        numbers = {int(path.name[6:14]) for path in (tmp_path / "killed" / client / RUN).glob("state-*")}
        assert numbers <= {step.now.number for step in [*steps[:stopped], *rest] if client in step.record.cohort}
