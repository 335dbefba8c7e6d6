"""A second accountant, by Renyi divergences, for releases over a Poisson sample that nobody can predict.

Nothing here samples in secret: cohorts follow the schedule of the run's key, which every client knows, so no amplification by sampling is
claimed and `gaussian.py` is the accountant. This one checks it, and says what published figures mean.
"""

from __future__ import annotations

import math

ORDERS = tuple(range(2, 129))


def renyi_divergence(order: int, noise_multiplier: float, rate: float = 1.0) -> float:
    """Of one release at an integer order (Mironov et al. 2019, section 3.3), nat.

    Args:
        rate: probability with which each unit is in the sample, 0 to 1.
    """
    if rate >= 1:
        return order / (2 * noise_multiplier**2)
    if rate <= 0:
        return 0.0
    terms = [
        math.log(math.comb(order, k)) + (order - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * noise_multiplier**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    return (largest + math.log(math.fsum(math.exp(term - largest) for term in terms))) / (order - 1)


def renyi_epsilon(releases: int, noise_multiplier: float, delta: float, rate: float = 1.0) -> float:
    """Epsilon of so many releases by the conversion of Mironov 2017, proposition 3: above the exact one, never below."""
    return min(releases * renyi_divergence(order, noise_multiplier, rate) - math.log(delta) / (order - 1) for order in ORDERS)
