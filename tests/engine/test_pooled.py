"""Private rounds: what a client can move, what a server sees, and what is released; with planted faults that each law catches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given_answers import BAD, START, Replies, moved
from made import KEY, Around, federation, made_data, made_method, made_options, made_task

from fibecfed.core.method import Method, Phase, Work
from fibecfed.core.records import RoundRecord
from fibecfed.core.rng import Key
from fibecfed.core.types import ClientId, Failure, Params
from fibecfed.core.wire import decode, encode
from fibecfed.engine import pooled
from fibecfed.engine.loop import schedule
from fibecfed.engine.pooled import MeanPool, pooled_round, why_unpooled
from fibecfed.engine.runtime import frame
from fibecfed.engine.shared_fields import only_clipped, shared_of
from fibecfed.local.options import TrainingOptions
from fibecfed.methods import catalogue
from fibecfed.methods.averaged import TailAveraged
from fibecfed.methods.fedavg import FedAvg, ServerModel
from fibecfed.privacy.clip import Integers, grid_step
from fibecfed.privacy.ledger import Ledger, Terms

C, CLIENTS = 0.5, ("a", "b", "c", "d")


class Sums(Ledger):
    """A ledger that remembers what it was asked to charge."""

    def __init__(self, folder: Path, units: int = len(CLIENTS)) -> None:
        super().__init__(folder, Terms("client", units, 2, 4, 1.0, C, 1e-3, None), draw=lambda size: b"k" * size)


@dataclass
class Released:
    """The mechanism's inputs and outputs in one round: the sum without noise, the state after it and the record."""

    sum: Integers
    after: Any
    record: RoundRecord


