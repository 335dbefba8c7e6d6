"""The accountant and the ledger against Google's dp-accounting: `make test-accounting` fetches it; skipped where it is not there."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fibecfed.privacy.adaptive import COUNT_NOISE, noise_on_updates
from fibecfed.privacy.gaussian import epsilon_of, noise_for
from fibecfed.privacy.ledger import Ledger, Release, Terms
from fibecfed.privacy.renyi import ORDERS, renyi_divergence, renyi_epsilon

accounting: Any = pytest.importorskip("dp_accounting")
by_loss: Any = pytest.importorskip("dp_accounting.pld")
by_renyi: Any = pytest.importorskip("dp_accounting.rdp")

DIGITS = 5e-4
"""Relative: three digits."""


def composed(noises: Iterable[tuple[float, int]], delta: float) -> float:
    """Epsilon of so many Gaussian releases with each noise multiplier, by the numerical accountant of privacy losses."""
    accountant = by_loss.PLDAccountant()
    for z, times in noises:
        accountant.compose(accounting.GaussianDpEvent(z), times)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("z", "releases", "delta"), list(itertools.product((0.8, 2.0, 9.0), (1, 6, 60), (1e-3, 1e-6))))
def test_epsilon_is_that_of_the_numerical_accountant_and_below_that_of_renyi_divergences(z: float, releases: int, delta: float) -> None:
    accountant = by_renyi.RdpAccountant()
    accountant.compose(accounting.GaussianDpEvent(z), releases)
    found = epsilon_of(releases / z**2, delta)
    assert found == pytest.approx(composed([(z, releases)], delta), rel=DIGITS, abs=1e-4)
    assert found <= accountant.get_epsilon(delta) * (1 + 1e-9)


@pytest.mark.parametrize(("epsilon", "releases", "delta"), [(2.0, 20, 1e-5), (8.0, 6, 1e-3), (0.5, 100, 1e-6)])
def test_the_noise_for_an_epsilon_is_that_which_is_calibrated_there(epsilon: float, releases: int, delta: float) -> None:
    found = noise_for(epsilon, delta, releases)
    assert composed([(found, releases)], delta) == pytest.approx(epsilon, rel=DIGITS)


def test_every_line_of_a_ledger_says_what_is_composed_of_its_lines(tmp_path: Path) -> None:
    """Several clients, noises, trainings that count several times, and a round that is charged twice."""
    delta, clients = 1e-4, ("a", "b", "c")
    ledger = Ledger(tmp_path, Terms("client", 3, 2, 6, 1.5, 1.0, delta, None))
    for number in range(6):
        charged = [clients[number % 3], clients[(number + 1) % 3]]
        for attempt in range(2 if number == 4 else 1):
            sums = bytes([number, attempt]) * 16
            ledger.charge(Release(number, "tune", 10, 1.5 + number % 2, 1.0, 2, sums, charged, times=1 + number // 3))
    assert ledger.releases == 7
    spent: dict[str, list[tuple[float, int]]] = {client: [] for client in clients}
    for line in map(json.loads, (tmp_path / "privacy.jsonl").read_text().splitlines()):
        for client in line.get("charged", ()):
            spent[client].append((line["z"], line["times"]))
        expected = max(composed(one, delta) if one else 0.0 for one in spent.values())
        assert line["epsilon_max"] == pytest.approx(expected, rel=DIGITS) and line["delta"] == delta


@pytest.mark.parametrize(("z", "size"), [(1.0, 50), (3.0, 100)])
def test_updates_and_the_count_of_adaptive_clipping_cost_what_is_charged(z: float, size: int) -> None:
    """The count is of bits of +-1/2, so it has noise of sigma_b over a sensitivity of 1/2."""
    together = accounting.ComposedDpEvent(
        [accounting.GaussianDpEvent(noise_on_updates(z, size)), accounting.GaussianDpEvent(2 * COUNT_NOISE * size)]
    )
    accountant = by_loss.PLDAccountant()
    accountant.compose(together, 5)
    assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon_of(5 / z**2, 1e-5), rel=DIGITS)


@pytest.mark.parametrize(("rate", "z", "releases"), [(0.01, 4.0, 10_000), (256 / 60_000, 1.1, 14_062), (0.2, 2.0, 50)])
def test_renyi_divergences_of_samples_are_the_same(rate: float, z: float, releases: int) -> None:
    accountant = by_renyi.RdpAccountant(orders=ORDERS)
    accountant.compose(accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(z)), releases)
    ours = [releases * renyi_divergence(order, z, rate) for order in ORDERS]
    assert all(math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) for one, other in zip(ours, accountant.rdp.tolist(), strict=True))
    assert renyi_epsilon(releases, z, 1e-5, rate) >= accountant.get_epsilon(1e-5)  # which converts better
