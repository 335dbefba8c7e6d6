"""The gap rule and the plateau rule by hand, and Lanczos on matrices whose spectrum is planted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.local.spectrum import lanczos, layer_gap_ratio, plateau_ratio

KEY = Key(0).fold("test")


# The gap rule


@pytest.mark.parametrize(
    ("eigenvalues", "lipschitz", "ratio"),
    [
        ([0, 1, 2, 10], 1, 3 / 4),  # 8 > 4 at the third gap
        ([0, 5, 6, 20], 1, 1 / 4),  # the first such gap, not the widest
        ([-3, -2, 2, 3], 0.5, 2 / 4),  # 4 > 2
        ([0, 4, 8], 1, 1),  # a gap of exactly 4 L_k is not wide enough
        ([1, 1, 1], 0, 1),
        ([7], 0, 1),
    ],
)
def test_the_ratio_is_where_the_first_gap_is_wider_than_four_lipschitz_constants(
    eigenvalues: list[float], lipschitz: float, ratio: float
) -> None:
    assert layer_gap_ratio(eigenvalues, lipschitz) == ratio


@pytest.mark.parametrize(("eigenvalues", "lipschitz"), [([], 1), ([2, 1], 1), ([0, math.nan], 1), ([0, 1], math.nan), ([0, 1], -1)])
def test_eigenvalues_that_do_not_ascend_and_impossible_constants_are_refused(eigenvalues: list[float], lipschitz: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        layer_gap_ratio(eigenvalues, lipschitz)


# Lanczos


def planted(eigenvalues: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors as columns."""
    vectors, _ = torch.linalg.qr(
        torch.randn(len(eigenvalues), len(eigenvalues), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    return vectors @ torch.diag(eigenvalues) @ vectors.T, vectors


def probe(dim: int) -> Tensor:
    """The probe that `lanczos` draws from KEY, read off its first product."""
    seen: list[Tensor] = []

    def matvec(vector: Tensor) -> Tensor:
        seen.append(vector.clone())
        return vector

    lanczos(matvec, dim, 1, KEY)
    return seen[0]


def mass_above(values: Tensor, mass: Tensor, threshold: float) -> float:
    return float(mass[values > threshold].sum())


def test_the_probe_has_entries_of_one_size_and_length_one() -> None:
    values = probe(64)
    assert (values.abs() == 1 / 8).all()
    assert 16 < int((values > 0).sum()) < 48


def test_with_as_many_steps_as_dimensions_ritz_values_and_masses_are_the_spectral_measure_of_the_probe() -> None:
    matrix, vectors = planted(torch.linspace(-2, 5, 30, dtype=torch.float64) ** 3)
    ritz, mass = lanczos(matrix.mv, 30, 30, KEY)
    torch.testing.assert_close(ritz, torch.linspace(-2, 5, 30, dtype=torch.float64) ** 3)
    torch.testing.assert_close(mass, (vectors.T @ probe(30)) ** 2)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 9])
def test_fewer_steps_are_exact_for_polynomials_below_twice_their_number(num_steps: int) -> None:
    matrix, _ = planted(torch.linspace(-1, 1, 40, dtype=torch.float64))
    ritz, mass = lanczos(matrix.mv, 40, num_steps, KEY)
    assert len(ritz) == num_steps
    v = probe(40)
    for degree in range(2 * num_steps):
        assert float((mass * ritz**degree).sum()) == pytest.approx(float(v @ torch.linalg.matrix_power(matrix, degree) @ v), abs=1e-12)


def test_steps_end_with_the_krylov_space() -> None:
    matrix, vectors = planted(torch.tensor([0.0] * 17 + [1.0, 1.0, 3.0], dtype=torch.float64))
    ritz, mass = lanczos(matrix.mv, 20, 30, KEY)
    weights = (vectors.T @ probe(20)) ** 2
    for threshold in (-0.5, 0.5, 2.0, 3.5):
        assert mass_above(ritz, mass, threshold) == pytest.approx(
            mass_above(torch.tensor([0.0] * 17 + [1.0, 1.0, 3.0]), weights, threshold), abs=1e-10
        )
    ritz, mass = lanczos(torch.zeros_like, 20, 30, KEY)
    assert (ritz.tolist(), mass.tolist()) == ([0.0], [1.0])


def test_a_matrix_without_dimensions_or_with_products_that_are_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="dim = 0"):
        lanczos(torch.clone, 0, 3, KEY)
    with pytest.raises(FloatingPointError, match="Lanczos step 0"):
        lanczos(lambda vector: vector * math.nan, 4, 3, KEY)


# The plateau rule


@pytest.mark.parametrize(
    ("ritz", "mass", "ratio"),
    [
        # the second value is passed by the first step of 0.1, and nothing follows up to 10
        ([-1.0, 0.001, 10.0], [0.3, 0.1, 0.6], 0.6),
        # a step of 0.01 loses 0.9 at once; halved until three steps fit below 0.005
        ([0.005, 1.0], [0.9, 0.1], 1.0),
        # a hundred equal values: each step of 0.01 loses 0.01, until it is short enough for three steps before the first value
        ([k / 100 for k in range(1, 101)], [0.01] * 100, 1.0),
        # standing still means less than 0.005 a step: 0.004 a step passes
        ([-1.0, 0.005, 0.015, 0.025, 1.0], [0.1, 0.004, 0.004, 0.004, 0.888], 0.888),
        # one large value to pass, then quiet
        ([0.015, 0.5, 1.0], [0.2, 0.4, 0.4], 0.8),
        ([-2.0, -1.0], [0.5, 0.5], 0.0),
        ([0.0], [1.0], 0.0),
        # halving cannot reach below the smallest value: mass above 0 is the answer
        ([1e-300, 1.0], [0.9, 0.1], 1.0),
    ],
)
def test_the_plateau_of_a_planted_spectrum_is_found(ritz: list[float], mass: list[float], ratio: float) -> None:
    values, masses = torch.tensor(ritz, dtype=torch.float64), torch.tensor(mass, dtype=torch.float64)
    assert plateau_ratio(values, masses) == pytest.approx(ratio, abs=1e-12)


def test_the_plateau_hangs_on_the_sign_of_a_value_that_is_zero_up_to_rounding() -> None:
    mass = torch.tensor([0.035, 0.956, 0.005, 0.004], dtype=torch.float64)
    answers = [plateau_ratio(torch.tensor([-0.11, zero, 0.6, 1.08], dtype=torch.float64), mass) for zero in (8e-5, -8e-5)]
    assert answers == pytest.approx([0.965, 0.009])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.001, 1)), min_size=1, max_size=30), st.integers(-20, 20))
def test_the_plateau_search_ends_between_half_and_all_of_the_positive_mass_on_any_scale(
    pairs: list[tuple[float, float]], exponent: int
) -> None:
    ritz = torch.tensor([value if abs(value) > 1e-200 else 0.0 for value, _ in pairs], dtype=torch.float64)
    mass = torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
    mass = mass / mass.sum()
    ratio, at_zero = plateau_ratio(ritz, mass), mass_above(ritz, mass, 0.0)
    assert at_zero / 2 <= ratio <= at_zero
    assert plateau_ratio(ritz * 2.0**exponent, mass) == ratio


@pytest.mark.parametrize(("ritz", "mass"), [([], []), ([1.0], [0.5, 0.5]), ([math.nan], [1.0]), ([1.0], [math.inf])])
def test_a_spectrum_that_is_none_is_refused(ritz: list[float], mass: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        plateau_ratio(torch.tensor(ritz), torch.tensor(mass))
