"""A client's own noise, batches and charges."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fibecfed.core.errors import UserError
from fibecfed.core.types import Round
from fibecfed.local.threshold import BINS, bins_of, threshold
from fibecfed.privacy import examples as own
from fibecfed.privacy.example_plan import PlannedRound, example_plan
from fibecfed.privacy.examples import ClientLedgers, OneTraining
from fibecfed.privacy.gaussian import epsilon_of
from fibecfed.privacy.ledger import BudgetSpent, Ledger, Terms
from fibecfed.privacy.noise import key_of
from fibecfed.privacy.options import PrivacyOptions

Z, C = 1.5, 0.25


def training(folder: Path, number: int = 0, budget: float | None = None, client: str = "a") -> OneTraining:
    ledgers = ClientLedgers(Terms("example", 10, 4, 4, Z, C, 1e-3, budget), lambda name: (folder / name, folder / "secrets" / name))
    return OneTraining(ledgers.open(client, 10, number > 0), client, Round("tune", number, 4, number))


# ---- laws, each with planted faults that it catches


def noise_has_the_declared_deviation_and_is_independent(tmp_path: Path) -> None:
    """Over numbers, steps, rounds and clients; 120,000 of them. A quarter of the noise is off by 200 standard errors."""
    total = {"w": torch.full((100, 100), 0.125)}
    found: list[np.ndarray] = []
    for client in ("a", "b"):
        for number in (0, 1):
            one = training(tmp_path, number, client=client)
            one.use(1)
            found += [(one.noised(total)["w"] - 0.125).double().numpy().ravel() for _ in range(3)]
            one.charge(b"done")
    every = np.concatenate(found)
    assert len(every) == 120_000
    assert abs(every.var() / (Z * C) ** 2 - 1) < 5 * math.sqrt(2 / len(every)) and abs(every.mean()) < 5 * Z * C / math.sqrt(len(every))
    correlations = np.corrcoef(found)[np.triu_indices(len(found), 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(10_000)


def the_same_sum_gets_the_same_noise_and_another_one_other_noise(tmp_path: Path) -> None:
    """So a training that is repeated after an interruption releases nothing new, unless it ends otherwise."""
    total = {"w": torch.ones(50)}
    first = training(tmp_path).noised(total)["w"]
    again = training(tmp_path)
    assert torch.equal(again.noised(total)["w"], first)
    other = training(tmp_path).noised({"w": torch.ones(50) + 1e-6})["w"]
    assert float((other - first).abs().mean()) > 0.1 * Z * C
    assert not torch.equal(again.noised(total)["w"], first)  # another step


@pytest.mark.parametrize(
    "law", [noise_has_the_declared_deviation_and_is_independent, the_same_sum_gets_the_same_noise_and_another_one_other_noise]
)
def test_a_training_keeps(law: Callable[[Path], None], tmp_path: Path) -> None:
    law(tmp_path)


FAULTS: dict[str, tuple[Any, str, Callable[[Any], Any], Callable[[Path], None]]] = {
    "a quarter of the noise": (
        own,
        "noised",
        lambda true: lambda total, clip, z, key: true(total, clip, z / 4, key),
        noise_has_the_declared_deviation_and_is_independent,
    ),
    "one noise for all rounds": (
        Ledger,
        "key",
        lambda true: lambda ledger, purpose, phase, number, *more: true(ledger, purpose, phase, 0, *more),
        noise_has_the_declared_deviation_and_is_independent,
    ),
    "one noise for all clients": (
        Ledger,
        "key",
        lambda true: lambda ledger, *names: key_of(b"", *names),
        noise_has_the_declared_deviation_and_is_independent,
    ),
    "the noise of a step again after a retry": (
        own,
        "digest",
        lambda true: lambda integers, clip: b"",
        the_same_sum_gets_the_same_noise_and_another_one_other_noise,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, make, law = FAULTS[fault]
    monkeypatch.setattr(owner, name, make(getattr(owner, name)))
    with pytest.raises(AssertionError):
        law(tmp_path)


def test_every_epoch_is_a_partition_of_its_own(tmp_path: Path) -> None:
    one = training(tmp_path)
    epochs = one.epochs(10, 4, 3)
    assert [[len(batch) for batch in epoch] for epoch in epochs] == [[4, 4, 2]] * 3
    flat = [torch.cat(list(epoch)).tolist() for epoch in epochs]
    assert all(sorted(places) == list(range(10)) for places in flat) and len({tuple(places) for places in flat}) == 3
    assert one.times == 3


def test_a_training_is_charged_for_every_sum_that_an_example_is_in(tmp_path: Path) -> None:
    one = training(tmp_path)
    one.epochs(10, 4, 2)
    one.counts(torch.tensor([0, 3, 3, -1]), 4)
    one.charge(b"result")
    again = training(tmp_path)
    again.epochs(10, 4, 2)
    again.counts(torch.tensor([0, 3, 3, -1]), 4)
    again.charge(b"result")  # the same one: nothing more
    assert again.ledger.epsilon == epsilon_of(3 / Z**2, 1e-3)
    other = training(tmp_path)
    other.use(3)
    other.charge(b"another")
    assert training(tmp_path, 1).ledger.epsilon == epsilon_of(6 / Z**2, 1e-3)


def test_what_would_pass_the_budget_is_rejected_before_it_is_computed(tmp_path: Path) -> None:
    budget = epsilon_of(3 / Z**2, 1e-3)
    one = training(tmp_path, budget=budget)
    one.epochs(10, 4, 2)
    one.charge(b"result")
    later = training(tmp_path, 1, budget)
    later.use(1)
    with pytest.raises(BudgetSpent):
        later.epochs(10, 4, 1)
    another = training(tmp_path, 0, budget)  # of the round that was charged: computed, but not released
    another.epochs(10, 4, 2)
    with pytest.raises(BudgetSpent):
        another.charge(b"another result")


def test_a_threshold_is_the_quantile_of_the_histogram() -> None:
    generator = torch.Generator().manual_seed(0)
    difficulty = 10 ** (torch.rand(5000, generator=generator) * 6 - 3)
    counts = torch.bincount(bins_of(difficulty), minlength=BINS).double()
    for share in (0.1, 0.5, 0.9):
        assert abs(float((difficulty <= threshold(counts, share)).float().mean()) - share) < 0.02
    ends = bins_of(torch.tensor([0.0, 1e-9, 1e9, math.nan, math.inf]))
    assert ends.tolist() == [-1, 0, BINS - 1, BINS - 1, BINS - 1]
    assert threshold(torch.zeros(BINS), 0.5) == math.inf


def test_a_plan_finds_the_noise_for_the_client_that_trains_most() -> None:
    rounds = [
        PlannedRound(Round("tune", n, 4, n), cohort, 3 if n == 0 else 2) for n, cohort in enumerate((("a", "b"), ("a",), ("c",), ("a",)))
    ]
    plan = example_plan(PrivacyOptions(unit="example", epsilon=4.0, delta=1e-4), rounds, 100, 8)
    assert plan.most_times(4) == 7 and plan.epsilon(4) == pytest.approx(4.0, abs=1e-6) and plan.epsilon(4) <= 4.0
    assert plan.affordable == 4
    less = example_plan(PrivacyOptions(unit="example", noise_multiplier=plan.noise_multiplier, max_epsilon=3.0, delta=1e-4), rounds, 100, 8)
    assert less.affordable == 1
    with pytest.raises(UserError, match=r"privacy\.delta: got 0\.02 where a client has 100 training examples, expected at most 0\.01"):
        example_plan(PrivacyOptions(unit="example", epsilon=4.0, delta=0.02), rounds, 100, 8)
