"""A message of its own for each client is made when it is that client's turn: a thousand clients are never a thousand messages."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made import KEY, Spy, federation, made_data, made_method, made_task
from saved import run_config, save_backbone, write_reviews
from sums import scored
from toy import Number, Reply, Toy

from fibecfed import session
from fibecfed.core.method import Phase, Work
from fibecfed.core.statistics import of_classes
from fibecfed.core.types import Round
from fibecfed.core.wire import decode, encode, payload_bytes
from fibecfed.engine import requests
from fibecfed.engine.evaluation import Evaluator
from fibecfed.engine.loop import run
from fibecfed.engine.requests import OnDemand, Requests, total_bytes
from fibecfed.engine.runtime import ClientRuntime, frame
from fibecfed.engine.simulator import Simulator

NOW = Round("tune", 0, 3, 0)
MANY = tuple(f"{n:04d}" for n in range(1000))


class Tracked(bytes):
    """Bytes that count how many of them there are."""

    live = made = most = 0

    def __new__(cls, blob: bytes) -> Tracked:
        cls.live, cls.made = cls.live + 1, cls.made + 1
        cls.most = max(cls.most, cls.live)
        return super().__new__(cls, blob)

    def __del__(self) -> None:
        Tracked.live -= 1


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> type[Tracked]:
    """Every message that is made from now on."""
    gc.collect()
    Tracked.live = Tracked.made = Tracked.most = 0
    monkeypatch.setattr(requests, "encode", lambda message: Tracked(encode(message)))
    return Tracked


@dataclass(frozen=True)
class Addressing(Toy):
    """The toy, which sends each client its own number."""

    @property
    def phases(self) -> tuple[Phase[Any, Any, Any, Any], ...]:
        def address(server: Any, broadcast: Any, client: str) -> Number:
            return Number({"w": broadcast.shared["w"] + int(client)})

        return (replace(super().phases[0], address=address),)


class Echo:
    """Clients that count nothing and answer with the number they were sent."""

    def train(self, client: str, blob: bytes, now: Round) -> tuple[bytes, dict[str, Any]]:
        return frame(encode(Reply(decode(Number, blob).shared, 1)), Work(1, 1, 0.5, 0.1)), {}

    def evaluate(self, action: str, client: str, blob: bytes, now: Round) -> bytes:
        assert decode(Number, blob).shared["w"].tolist() == [float(int(client))] * 3
        return encode(scored(torch.eye(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64), 0.1))


def simulated() -> Simulator:
    runtime: Any = Echo()
    return Simulator(runtime)


def test_an_evaluation_of_a_thousand_clients_holds_a_few_messages(tracked: type[Tracked]) -> None:
    task: Any = SimpleNamespace(statistics=of_classes(2))
    evaluator = Evaluator(Addressing(), task, simulated(), MANY, range(2000), [], 5)  # pyright: ignore[reportArgumentType]
    found, _ = evaluator.after(Number({"w": torch.zeros(3)}), NOW, 1)
    assert found.pooled["confusion"] == [[1000, 0], [0, 1000]]
    assert tracked.made == 1000 and tracked.most <= 3
    assert found.bytes_down == 1000 * len(encode(Number({"w": torch.zeros(3)})))


def test_a_round_of_a_thousand_clients_holds_a_few_messages(tracked: type[Tracked]) -> None:
    (step, *_) = run(Addressing(rounds=1), simulated(), MANY, per_round=1000, key=KEY, server=Number({"w": torch.zeros(3)}))
    assert tracked.made == 1000 and tracked.most <= 3
    assert step.server.shared["w"].tolist() == [499.5] * 3
    assert sum(step.record.fields_down.values()) == sum(step.record.bytes_down.values()) and len(step.record.bytes_down) == 1000


def test_the_end_of_a_run_holds_a_few_messages(tracked: type[Tracked], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_backbone(tmp_path / "backbone")
    write_reviews(tmp_path / "reviews.csv")
    most: list[int] = []
    personal = ClientRuntime.personal_params

    def counted(self: ClientRuntime, client: str, blob: bytes, now: Round) -> Any:
        most.append(Tracked.live)
        return personal(self, client, blob, now)

    monkeypatch.setattr(ClientRuntime, "personal_params", counted)
    session.start(
        run_config(tmp_path, method={"kind": "hetlora"}, federation={"clients": 8, "clients_per_round": 8, "rounds": 1}), tmp_path / "run"
    )
    assert len(most) >= 8 and max(most) <= 2 and tracked.made >= 3 * 8 and tracked.most <= 3


def test_messages_and_their_sizes_are_those_of_the_method() -> None:
    task, data = made_task(2), made_data(4, 8)
    world = federation(made_method("hetlora", rounds=1, clients=4, min_rank=1, decay=0.5, penalty=1.0), task, data, wrap=Spy)
    phase = world.method.phases[0]
    broadcast = phase.broadcast(world.server, NOW)
    messages = {client: phase.address(world.server, broadcast, client) for client in data.clients}
    found = Requests(phase, world.server, broadcast, data.clients)
    assert dict(found) == {client: encode(message) for client, message in messages.items()} and list(found) == list(data.clients)
    fresh = Requests(phase, world.server, broadcast, data.clients)
    assert fresh.sizes() == {client: len(blob) for client, blob in found.items()} and total_bytes(fresh) == sum(fresh.sizes().values())
    assert fresh.fields() == {client: payload_bytes(message) for client, message in messages.items()}
    with pytest.raises(KeyError):
        found["stranger"]
    same = Requests(Toy().phases[0], None, Number({"w": torch.ones(2)}), "ab")
    assert same["a"] is same["b"] and total_bytes(same) == 2 * len(same["a"]) == total_bytes({"a": same["a"], "b": same["b"]})


def test_what_is_made_on_demand_is_not_kept() -> None:
    made: list[str] = []
    make: Callable[[str], int] = lambda client: made.append(client) or len(made)  # noqa: E731
    values = OnDemand("ab", make)
    assert [values["a"], values["a"], len(values), "b" in list(values)] == [1, 2, 2, True]
