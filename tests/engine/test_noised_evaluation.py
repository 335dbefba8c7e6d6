"""Scores with noise: what one client can move, that they are charged, and what is made of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import KEY, federation, made_data, made_method, made_task

from fibecfed.core.metrics import METRICS
from fibecfed.core.rng import Key
from fibecfed.core.statistics import CONFUSION
from fibecfed.engine import noised_evaluation
from fibecfed.engine.evaluation import Evaluator
from fibecfed.engine.failures import STOP
from fibecfed.engine.loop import schedule
from fibecfed.engine.noised_evaluation import PARTS_OF_ONE, NoisedEvaluator, nearest_shares, shares
from fibecfed.engine.pooled import MeanPool
from fibecfed.privacy.clip import grid_step
from fibecfed.privacy.ledger import Ledger, Terms

TASK, DATA = made_task(2), made_data(4, 30)


def evaluator(kind: str, folder: Path, z: float = 1.0, budget: float | None = None, data: Any = DATA) -> tuple[NoisedEvaluator, Any, Any]:
    options = {"layers": {"rule": "last", "value": 1}} if kind == "fibecfed" else {}
    method = made_method(kind, rounds=3, clients=4, **options)
    world = federation(method, TASK, data)
    folder.mkdir()
    ledger = Ledger(folder, Terms("client", 4, 2, 3, z, 1.0, 1e-3, budget), draw=lambda size: b"k" * size)
    nobody = DATA.test.select(torch.zeros(0, dtype=torch.int64))
    tolerance = STOP.model_copy(update={"on_failure": "drop"})
    exact = Evaluator(method, TASK, world.transport, DATA.clients, nobody, nobody, 64, tolerance, start=KEY.fold("run", "init"))
    return NoisedEvaluator(exact, MeanPool(DATA.clients, 2, Key(0), z, 1.0, ledger)), method, world.server


def released(kind: str, folder: Path, data: Any = DATA, **more: Any) -> tuple[Any, Any]:
    seen: list[Any] = []
    true = noised_evaluation.noised
    found, method, server = evaluator(kind, folder, data=data, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noised_evaluation, "noised", lambda total, clip, z, key: seen.append((total, clip)) or true(total, clip, z, key))
        record, _ = found.after(server, schedule(method)[0], 1)
    assert found.pool.ledger.releases == 1 and found.pool.ledger.clients == 4
    return record, seen[0]


class Changed:
    """The same clients, one of whom holds other examples, or none."""

    clients = DATA.clients

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def client(self, name: str) -> Any:
        held = DATA.client(name)
        return type(held)(held.train, held.validation, held.test.select(self.rows)) if name == DATA.clients[1] else held


@pytest.mark.parametrize("kind", ["lora", "fibecfed"])
def test_one_client_moves_the_sum_by_at_most_its_clip_norm_and_nothing_else(kind: str, tmp_path: Path) -> None:
    record, (total, clip_norm) = released(kind, tmp_path / "all")
    nothing, (without, _) = released(kind, tmp_path / "none", Changed(torch.zeros(0, dtype=torch.int64)))
    assert clip_norm == math.sqrt(1 + (kind == "fibecfed")) and len(total) == 1 + (kind == "fibecfed")
    moved = math.sqrt(sum(float(np.square((total[n] - without[n]).astype(float)).sum()) for n in total)) * grid_step(clip_norm)
    assert 0.4 < moved <= clip_norm
    assert record.clients == nothing.clients == {} and record.failures == nothing.failures == {} and record.seconds == 0
    assert (record.bytes_up, record.bytes_down) == (nothing.bytes_up, nothing.bytes_down)


def test_with_little_noise_the_scores_are_the_mean_over_clients(tmp_path: Path) -> None:
    found, method, server = evaluator("lora", tmp_path / "run", z=1e-3)
    record, _ = found.after(server, schedule(method)[0], 1)
    answers = found.exact.answers(server, schedule(method)[0], 1).own.values()
    expected = sum(shares(answer.test) for answer in answers) / 4
    assert np.abs(np.array(record.pooled[CONFUSION]) / PARTS_OF_ONE - expected).max() < 0.003
    accuracy = METRICS["accuracy"].of(record.pooled)
    assert accuracy == pytest.approx(float(np.trace(expected)), abs=0.005) and record.server == record.pooled
    assert set(record.pooled) == {CONFUSION} and not any(map(sum, record.pooled_validation[CONFUSION]))


def test_noise_is_as_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(noised_evaluation, "_counts", lambda values: seen.append(values) or [[0]])
    monkeypatch.setattr(noised_evaluation, "shares", lambda answer: np.zeros((2, 2)))
    found, method, server = evaluator("lora", tmp_path / "run", z=4.0)
    once = found.exact.answers(server, schedule(method)[0], 1)
    monkeypatch.setattr(Evaluator, "answers", lambda *args: once)
    for now in (_at(schedule(method)[0], number) for number in range(60)):
        found.after(server, now, now.number + 1)
    assert float(np.std(seen)) == pytest.approx(4.0 / 4, rel=0.15)  # of 240 numbers; z C over the clients that were asked
    assert found.pool.ledger.mu2_max == pytest.approx(60 / 16)


def _at(now: Any, number: int) -> Any:
    return type(now)(now.phase, now.index, now.num_rounds, number)


def test_what_the_budget_cannot_pay_for_is_not_asked(tmp_path: Path) -> None:
    found, method, server = evaluator("lora", tmp_path / "run", z=1.0, budget=4.0)  # one release costs 3.14, two cost 4.85
    first, second = (found.after(server, _at(schedule(method)[0], n), n + 1)[0] for n in (0, 1))
    assert any(map(sum, first.pooled[CONFUSION])) and first.bytes_up and not any(map(sum, second.pooled[CONFUSION])) and not second.bytes_up
    again = found.after(server, _at(schedule(method)[0], 0), 1)[0]  # as a round that is computed again: the same noise, no charge
    assert again == first and found.pool.ledger.releases == 1


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=9))
def test_shares_are_the_nearest_ones(values: list[float]) -> None:
    found = nearest_shares(np.array(values))
    assert found.min() >= 0 and found.sum() == pytest.approx(1)
    assert np.allclose(nearest_shares(found), found)
    other = np.full(len(values), 1 / len(values))  # any others are farther: the angle between the steps to it and to the values is obtuse
    assert float(((np.array(values) - found) * (other - found)).sum()) <= 1e-9
