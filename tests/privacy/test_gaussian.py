"""The accountant, against values of others and against its definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.privacy.gaussian import delta_of, epsilon_of, noise_for, releases_within
from fibecfed.privacy.renyi import renyi_epsilon

OF_DP_ACCOUNTING = [
    # z, releases, delta, epsilon by PLDAccountant and by RdpAccountant of dp-accounting 0.6.0
    (1.0, 4, 1e-5, 9.99725615024243, 10.725509696418232),
    (2.0, 40, 1e-5, 17.85658683146691, 19.05359753163139),
    (5.0, 40, 1e-5, 5.759481468911875, 6.2083564483459375),
    (2.0, 4, 1e-5, 4.37717810002493, 4.728507067217623),
    (4.0, 40, 1e-5, 7.511275904062699, 8.079406222420491),
    (2.0, 1, 1e-6, 2.2540846566590376, 2.4191024886939205),
    (30.0, 100, 1e-8, 1.754280519008601, 1.856389173575122),
]


@pytest.mark.parametrize(("z", "releases", "delta", "pld", "rdp"), OF_DP_ACCOUNTING)
def test_epsilon_is_that_of_dp_accounting(z: float, releases: int, delta: float, pld: float, rdp: float) -> None:
    found = epsilon_of(releases / z**2, delta)
    assert found == pytest.approx(pld, rel=2e-4)
    assert found < rdp < renyi_epsilon(releases, z, delta)  # what Renyi divergences give is above, with the better conversion too


@pytest.mark.parametrize(
    ("rate", "z", "releases", "delta", "published"),
    [
        (0.01, 4.0, 10_000, 1e-5, 1.26),  # Abadi et al. 2016, section 5.1
        (5000 / 763_430, 1.0, 5000, 1e-9, 4.634),  # McMahan et al. 2018, table 1
        (256 / 60_000, 1.3, 15 * 60_000 // 256, 1e-5, 1.19),  # the tutorial of TensorFlow Privacy
        (256 / 60_000, 1.1, 60 * 60_000 // 256, 1e-5, 3.01),
        (256 / 60_000, 0.7, 45 * 60_000 // 256, 1e-5, 7.12),
    ],
)
def test_published_figures_with_sampling(rate: float, z: float, releases: int, delta: float, published: float) -> None:
    assert renyi_epsilon(releases, z, delta, rate) == pytest.approx(published, abs=0.0051 if published < 4 or published > 5 else 5e-4)


def test_the_noise_for_an_epsilon_is_that_of_balle_and_wang() -> None:
    assert noise_for(1.0, 1e-5, 1) == pytest.approx(3.7306, abs=5e-5)


@given(z=st.floats(0.3, 50), releases=st.integers(1, 200), delta=st.floats(1e-12, 0.1))
def test_epsilon_and_delta_are_inverse(z: float, releases: int, delta: float) -> None:
    mu2 = releases / z**2
    epsilon = epsilon_of(mu2, delta)
    assert delta_of(epsilon, mu2) <= delta
    assert epsilon == 0 or delta_of(epsilon * (1 - 1e-9), mu2) > delta * (1 - 1e-6)


@given(epsilon=st.floats(0.05, 50), delta=st.floats(1e-12, 0.01), releases=st.integers(1, 500))
def test_the_noise_for_an_epsilon_keeps_it_and_hardly_less_does_not(epsilon: float, delta: float, releases: int) -> None:
    z = noise_for(epsilon, delta, releases)
    charged = sum([1 / z**2] * releases)  # as a ledger adds them up
    assert epsilon_of(charged, delta) <= epsilon < epsilon_of(releases / (z * (1 - 1e-6)) ** 2, delta)
    assert releases_within(epsilon, delta, z, 1000) == releases


@given(mu2=st.floats(1e-6, 1e4), more=st.floats(1.0001, 10), delta=st.floats(1e-12, 0.5))
def test_more_releases_cost_more(mu2: float, more: float, delta: float) -> None:
    assert epsilon_of(mu2 * more, delta) >= epsilon_of(mu2, delta)
    assert delta_of(1.0, mu2 * more) >= delta_of(1.0, mu2)


def test_far_out_values_are_numbers() -> None:
    assert epsilon_of(0.0, 1e-5) == 0 and epsilon_of(math.inf, 1e-5) == math.inf
    assert epsilon_of(1e8, 1e-300) == pytest.approx(5e7, rel=0.01)
    assert epsilon_of(1e-12, 1e-300) > 0
    assert delta_of(5000.0, 1.0) == 0.0


@pytest.mark.parametrize(("mu2", "delta"), [(math.nan, 1e-5), (-1.0, 1e-5), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)])
def test_what_is_no_release_is_rejected(mu2: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        epsilon_of(mu2, delta)
