"""Shares, masks and signed statements by themselves."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from fibecfed.secure import shamir
from fibecfed.secure.masks import add_mask, derived
from fibecfed.secure.signed import BadStatement, keys_in, read, stated


@settings(max_examples=30, deadline=None)
@given(st.integers(0, shamir.PRIME - 1), st.integers(1, 6), st.integers(0, 4))
def test_any_t_shares_give_the_secret(secret: int, least: int, more: int) -> None:
    points = range(1, least + more + 1)
    shares = dict(zip(points, shamir.shares_of(secret, least, points), strict=True))
    for some in itertools.combinations(points, least):
        assert shamir.combined([shares[point] for point in some], shamir.weights_at_zero(some)) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """With t - 1 shares fixed there is exactly one polynomial for each secret."""
    shares = shamir.shares_of(7, 3, [1, 2])
    for secret in (0, 7, shamir.PRIME - 1):
        weights = shamir.weights_at_zero([1, 2, 3])
        third = (secret - shares[0] * weights[0] - shares[1] * weights[1]) * pow(weights[2], -1, shamir.PRIME) % shamir.PRIME
        assert shamir.combined([*shares, third], weights) == secret


def test_a_mask_is_the_key_stream_of_aes() -> None:
    key = hashlib.sha256(b"k").digest()
    for dtype, length in ((np.uint32, 100_003), (np.uint64, 33_000)):
        size = np.dtype(dtype).itemsize
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size * length))
        expected = np.frombuffer(stream, dtype)
        words = np.full(length, 5, dtype)
        add_mask(words, key)
        assert np.array_equal(words, expected + dtype(5))
        add_mask(words, key, subtract=True)
        assert (words == 5).all()


def test_a_derived_key_is_hkdf_and_tells_purposes_apart() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    expected = HKDF(hashes.SHA256(), 32, None, b"\0\0\0\1a\0\0\0\2bc").derive(b"s" * 32)
    assert derived(b"s" * 32, "a", b"bc") == expected != derived(b"s" * 32, "ab", "c")


@pytest.mark.parametrize(
    "change",
    [lambda s: s[:-1] + "]", lambda s: "0" * 128 + s[128:], lambda s: s.replace("1", "2"), lambda s: "", lambda s: "zz" + s[2:]],
)
def test_a_changed_statement_is_nobodys(change: object) -> None:
    key = Ed25519PrivateKey.generate()
    statement, public = stated(key, {"a": 1}), key.public_key().public_bytes_raw()
    assert read(statement, public) == {"a": 1}
    with pytest.raises(BadStatement, match="signature"):
        read(change(statement), public)  # pyright: ignore[reportCallIssue]
    with pytest.raises(BadStatement):
        read(statement, Ed25519PrivateKey.generate().public_key().public_bytes_raw())


@pytest.mark.parametrize("table", [{}, {"sealing": 3, "masking": "00"}, {"sealing": "00" * 32, "masking": "0"}])
def test_keys_that_are_none(table: dict[str, object]) -> None:
    with pytest.raises(BadStatement, match="no two keys"):
        keys_in(table)