def release(
    transport: Any, folder: Path, method: Method[Any, Any], server: Any, number: int = 0, clients: Any = CLIENTS, z: float = 1.0
) -> Released:
    """One round with every noise drawn from one secret; what went into the noise is caught."""
    seen: list[Integers] = []
    true = pooled.noised
    pool = MeanPool(clients, len(clients), Key(0), z, C, Sums(folder, len(clients)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooled, "noised", lambda total, clip, z, key: seen.append(total) or true(total, clip, z, key))
        now = schedule(method)[number]
        after, record = pooled_round(method.phases[0], transport, server, now, None, pool)
    return Released(seen[0], after, record)


def lora() -> FedAvg:
    return FedAvg(TrainingOptions(), 4)


def norm(total: Integers) -> float:
    return math.sqrt(sum(float(x) ** 2 for value in total.values() for x in value.reshape(-1))) * grid_step(C)


def difference(one: Integers, other: Integers) -> float:
    return norm({name: one[name] - other[name] for name in one})


@pytest.mark.parametrize("bad", BAD)
def test_no_answer_moves_the_mean_by_more_than_c_over_m(bad: str, tmp_path: Path) -> None:
    server = ServerModel(dict(START))
    honest = {client: moved(0.01 * n) for n, client in enumerate(CLIENTS)}
    found: list[Released] = []
    for name, answer in (("with", BAD[bad]), ("without", dict(START))):
        (tmp_path / name).mkdir()
        found.append(release(Replies({**honest, "c": answer}), tmp_path / name, lora(), server))
    assert difference(found[0].sum, found[1].sum) <= C
    # the same noise would be drawn for the same sum alone, so the means are compared without it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooled, "noised", lambda total, clip, z, key: total)
        means = [
            release(Replies({**honest, "c": BAD[bad] if n else dict(START)}), _made(tmp_path / str(n)), lora(), server) for n in (0, 1)
        ]
    change = math.sqrt(sum(float((means[0].after.params[k] - means[1].after.params[k]).double().square().sum()) for k in START))
    assert change <= C / len(CLIENTS) * (1 + 1e-5)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_mean_of_the_last_rounds_is_that_of_the_noised_models(tmp_path: Path) -> None:
    answers, averaged = {client: moved(0.01 * n) for n, client in enumerate(CLIENTS)}, TailAveraged(lora(), 0.5)
    assert why_unpooled(averaged) is None
    plain = state = ServerModel(dict(START))
    seen: list[Params] = []
    for number in (2, 3):
        folders = [_made(tmp_path / f"{who}{number}") for who in ("plain", "averaged")]
        plain = release(Replies(answers), folders[0], lora(), plain, number).after
        state = release(Replies(answers), folders[1], averaged, state, number).after
        seen.append(plain.params)
    assert not torch.equal(seen[0]["u"], seen[1]["u"])
    for name, value in state.params.items():
        torch.testing.assert_close(value, (seen[0][name] + seen[1][name]) / 2)


def test_neither_sizes_nor_work_count_nor_are_recorded(tmp_path: Path) -> None:
    server, answers = ServerModel(dict(START)), {client: moved(0.01 * n) for n, client in enumerate(CLIENTS)}
    found = [
        release(Replies(answers, num_samples=sizes), _made(tmp_path / str(n)), lora(), server)
        for n, sizes in enumerate(({}, {"a": 10**6, "b": 7}))
    ]
    assert difference(found[0].sum, found[1].sum) == 0 and found[0].record == found[1].record
    assert {name: v.tolist() for name, v in found[0].after.params.items()} == {n: v.tolist() for n, v in found[1].after.params.items()}


# ---- laws, each with planted faults that it catches


def noise_is_as_charged(folder: Path) -> None:
    """Rounds of clients that changed nothing: what is released is noise over m, another one in each round."""
    big = {"u": torch.zeros(200, 300)}
    answers = Replies(dict.fromkeys(CLIENTS, big))
    first, second = (release(answers, folder, lora(), ServerModel(big), n, z=1.5).after.params["u"].double() for n in (0, 1))
    for found in (first, second):
        assert float(found.std()) == pytest.approx(1.5 * C / 4, rel=0.02)
    assert abs(float(np.corrcoef(first.reshape(-1), second.reshape(-1))[0, 1])) < 0.03


def an_outlier_moves_the_sum_by_at_most_c(folder: Path) -> None:
    server, honest = ServerModel(dict(START)), {client: moved(0.01) for client in CLIENTS}
    one, other = (
        release(Replies({**honest, "c": answer}), _made(folder / name), lora(), server).sum
        for name, answer in (("with", moved(1e3)), ("without", dict(START)))
    )
    assert difference(one, other) <= C


def the_divisor_is_planned(folder: Path) -> None:
    answers: dict[ClientId, Any] = {client: Failure("gone") for client in CLIENTS} | {"a": moved(0.1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooled, "noised", lambda total, clip, z, key: total)
        after = release(Replies(answers), folder, lora(), ServerModel(dict(START))).after
    for name, value in START.items():
        assert torch.allclose(after.params[name], value + 0.1 / 4, atol=1e-6)


def another_sum_of_a_round_gets_other_noise(folder: Path) -> None:
    server, one, other = ServerModel(dict(START)), {c: moved(0.01) for c in CLIENTS}, {c: moved(0.02) for c in CLIENTS}
    found = [release(Replies(answers), folder, lora(), server) for answers in (one, other, one)]
    noise = [
        np.concatenate(
            [(r.after.params[n] - START[n]).numpy().reshape(-1) * 4 - r.sum[f"shared/{n}"].reshape(-1) * grid_step(C) for n in START]
        )
        for r in found
    ]
    assert not np.isclose(noise[0], noise[1], atol=1e-4).any() and np.array_equal(noise[0], noise[2])


LAWS = (noise_is_as_charged, an_outlier_moves_the_sum_by_at_most_c, the_divisor_is_planned, another_sum_of_a_round_gets_other_noise)


@pytest.mark.parametrize("law", LAWS)
def test_a_private_round_keeps(law: Callable[[Path], None], tmp_path: Path) -> None:
    law(tmp_path)


def _unclipped(answer: Params, sent: Params, clip_norm: float) -> tuple[dict[str, Any], bool]:
    return {name: (answer[name].double() - sent[name].double()).numpy() for name in sorted(sent)}, True


FAULTS: dict[str, tuple[Any, str, Callable[[Any], Any], Callable[[Path], None]]] = {
    "a quarter of the noise": (pooled, "noised", lambda true: lambda t, c, z, key: true(t, c, z / 4, key), noise_is_as_charged),
    "no clip": (pooled, "clipped_or_whole", lambda true: _unclipped, an_outlier_moves_the_sum_by_at_most_c),
    "a divisor by answers": (pooled, "Release", lambda true: lambda **named: true(**named | {"divisor": 1}), the_divisor_is_planned),
    "noise of a round": (
        Ledger,
        "charge",
        lambda true: lambda ledger, one: (true(ledger, one), str(one.round).encode())[1],
        another_sum_of_a_round_gets_other_noise,
    ),
    "the same noise in each round": (Ledger, "charge", lambda true: lambda ledger, one: (true(ledger, one), b"")[1], noise_is_as_charged),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, make, law = FAULTS[fault]
    monkeypatch.setattr(owner, name, make(getattr(owner, name)))
    with pytest.raises(AssertionError):
        law(tmp_path)


# ---- neighbours: with frozen noise and broadcasts, one client's data changes what goes into the noise by at most C, and nothing else


METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "ffa-lora": {},
    "fedsa-lora": {},
    "fedprox": {},
    "fedavgm": {},
    "fedadam": {},
    "fedyogi": {},
    "voc": {},
    "slw": {},
    "shortformer": {},
    "self-evolution": {},
    "fibecfed": {"layers": {"rule": "last", "value": 1}, "score_after": 1},
    "adapter": {},
    "prompt-tuning": {},
    "fedprompt": {},
    "p-tuning-v2": {},
    "idpg": {},
    "attempt": {},
    "lpt": {},
    "momd": {},
    "moms-adamw": {},
}
DATA = made_data(4, 7)


class Without(Around):
    """The same clients, one of whom changes nothing, or cannot train."""

    def __init__(self, inner: Any, phase: Phase[Any, Any, Any, Any], client: ClientId) -> None:
        super().__init__(inner)
        self.phase, self.client = phase, client
        self.blob = b""

    def send(self, action: Any, now: Any, requests: Any, timeout_s: Any = None, max_bytes: Any = None) -> Any:
        self.blob = next(iter(requests.values()))
        return super().send(action, now, requests, timeout_s, max_bytes)

    def receive(self, tickets: Any) -> Any:
        for answer in super().receive(tickets):
            if answer.ticket.client == self.client:
                message = only_clipped(self.phase, decode(self.phase.down, self.blob), None, C)
                answer = replace(answer, reply=frame(encode(message), Work()))
            yield answer


def rounds_of(
    method: Any, task: Any, folder: Path, data: Any, frozen: list[Any] | None = None, without: ClientId | None = None
) -> list[Released]:
    """Three private rounds of 2 of 4 clients; with `frozen`, each from the server's state that another run had then."""
    world = federation(method, task, data)
    world.runtime.clip_norm = C
    pool = MeanPool(data.clients, 2, KEY, 1.0, C, Sums(_made(folder)))
    phase, server, found = method.phases[0], world.server, list[Released]()
    transport = world.transport if without is None else Without(world.transport, phase, without)
    for now in schedule(method)[:3]:
        seen: list[Integers] = []
        true = pooled.noised
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pooled, "noised", lambda t, c, z, key, seen=seen: seen.append(t) or true(t, c, z, key))  # noqa: B023
            after, record = pooled_round(phase, transport, server if frozen is None else frozen[now.number], now, None, pool)
        found.append(Released(seen[0], after, record))
        server = after
    return found


@pytest.mark.parametrize("kind", METHODS)
def test_neighbours_differ_by_at_most_c_in_each_sum_and_in_nothing_else(kind: str, tmp_path: Path) -> None:
    method, task = made_method(kind, rounds=3, clients=4, **METHODS[kind]), made_task(2, made_options(kind, **METHODS[kind]))
    client = DATA.clients[1]
    one = rounds_of(method, task, tmp_path / "one", DATA)
    servers = [method.init(task, KEY.fold("run", "init")), *(each.after for each in one)]
    other = rounds_of(method, task, tmp_path / "other", DATA, servers, without=client)
    assert any(client in each.record.cohort for each in one)
    for a, b in zip(one, other, strict=True):
        assert difference(a.sum, b.sum) <= (C if client in a.record.cohort else 0)
        assert a.record == b.record
        assert [(n, v.shape) for n, v in shared_of(a.after, ("params",)).items()] == [
            (n, v.shape) for n, v in shared_of(b.after, ("params",)).items()
        ]
    # other data of another size move it by at most 2 C, and are not told apart by anything else
    changed = rounds_of(method, task, tmp_path / "changed", with_other_data(client), servers)
    for a, b in zip(one, changed, strict=True):
        assert difference(a.sum, b.sum) <= (2 * C if client in a.record.cohort else 0) and a.record == b.record


def with_other_data(client: ClientId) -> Any:
    """Everybody's data as they are, but for one client, who holds those of another one."""
    other = DATA.clients[2]

    class Changed:
        clients = DATA.clients

        def client(self, name: ClientId) -> Any:
            return DATA.client(other if name == client else name)

    return Changed()


def test_every_method_that_is_offered_is_looked_at() -> None:
    """`local` sends nothing."""
    offered = {kind for kind in catalogue.CATALOGUE if why_unpooled(made_method(kind, rounds=2, clients=2)) is None}
    assert offered <= {*METHODS, "local"} and len(offered) > 15


def test_a_client_that_cannot_train_sends_no_change_and_keeps_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    method = made_method("fibecfed", rounds=3, clients=4, **METHODS["fibecfed"])
    world = federation(method, made_task(2), DATA)
    world.runtime.clip_norm = C
    phase, now, client = method.phases[0], schedule(method)[0], DATA.clients[0]
    broadcast = phase.broadcast(world.server, now)
    blob = encode(broadcast)

    def fails(*args: Any, **named: Any) -> Any:
        raise FloatingPointError("the loss of a text that nobody may know of is not finite")

    before = encode(method.init_client(made_task(2), client, KEY.fold("run", "init")))
    monkeypatch.setattr("fibecfed.methods.fibecfed_client.fit", fails)
    reply, notes = world.runtime.train(client, blob, now)
    assert reply == frame(encode(only_clipped(phase, broadcast, None, C)), Work()) and not notes
    assert world.states.get(client) == before
    monkeypatch.undo()
    trained, notes = world.runtime.train(DATA.clients[1], blob, now)
    assert len(trained) == len(reply) and trained[-32:] == reply[-32:] and not notes
