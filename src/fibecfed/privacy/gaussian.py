"""The accountant of Gaussian releases that are not amplified by sampling: exact, in closed form.

A release whose noise has z times the standard deviation of its sensitivity is mu-GDP with mu = 1/z, and releases compose by adding mu^2
(Dong et al., JRSS B 2022, corollary 2.1 and theorem 2.7). What is mu-GDP is (epsilon, delta)-DP exactly for

    delta = Phi(-epsilon/mu + mu/2) - exp(epsilon) Phi(-epsilon/mu - mu/2)        # Balle and Wang, ICML 2018, theorem 8

so that nothing is lost on the way. The sum of mu^2 may also grow by releases whose z depends on earlier releases (Smith and Thakurta 2022),
so a run may stop before a budget is passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MOST_NOISE = 1e4
"""The largest noise multiplier: noise then still fits into 64 bits on its grid (`clip.GRID_BITS`)."""


def delta_of(epsilon: float, mu2: float) -> float:
    """The smallest delta for which releases with this sum of 1/z^2 are (epsilon, delta)-DP.

    Args:
        epsilon: at least 0.
        mu2: sum of 1/z^2, at least 0; infinity where something was released without noise.
    """
    if mu2 == 0:
        return 0.0
    if math.isinf(mu2):
        return 1.0
    mu = math.sqrt(mu2)
    first, second = _log_tail(epsilon / mu - mu / 2), epsilon + _log_tail(epsilon / mu + mu / 2)
    return max(0.0, -math.exp(first) * math.expm1(second - first)) if second < first else 0.0


def epsilon_of(mu2: float, delta: float) -> float:
    """The smallest epsilon for which releases with this sum of 1/z^2 are (epsilon, delta)-DP, rounded up by at most 1e-12 of itself.

    Raises:
        ValueError: a delta that is not between 0 and 1, or a sum that is negative or NaN.
    """
    if not 0 < delta < 1 or not mu2 >= 0:
        raise ValueError(f"got delta {delta} and a sum of 1/z^2 of {mu2}, expected 0 < delta < 1 and at least 0")
    if math.isinf(mu2):
        return math.inf
    if delta_of(0.0, mu2) <= delta:
        return 0.0
    return _least(lambda epsilon: delta_of(epsilon, mu2) <= delta)


def noise_for(epsilon: float, delta: float, releases: int) -> float:
    """The smallest noise multiplier z with which so many releases are (epsilon, delta)-DP; inf where none is large enough.

    Rounded up by 1e-9 of itself, so that a sum of 1/z^2 may be rounded and still stays within the epsilon.

    Raises:
        ValueError: an epsilon that is not above 0 and finite, or no release.
    """
    if not 0 < epsilon < math.inf or releases < 1:
        raise ValueError(f"got epsilon {epsilon} for {releases} releases, expected a positive number for at least one")
    return _least(lambda z: epsilon_of(releases / z**2, delta) <= epsilon) * (1 + 1e-9)


def releases_within(epsilon: float, delta: float, noise_multiplier: float, most: int) -> int:
    """How many releases with this noise stay within a budget, of at most so many."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if epsilon_of(middle / noise_multiplier**2, delta) <= epsilon else (low, middle - 1)
    return low


def _least(holds: Callable[[float], bool]) -> float:
    """The smallest positive number from which on a property holds, found by halving; rounded to the side where it does."""
    high = 1.0
    while not holds(high):
        high *= 2
        if high > 2.0**60:
            return math.inf
    low = 0.0
    while high - low > 1e-12 * high and high > 1e-300:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_tail(x: float) -> float:
    """log Phi(-x), also where Phi(-x) is too small for a number."""
    if x < 25:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    # the asymptotic series of Mills' ratio; its error is below its next term, 945/x^10 < 1e-11
    inverse = 1 / x**2
    series = 1 - inverse * (1 - 3 * inverse * (1 - 5 * inverse * (1 - 7 * inverse)))
    return -x * x / 2 - math.log(x) - math.log(2 * math.pi) / 2 + math.log(series)
