"""Masks: words from a key, added to words in place, in parts that fit into a processor's cache."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.unsignedinteger[Any]]

_PART = 2**18
"""Bytes made at a time."""
_NOTHING = bytes(_PART)


def derived(secret: bytes, *about: str | bytes) -> bytes:
    """A key of 32 bytes by HKDF-SHA-256, for one purpose.

    Args:
        about: what it is for; each part with its length, so that no two lists give one text.
    """
    parts = [part if isinstance(part, bytes) else part.encode() for part in about]
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return HKDF(hashes.SHA256(), 32, None, info).derive(secret)


def agreed(own: X25519PrivateKey, other: bytes, *about: str | bytes) -> bytes:
    """A key that the holders of two X25519 keys share.

    Raises:
        ValueError: the other key is not one with which anything secret can be agreed.
    """
    return derived(own.exchange(X25519PublicKey.from_public_bytes(other)), *about)


def add_mask(words: Words, key: bytes, *, subtract: bool = False) -> None:
    """Add the words of AES-256 in counter mode to `words`, or subtract them; modulo 2^32 or 2^64, as their dtype says.

    Args:
        words: one-dimensional, contiguous; changed in place.
        key: 32 bytes, used for this mask alone.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    buffer = bytearray(_PART + 15)  # as `update_into` asks for
    made: Words = np.frombuffer(buffer, words.dtype.newbyteorder("<"), count=_PART // words.itemsize)
    operate = np.subtract if subtract else np.add
    for start in range(0, len(words), len(made)):
        part = words[start : start + len(made)]
        stream.update_into(memoryview(_NOTHING)[: part.nbytes], buffer)
        operate(part, made[: len(part)], out=part)
