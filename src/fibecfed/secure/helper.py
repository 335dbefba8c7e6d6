"""Secure aggregation by a helper that does not work with the server: masks that the helper alone can add up, and what it adds up at all.

| | from | to | |
|---|---|---|---|
| 0 | helper | clients, by the server | a fresh X25519 key for the round, signed (`offered`) |
| 1 | client | server | its words plus a mask, and the seed of that mask, sealed to the helper and signed (`mask`) |
| 2 | server | helper | the seeds of those whose words have come (`opened`) |
| 3 | helper | server | the sum of their masks (`masks_of`) |

The server has masked words, the helper has masks; each alone learns nothing, both together everything: the two servers of Prio
(Corrigan-Gibbs and Boneh, NSDI 2017) without its proofs, and with a seed in place of the second share. Everything is signed, since the
server carries it all: without signatures it could make up clients and be told the sum of one.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .context import Context
from .masks import Words, add_mask, agreed, derived
from .signed import BadStatement, Misled, read, stated

SEED = 32
_KEY = 32
_SEALED = _KEY + SEED + 16
"""Bytes of a sealed seed: a key, and the seed with its tag."""
_ONCE = bytes(12)
"""The nonce of keys that seal one message each."""


# ---- the helper's keys


@dataclass(frozen=True)
class Offer:
    """The key that clients seal their seeds to in one round.

    Attributes:
        sealing: raw X25519 key.
        before: whose masks the helper added up in this round before; empty: it did not.
    """

    sealing: bytes
    before: tuple[str, ...]


def offered(identity: Ed25519PrivateKey, run: str, round_number: int, key: X25519PrivateKey, before: Sequence[str]) -> str:
    """The signed statement of an `Offer`."""
    sealing = key.public_key().public_bytes_raw().hex()
    return stated(identity, {"kind": "offer", "run": run, "round": round_number, "sealing": sealing, "before": list(before)})


def offer_of(statement: str, pinned: bytes, run: str, round_number: int) -> Offer:
    """What `offered` stated.

    Args:
        pinned: the helper's raw public key.

    Raises:
        BadStatement: the helper did not say so of this round.
    """
    told = read(statement, pinned)
    if (told.get("kind"), told.get("run"), told.get("round")) != ("offer", run, round_number):
        raise BadStatement(f"it is for another round: {str(told.get('round'))[:20]} of run {str(told.get('run'))[:20]}")
    try:
        sealing, before = bytes.fromhex(told["sealing"]), tuple(map(str, told["before"]))
    except (KeyError, TypeError, ValueError):
        sealing, before = b"", ()
    if len(sealing) != _KEY:
        raise BadStatement("it has no key of 32 bytes")
    return Offer(sealing, before)


# ---- a client


def mask(words: Words, name: str, identity: Ed25519PrivateKey, context: Context, request: str, offer: Offer) -> str:
    """Mask a client's words, in place; the signed statement of the mask's seed, sealed to the helper.

    Args:
        request: all else that the server told the client and that its words depend on; everybody's must be the same.

    Raises:
        ValueError: the helper's key is not one with which anything secret can be agreed.
    """
    about = _about(context, request, words)
    key, seed = X25519PrivateKey.generate(), secrets.token_bytes(SEED)
    public, bound = key.public_key().public_bytes_raw(), _bound(name, about)
    sealed = ChaCha20Poly1305(agreed(key, offer.sealing, "seed", public, offer.sealing, bound)).encrypt(_ONCE, seed, bound)
    add_mask(words, derived(seed, "mask", bound))
    table = {"kind": "seed", "client": name, **about, "sealing": offer.sealing.hex(), "sealed": (public + sealed).hex()}
    return stated(identity, table)


# ---- the server


def why_not(
    statement: str, client: str, pinned: Mapping[str, bytes], context: Context, request: str, offer: Offer, words: Words
) -> str | None:
    """Why a client's seed does not belong to this sum; None: it does, as far as the server can tell.

    The helper rejects all seeds of a sum for one that does not belong to it, so a client that sends such a one is left out before.
    """
    try:
        told = read(statement, pinned[client])
    except (BadStatement, KeyError) as error:
        return f"its seed cannot be used: {error}"
    sealed = told.pop("sealed", None)
    if told != {"kind": "seed", "client": client, **_about(context, request, words), "sealing": offer.sealing.hex()}:
        return "its seed is for another sum"
    return None if isinstance(sealed, str) and re.fullmatch(f"[0-9a-f]{{{2 * _SEALED}}}", sealed) else "its seed is not sealed"


# ---- the helper


@dataclass(frozen=True)
class Limits:
    """What a sum must be, by the helper's own configuration.

    Attributes:
        least: t, clients that it is of at least.
        colluders: c, clients that may work with the server.
        bits: of a word.
    """

    least: int
    colluders: int
    bits: int


@dataclass(frozen=True)
class Answered:
    """A sum whose masks the helper has added up.

    Attributes:
        sum: a digest of all that its seeds are bound to.
        survivors: of whom it is, sorted.
    """

    sum: str
    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """The seeds of one sum.

    Attributes:
        answered: what is remembered of it.
        numbers: words of each client.
        bits: of a word.
        seeds: by client, with what each mask is bound to.
    """

    answered: Answered
    numbers: int
    bits: int
    seeds: Mapping[str, tuple[bytes, bytes]]


def opened(
    statements: Mapping[str, str],
    pinned: Mapping[str, bytes],
    limits: Limits,
    run: str,
    round_number: int,
    key: X25519PrivateKey | None,
    before: Answered | None,
) -> Opened:
    """The seeds whose masks the server wants added up, if an honest one could ask for that.

    Args:
        statements: client -> its seed, as `mask` states it.
        pinned: name -> raw public key of each client.
        run, round_number: what the server asks about.
        key: of the round, as it was offered; None: there is none any more.
        before: what was answered in this round before; None: nothing.

    Raises:
        Misled: saying what is wrong, and with whom.
    """
    if len(statements) < limits.least or limits.least < limits.colluders + 2:
        raise Misled(f"the server asks for the masks of {len(statements)} clients, expected at least {limits.least}")
    told = {client: _told(client, statement, pinned) for client, statement in sorted(statements.items())}
    first, *others = told
    about = {name: told[first][name] for name in _FIELDS}
    asked = {"run": run, "round": round_number, "least": limits.least, "colluders": limits.colluders, "bits": limits.bits}
    for name, value in asked.items():
        if about.get(name) != value:
            raise Misled(
                f"the seed of client {first} is for another {name} than the server asks for: {str(about.get(name))[:80]}, expected {value}"
            )
    for client in others:
        for name, value in about.items():
            if told[client].get(name) != value:
                raise Misled(
                    f"the server sent another {name} to client {client} than to {first}, or hands on an old seed of it: "
                    f"{str(told[client].get(name))[:80]}, expected {str(value)[:80]}"
                )
    answered = Answered(hashlib.sha256(_text(about)).hexdigest(), tuple(told))
    if before is not None and before != answered:
        if before.survivors == answered.survivors:
            raise Misled(f"the server asks for a second sum of round {round_number}, of another model or request: one round is summed once")
        raise Misled(
            f"the server asks for a second sum of round {round_number}, of {', '.join(answered.survivors)} after that of "
            f"{', '.join(before.survivors)}: their difference would show single clients"
        )
    numbers = about.get("numbers")
    if not isinstance(numbers, int) or isinstance(numbers, bool) or numbers < 0:
        raise Misled(f"the seeds are for {str(numbers)[:40]} numbers, expected how many each client has")
    seeds = {client: (_seed(client, table, key, _bound(client, about)), _bound(client, about)) for client, table in told.items()}
    return Opened(answered, numbers, limits.bits, seeds)


def masks_of(asked: Opened) -> Words:
    """The sum of the masks."""
    total: Words = np.zeros(asked.numbers, f"uint{asked.bits}")
    for seed, bound in asked.seeds.values():
        add_mask(total, derived(seed, "mask", bound))
    return total


# ---- parts of it

_FIELDS = ("run", "round", "attempt", "cohort", "broadcast", "least", "colluders", "request", "numbers", "bits")
"""Of a seed's statement: what must be the same for every client of a sum, all of it. A statement that lacks one would hide that the
others differ in it."""

_OWN = ("kind", "client", "sealing", "sealed")
"""And what is each client's own."""


