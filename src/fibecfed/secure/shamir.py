"""Shamir's secret sharing (CACM 1979) over the integers modulo 2^255 - 19.

A secret is the value at 0 of a random polynomial of degree t - 1; the share at point x is its value there. Any t shares give the secret by
Lagrange's formula, and t - 1 tell nothing of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

PRIME = 2**255 - 19
SIZE = 32
"""Bytes of a secret and of a share."""


def drawn() -> int:
    """A random secret, from the operating system."""
    return secrets.randbelow(PRIME)


def shares_of(secret: int, least: int, points: Iterable[int]) -> list[int]:
    """The share at each point.

    Args:
        secret: 0 to PRIME - 1.
        least: t, shares that give the secret.
        points: different, from 1 on.
    """
    polynomial = [secret, *(drawn() for _ in range(least - 1))]
    found: list[int] = []
    for point in points:
        value = 0
        for coefficient in reversed(polynomial):
            value = (value * point + coefficient) % PRIME
        found.append(value)
    return found


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """What each share is multiplied with: the product of x_j / (x_j - x_i) over the other points x_j."""
    found: list[int] = []
    for own in points:
        top, bottom = 1, 1
        for other in points:
            if other != own:
                top, bottom = top * other % PRIME, bottom * (other - own) % PRIME
        found.append(top * pow(bottom, -1, PRIME) % PRIME)
    return found


def combined(shares: Iterable[int], weights: Iterable[int]) -> int:
    """The secret of t shares, in the order of the points that the weights were made of."""
    return sum(share * weight for share, weight in zip(shares, weights, strict=True)) % PRIME
