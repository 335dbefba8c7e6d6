"""What a helper adds up: masks that cancel, and nothing that a lying server, or a client with it, could make of its seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from summing import context, drawn, identities, names, pinned, plain

from fibecfed.secure.helper import Answered, Limits, Offer, mask, masks_of, offer_of, offered, opened, why_not
from fibecfed.secure.signed import BadStatement, Misled, stated

COHORT = names(5)
KEYS = identities([*COHORT, "999"])
PINNED = pinned({client: KEYS[client] for client in COHORT})
LIMITS = Limits(4, 1, 32)
HELPER = identities(["1"])["1"]
RUN, ROUND = context(COHORT).run, context(COHORT).round


def sealing() -> tuple[X25519PrivateKey, Offer]:
    key = X25519PrivateKey.generate()
    return key, offer_of(offered(HELPER, RUN, ROUND, key, ()), HELPER.public_key().public_bytes_raw(), RUN, ROUND)


def masked(offer: Offer, words: Mapping[str, np.ndarray] | None = None, request: str = "", **about: Any) -> dict[str, str]:
    """What each client gives for the helper; its words are masked in place."""
    found = drawn(COHORT) if words is None else words
    return {client: mask(found[client], client, KEYS[client], context(COHORT, **about), request, offer) for client in found}


def asked(statements: Mapping[str, str], key: X25519PrivateKey | None, before: Answered | None = None, limits: Limits = LIMITS) -> Any:
    return opened(statements, PINNED, limits, RUN, ROUND, key, before)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 300), st.sampled_from([np.uint32, np.uint64]), st.integers(0, 1))
def test_masks_cancel(length: int, dtype: Any, lost: int) -> None:
    (key, offer), words = sealing(), drawn(COHORT, length, dtype)
    true = {client: value.copy() for client, value in words.items()}
    statements, here = masked(offer, words), COHORT[lost:]
    total = plain(words, here)
    total -= masks_of(asked({client: statements[client] for client in here}, key, limits=replace(LIMITS, bits=8 * words["000"].itemsize)))
    assert np.array_equal(total, plain(true, here))


def test_what_leaves_a_client_tells_nothing_of_its_words_without_the_helpers_key() -> None:
    """Each bit of masked zeros is set half of the time, and no two masks are alike."""
    _, offer = sealing()
    words = {client: np.zeros(20_000, np.uint32) for client in COHORT}
    masked(offer, words)
    for one in words.values():
        share = np.unpackbits(one.view(np.uint8)).mean()
        assert abs(share - 0.5) < 0.005
    assert len({one.tobytes() for one in words.values()}) == 5


def refused(text: str, statements: Mapping[str, str], key: X25519PrivateKey | None, **more: Any) -> None:
    with pytest.raises(Misled, match=text):
        asked(statements, key, **more)


@pytest.mark.parametrize(("count", "limits"), [(3, LIMITS), (0, LIMITS), (2, Limits(2, 1, 32))])
def test_too_few(count: int, limits: Limits) -> None:
    key, offer = sealing()
    refused("the server asks for the masks of", dict(list(masked(offer).items())[:count]), key, limits=limits)


def test_clients_that_the_server_made_up() -> None:
    key, offer = sealing()
    statements = masked(offer)
    fake = mask(np.zeros(37, np.uint32), "999", KEYS["999"], context(COHORT), "", offer)
    refused("the server named client 999, whose key is not pinned", {**statements, "999": fake}, key)
    own = mask(np.zeros(37, np.uint32), "004", KEYS["999"], context(COHORT), "", offer)
    refused("as that of client 004, but its signature is not that of the pinned key", {**statements, "004": own}, key)
    refused("as that of client 004, but its signature is not that of the pinned key", {**statements, "004": statements["003"]}, key)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("broadcast", "another model"),
        ("attempt", 1),
        ("round", 4),
        ("run", "1" * 16),
        ("dropouts", 0),
        ("colluders", 0),
    ],
)
def test_a_client_that_was_told_something_else(field: str, value: Any) -> None:
    key, offer = sealing()
    statements = {**masked(offer), **masked(offer, {"004": drawn(COHORT)["004"]}, **{field: value})}
    name = {"dropouts": "least"}.get(field, field)
    refused(f"the server sent another {name} to client 004 than to 000, or hands on an old seed of it", statements, key)


@pytest.mark.parametrize("field", ["round", "run", "dropouts", "colluders"])
def test_all_seeds_of_another_sum(field: str) -> None:
    key, offer = sealing()
    value: Any = {"round": 4, "run": "1" * 16, "dropouts": 0, "colluders": 0}[field]
    name = {"dropouts": "least"}.get(field, field)
    refused(f"the seed of client 000 is for another {name} than the server asks for", masked(offer, **{field: value}), key)


def test_other_cohorts_requests_and_lengths() -> None:
    key, offer = sealing()
    statements, words = masked(offer), drawn(COHORT)
    six = mask(words["004"].copy(), "004", KEYS["004"], context(names(6), dropouts=2), "", offer)
    refused("the server sent another cohort to client 004 than to 000", {**statements, "004": six}, key)
    refused(
        "the server sent another request to client 004 than", {**statements, **masked(offer, {"004": words["004"].copy()}, "later")}, key
    )
    short = mask(words["004"][:9].copy(), "004", KEYS["004"], context(COHORT), "", offer)
    refused("the server sent another numbers to client 004 than to 000", {**statements, "004": short}, key)
    refused(
        "the seed of client 000 is for another bits than the server asks for: 32, expected 64",
        statements,
        key,
        limits=replace(LIMITS, bits=64),
    )


def resigned(statement: str, client: str, change: Callable[[dict[str, Any]], None]) -> str:
    """What a client signs that works with the server."""
    table = json.loads(statement[128:])
    change(table)
    return stated(KEYS[client], table)


@pytest.mark.parametrize("field", ["broadcast", "cohort", "request", "attempt", "numbers"])
def test_a_seed_that_says_nothing_of_it_does_not_hide_that_the_others_differ(field: str) -> None:
    """It is of a client that works with the server, and comes first."""
    key, offer = sealing()
    first = resigned(masked(offer)["000"], "000", lambda table: table.pop(field))
    refused("something else that client 000 signed, expected its seed", {**masked(offer), "000": first}, key)
    more = resigned(masked(offer)["000"], "000", lambda table: table.update(extra=1))
    refused("something else that client 000 signed, expected its seed", {**masked(offer), "000": more}, key)


def test_a_seed_that_was_sealed_by_another_client() -> None:
    """A client that works with the server signs an honest one's seed as its own: the answer would hold that one's mask twice."""
    key, offer = sealing()
    statements = masked(offer)
    sealed = json.loads(statements["003"][128:])["sealed"]
    copied = resigned(statements["004"], "004", lambda table: table.update(sealed=sealed))
    refused("the seed of client 004 cannot be opened: it was sealed for something else", {**statements, "004": copied}, key)


@pytest.mark.parametrize("sealed", ["", "zz", "00" * 80, 7, "00" * 32])
def test_a_seed_that_is_none(sealed: Any) -> None:
    key, offer = sealing()
    statements = masked(offer)
    statements["004"] = resigned(statements["004"], "004", lambda table: table.update(sealed=sealed))
    refused("the seed of client 004 cannot be opened", statements, key)


@pytest.mark.parametrize("numbers", [-1, True, "7", None, 1.5])
def test_lengths_that_are_none(numbers: Any) -> None:
    key, offer = sealing()
    statements = {client: resigned(one, client, lambda table: table.update(numbers=numbers)) for client, one in masked(offer).items()}
    refused("expected how many each client has", statements, key)


def test_old_keys() -> None:
    """Of another round, or from before a restart."""
    (_, old), (key, _) = sealing(), sealing()
    refused("the seed of client 000 is sealed to a key that this helper does not have any more", masked(old), key)
    refused("the seed of client 000 is sealed to a key that this helper does not have any more", masked(old), None)


def test_a_round_is_answered_again_only_for_the_same_sum() -> None:
    key, offer = sealing()
    statements = masked(offer)
    first = asked(statements, key).answered
    again = masked(offer)
    assert asked(again, key, first).answered == first
    refused(
        "a second sum of round 3, of 001, 002, 003, 004 after that of 000, 001, 002, 003, 004",
        {client: again[client] for client in COHORT[1:]}, key, before=first,
    )  # fmt: skip
    refused("a second sum of round 3, of another model or request", masked(offer, request="later"), key, before=first)


def test_the_server_sees_what_is_not_of_its_sum() -> None:
    (_, offer), (_, other), words = sealing(), sealing(), np.zeros(37, np.uint32)
    statements = masked(offer)
    good = statements["000"]
    told = json.loads(good[128:])
    assert why_not(good, "000", PINNED, context(COHORT), "", offer, words) is None
    for reason in (
        why_not(good, "000", PINNED, context(COHORT, round=4), "", offer, words),
        why_not(good, "000", PINNED, context(COHORT), "", other, words),
        why_not(good, "000", PINNED, context(COHORT), "later", offer, words),
        why_not(good, "000", PINNED, context(COHORT), "", offer, words[:5]),
        why_not(stated(KEYS["000"], {"kind": "keys"}), "000", PINNED, context(COHORT), "", offer, words),
        why_not(stated(KEYS["000"], {**told, "more": 1}), "000", PINNED, context(COHORT), "", offer, words),
    ):
        assert reason == "its seed is for another sum"
    assert "signature" in str(why_not(good, "001", PINNED, context(COHORT), "", offer, words))
    for sealed in (None, 5, "00", told["sealed"][:-1] + "x", told["sealed"] + "00"):
        unsealed = stated(KEYS["000"], {**told, "sealed": sealed})
        assert why_not(unsealed, "000", PINNED, context(COHORT), "", offer, words) == "its seed is not sealed"
    assert "cannot be used" in str(why_not(good, "999", PINNED, context(COHORT), "", offer, words))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"kind": "seed"}, "another round"),
        ({"run": "1" * 16}, "another round"),
        ({"round": 4}, "another round: 4 of run 0000000000000000"),
        ({"sealing": "00"}, "no key of 32 bytes"),
        ({"sealing": 5}, "no key of 32 bytes"),
        ({"before": None}, "no key of 32 bytes"),
    ],
)
def test_keys_that_the_helper_did_not_give_for_the_round(table: dict[str, Any], text: str) -> None:
    good = {"kind": "offer", "run": RUN, "round": ROUND, "sealing": "00" * 32, "before": []}
    with pytest.raises(BadStatement, match=text):
        offer_of(stated(HELPER, {**good, **table}), HELPER.public_key().public_bytes_raw(), RUN, ROUND)
    with pytest.raises(BadStatement, match="signature"):
        offer_of(stated(KEYS["999"], good), HELPER.public_key().public_bytes_raw(), RUN, ROUND)


def test_a_key_with_which_nothing_can_be_agreed() -> None:
    with pytest.raises(ValueError, match="shared"):
        mask(np.zeros(3, np.uint32), "000", KEYS["000"], context(COHORT), "", Offer(bytes(32), ()))


SEALED = {
    "000": "bb0202adbfc75f2e12040e0036785748a408f387715d7bc009813166cb57da4588033e0f1753cdfc2914f34d7a42"
    "da30470acf851ab609a19b8476d0bc8b1e78abfe2c4ed4565e089ef64222b2447b90",
    "001": "5ca76e07000074b1b28a7b953425ff345134a9f52adb582fac3a979fb28d426415e90c8a90e5b86d5aaaa7382e10"
    "78c39d439899dcc679615e7e5e2c1859178722296f503cf5e648533eeb2f935187f8",
}


def test_seeds_of_this_version_are_read_by_every_later_one() -> None:
    """As two clients sealed them once: a helper and clients of different versions must make the same masks of them."""
    key, two = X25519PrivateKey.from_private_bytes(bytes(range(32))), names(2)
    about = context(two, dropouts=0, colluders=0).table | {"request": "tune 0 1 x", "numbers": 9, "bits": 32}
    own = {"kind": "seed", "sealing": key.public_key().public_bytes_raw().hex(), **about}
    statements = {client: stated(KEYS[client], own | {"client": client, "sealed": SEALED[client]}) for client in two}
    found = asked(statements, key, limits=Limits(2, 0, 32))
    assert found.answered == Answered("35c82090d2d19b9ccf5dd9ff72e56a863b0a8180d17c0cc5021bdf2db452b63c", two)
    assert masks_of(found).tolist() == [
        1503683358, 1970701952, 3184095931, 2156820932, 1758684295, 3572836543, 4249116648, 2672688870, 996900886,
    ]  # fmt: skip
