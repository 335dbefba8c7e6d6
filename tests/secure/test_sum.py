"""The protocol without faults and with lost clients: the sum of those whose words arrived, bit for bit, and nothing else readable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from summing import Played, context, drawn, names, plain

from fibecfed.secure.server import NoSum

STEPS = ("advertise", "share", "masked", "confirm", "reveal")


SIZES = [(5, 1, 1, step, np.uint32) for step in (None, *STEPS)]
SIZES += [(10, 2, 2, step, np.uint64) for step in (None, *STEPS)]
SIZES += [(50, 5, 5, step, np.uint32) for step in (None, "share", "masked")]


@pytest.mark.parametrize(("clients", "dropouts", "colluders", "step", "dtype"), SIZES)
def test_the_sum_is_the_simulators_bit_for_bit(clients: int, dropouts: int, colluders: int, step: str | None, dtype: Any) -> None:
    cohort = names(clients)
    lost = cohort[1 : 1 + dropouts]
    words = drawn(cohort, 37, dtype)
    played = Played(cohort, words, context(cohort, dropouts, colluders), {step: lost} if step else {})
    expected = [client for client in cohort if client not in lost or step in (None, "confirm", "reveal")]
    assert np.array_equal(played.play(), plain(words, expected)) and played.server.survivors == tuple(expected)


@pytest.mark.parametrize("step", STEPS)
def test_one_lost_client_too_many_ends_the_round(step: str) -> None:
    cohort = names(5)
    played = Played(cohort, drawn(cohort), context(cohort), {step: cohort[:2]})
    with pytest.raises(NoSum, match="of 3 of 5 clients, expected at least 4"):
        played.play()


def test_clients_lost_at_different_steps() -> None:
    cohort, words = names(10), drawn(names(10))
    lost = {"share": cohort[:1], "masked": cohort[:2], "confirm": cohort[:3], "reveal": cohort[:4]}
    played = Played(cohort, words, context(cohort, dropouts=4, colluders=1), lost)
    with pytest.raises(NoSum, match="expected at least 6"):
        Played(cohort, words, context(cohort, dropouts=4, colluders=1), {"reveal": cohort[:5]}).play()
    assert np.array_equal(played.play(), plain(words, cohort[2:]))


def test_what_is_sent_looks_random_and_differs_each_time() -> None:
    cohort = names(5)
    zeros = {client: np.zeros(50_000, np.uint32) for client in cohort}
    first, second = (Played(cohort, zeros, context(cohort)) for _ in range(2))
    assert not first.play().any() and not second.play().any()
    for client in cohort:
        bits = np.unpackbits(first.masked[client].view(np.uint8))
        assert abs(bits.mean() - 0.5) < 0.005
        assert not np.array_equal(first.masked[client], second.masked[client])
    four = plain(first.masked, cohort[1:])
    assert abs(np.unpackbits(four.view(np.uint8)).mean() - 0.5) < 0.005


@pytest.mark.parametrize("step", ["masked", "confirm", None])
def test_no_client_reveals_both_shares_of_another(step: str | None) -> None:
    cohort = names(5)
    played = Played(cohort, drawn(cohort), context(cohort), {step: cohort[:1]} if step else {})
    played.play()
    for holder, shares in played.revealed.items():
        known = played.clients[holder]._shares
        assert shares.keys() == known.keys()
        for client, share in shares.items():
            of_key, of_mask = known[client]
            assert share == (of_mask if client in played.server.survivors else of_key) and of_key != of_mask


def test_a_long_vector_of_odd_length_crosses_the_parts_of_a_mask() -> None:
    cohort = names(5)
    words = drawn(cohort, 2**17 + 3)
    assert np.array_equal(Played(cohort, words, context(cohort), {"masked": cohort[4:]}).play(), plain(words, cohort[:4]))


def test_a_wrong_share_of_a_lost_key_is_noticed() -> None:
    cohort = names(5)
    played = Played(cohort, drawn(cohort), context(cohort), {"masked": cohort[:1]})
    total = played.server.total

    def spoilt(revealed: Any) -> Any:
        own = dict(revealed[cohort[1]])
        own[cohort[0]] = f"{int(own[cohort[0]], 16) ^ 1:064x}"
        return total({**revealed, cohort[1]: own})

    played.server.total = spoilt
    with pytest.raises(NoSum, match="the shares of the key of client 000, which was lost, do not give it"):
        played.play()
