"""Gaussian noise from a secret of the operating system, never from the run's key, which every client knows.

The secret and what the noise is for give a key by HMAC-SHA-256; SHAKE-256 makes a stream of bits of it, Box and Muller's transform makes
normal numbers of these. A sum that is computed again after an interruption gets the noise that it had, so that it is the same release;
another sum gets other noise. Without the secret the noise cannot be told from random.

What is added are whole steps of the grid on which the sum lies: rounding sum + N to the grid is adding N rounded to it, so what is
released is a function of sum + N alone and no low-order bits tell of the sum (Mironov, CCS 2012). N itself is computed in float64 from
64-bit numbers: it ends at 9.4 standard deviations, beyond which an exact one would be with a probability below 1e-19 a number.
"""

from __future__ import annotations

import hashlib
import hmac
import math

import numpy as np
from numpy.typing import NDArray

from .clip import Integers, grid_step

_BLOCK = 2**18
"""Pairs of normal numbers made at a time."""


def key_of(secret: bytes, *names: str | int | bytes) -> bytes:
    """A key of 32 bytes for one purpose; other names, another key."""
    parts = [name if isinstance(name, bytes) else str(name).encode() for name in names]
    return hmac.digest(secret, b"".join(len(part).to_bytes(8, "big") + part for part in parts), "sha256")


def normals(key: bytes, number: int) -> NDArray[np.float64]:
    """So many independent standard normal numbers, the same for the same key."""
    found = np.empty(number + number % 2)
    for start in range(0, len(found), 2 * _BLOCK):
        part = found[start : start + 2 * _BLOCK]
        half = len(part) // 2
        bits = np.frombuffer(hashlib.shake_256(key + start.to_bytes(8, "big")).digest(16 * half), dtype="<u8")
        uniform = (bits.astype(np.float64) + 0.5) * 2.0**-64  # above 0, at most 1
        radius, angle = np.sqrt(-2.0 * np.log(uniform[:half])), 2 * math.pi * uniform[half:]
        part[:half], part[half:] = radius * np.cos(angle), radius * np.sin(angle)
    return found[:number]


def noised(total: Integers, clip_norm: float, noise_multiplier: float, key: bytes) -> Integers:
    """A sum with N(0, z^2 C^2) added to each of its numbers, in whole steps of the grid."""
    scale = noise_multiplier * clip_norm / grid_step(clip_norm)
    drawn = np.rint(normals(key, sum(value.size for value in total.values())) * scale).astype(np.int64)
    found: Integers = {}
    for name, value in total.items():
        found[name], drawn = value + drawn[: value.size].reshape(value.shape), drawn[value.size :]
    return found