def _about(context: Context, request: str, words: Words) -> dict[str, Any]:
    """All that must be the same for every client of a sum."""
    return {**context.table, "request": request, "numbers": len(words), "bits": 8 * words.itemsize}


def _bound(name: str, about: Mapping[str, Any]) -> bytes:
    return _text({**about, "client": name})


def _text(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


def _told(client: str, statement: str, pinned: Mapping[str, bytes]) -> dict[str, Any]:
    """What a client has signed about its seed."""
    if client not in pinned:
        raise Misled(f"the server named client {client[:80]}, whose key is not pinned (privacy.keys)")
    try:
        told = read(statement, pinned[client])
    except BadStatement as error:
        raise Misled(f"the server hands on a seed as that of client {client}, but {error}") from None
    if (told.get("kind"), told.get("client")) != ("seed", client) or told.keys() != {*_FIELDS, *_OWN}:
        raise Misled(f"the server hands on something else that client {client} signed, expected its seed")
    return told


def _seed(client: str, told: Mapping[str, Any], key: X25519PrivateKey | None, bound: bytes) -> bytes:
    if key is None or told.get("sealing") != key.public_key().public_bytes_raw().hex():
        raise Misled(
            f"the seed of client {client} is sealed to a key that this helper does not have any more: it was started again, has answered "
            "since, or was asked for another key; have the clients answer again"
        )
    try:
        sealed = bytes.fromhex(told["sealed"])
        public, box = sealed[:_KEY], sealed[_KEY:]
        own = key.public_key().public_bytes_raw()
        seed = ChaCha20Poly1305(agreed(key, public, "seed", public, own, bound)).decrypt(_ONCE, box, bound)
    except (InvalidTag, KeyError, TypeError, ValueError):
        raise Misled(f"the seed of client {client} cannot be opened: it was sealed for something else, or not by that client") from None
    if len(seed) != SEED:
        raise Misled(f"the seed of client {client} has {len(seed)} bytes, expected {SEED}")
    return seed
