"""Statements with a signature: JSON text, and before it 128 hexadecimal digits of Ed25519 over it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_DOMAIN = b"fibecfed secure aggregation 1: "
"""Nothing else that the key may sign begins so."""

_DIGITS = 128


class BadStatement(ValueError):
    """A statement that its client did not make."""


class Misled(Exception):
    """The server asks for what an honest one would not, or somebody else's message is not theirs. The text says which."""


def stated(key: Ed25519PrivateKey, table: Mapping[str, Any]) -> str:
    """A signed statement."""
    text = json.dumps(table, sort_keys=True, separators=(",", ":"))
    return key.sign(_DOMAIN + text.encode()).hex() + text


def read(statement: str, public: bytes) -> dict[str, Any]:
    """The table of a statement.

    Args:
        public: the raw key of whom it must be of.

    Raises:
        BadStatement: the signature is not valid, or there is no table.
    """
    text = statement[_DIGITS:]
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(statement[:_DIGITS]), _DOMAIN + text.encode())
        table = json.loads(text)
    except (InvalidSignature, ValueError, RecursionError):
        raise BadStatement("its signature is not that of the pinned key") from None
    if not isinstance(table, dict):
        raise BadStatement("it is not a table")
    return table


def keys_in(table: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The two X25519 keys that a client advertises, for sealing and for masking.

    Raises:
        BadStatement: they are not there.
    """
    try:
        sealing, masking = (bytes.fromhex(table[name]) for name in ("sealing", "masking"))
    except (KeyError, TypeError, ValueError):
        sealing = masking = b""
    if len(sealing) != 32 or len(masking) != 32:
        raise BadStatement("it has no two keys of 32 bytes")
    return sealing, masking


def transcript_of(roster: Mapping[str, str]) -> bytes:
    """A digest of all keys of a sum, as every client of it must have seen them."""
    seen = hashlib.sha256()
    for client in sorted(roster):
        seen.update(hashlib.sha256(roster[client].encode()).digest())
    return seen.digest()
