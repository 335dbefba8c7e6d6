"""A clip norm that follows the updates: towards the wanted quantile from both sides, at what it is charged for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given_answers import BAD, START, Replies, moved

from fibecfed.core.rng import Key
from fibecfed.core.types import Failure
from fibecfed.engine import pooled
from fibecfed.engine.loop import schedule
from fibecfed.engine.pooled import MeanPool, pooled_round
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.fedavg import FedAvg, ServerModel
from fibecfed.privacy.adaptive import COUNT_NOISE, LANE, AdaptiveClip, lane_weight, least_clients, noise_on_updates
from fibecfed.privacy.clip import Integers, grid_step
from fibecfed.privacy.ledger import Ledger, Terms

CLIENTS = tuple(f"{number:03}" for number in range(60))


def pool(folder: Path, begun: float, z: float, quantile: float = 0.5) -> MeanPool:
    folder.mkdir()
    ledger = Ledger(folder, Terms("client", len(CLIENTS), len(CLIENTS), 99, z, begun, 1e-3, None), draw=lambda size: b"k" * size)
    adaptive = AdaptiveClip(begun, begun, quantile, lane_weight(z, len(CLIENTS)))
    return MeanPool(CLIENTS, len(CLIENTS), Key(0), z, begun, ledger, adaptive=adaptive)


def of_norm(norm: float) -> dict[str, torch.Tensor]:
    return {name: value + norm / math.sqrt(7) for name, value in START.items()}


def rounds(found: MeanPool, answers: Any, number: int) -> list[float]:
    method = FedAvg(TrainingOptions(), number)
    norms: list[float] = []
    for now in schedule(method):
        pooled_round(method.phases[0], Replies(answers), ServerModel(dict(START)), now, None, found)
        assert found.adaptive is not None
        norms.append(found.adaptive.norm)
    return norms


@pytest.mark.parametrize(("begun", "quantile"), [(0.05, 0.5), (20.0, 0.5), (20.0, 0.25), (0.05, 0.8)])
def test_it_moves_to_the_quantile_from_both_sides(begun: float, quantile: float, tmp_path: Path) -> None:
    answers = {client: of_norm(0.5 + number / 59) for number, client in enumerate(CLIENTS)}  # norms spread evenly over 0.5 to 1.5
    norms = rounds(pool(tmp_path / "run", begun, 0.5, quantile), answers, 110)
    assert abs(norms[4] - 1) < abs(begun - 1)  # in the right direction at once
    assert np.mean(norms[-30:]) == pytest.approx(0.5 + quantile, abs=0.06)


def sums(folder: Path, answer: Any) -> tuple[Integers, float]:
    """What goes into the noise of one round in which one client gives this answer."""
    seen: list[tuple[Integers, float]] = []
    answers = {client: moved(0.01) for client in CLIENTS} | {"007": answer}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooled, "noised", lambda total, clip, z, key: seen.append((total, clip)) or total)
        rounds(pool(folder, 0.5, 1.0), answers, 1)
    return seen[0]


@pytest.mark.parametrize("bad", BAD)
def test_no_answer_moves_the_sum_and_its_count_by_more_than_is_charged(bad: str, tmp_path: Path) -> None:
    (one, clip), (other, _) = sums(tmp_path / "with", BAD[bad]), sums(tmp_path / "without", Failure("gone"))
    total = math.sqrt(sum(float(np.square((one[name] - other[name]).astype(float)).sum()) for name in one)) * grid_step(clip)
    assert LANE in one and total <= clip == pytest.approx(0.5 * math.sqrt(1 + lane_weight(1.0, 60) ** 2))


@pytest.mark.parametrize(("z", "size"), [(1.0, 50), (2.0, 60), (1.0, 12)])
def test_updates_and_count_share_one_release(z: float, size: int) -> None:
    """Andrew et al. 2021, theorem 1: the two noises compose to that of z."""
    updates, count = noise_on_updates(z, size), size * COUNT_NOISE
    assert updates**-2 + (2 * count) ** -2 == pytest.approx(z**-2)
    weight = lane_weight(z, size)
    assert z * math.sqrt(1 + weight**2) / (2 * weight) == pytest.approx(count)
    assert z < updates <= 2 * z and least_clients(z) <= size
    with pytest.raises(ValueError, match="expected at least"):
        lane_weight(z, least_clients(z) - 1)


def test_noise_is_as_charged(tmp_path: Path) -> None:
    found, big = pool(tmp_path / "run", 0.5, 3.0), {"u": torch.zeros(200, 300)}
    method = FedAvg(TrainingOptions(), 1)
    after, _ = pooled_round(method.phases[0], Replies(dict.fromkeys(CLIENTS, big)), ServerModel(big), schedule(method)[0], None, found)
    assert float(after.params["u"].double().std()) == pytest.approx(noise_on_updates(3.0, 60) * 0.5 / 60, rel=0.02)
    assert found.ledger.mu2_max == pytest.approx(1 / 9)
