"""How many clients a sum needs, and what cannot be promised."""

from __future__ import annotations

import pytest

from fibecfed.core.errors import UserError
from fibecfed.privacy.cohorts import cohorts_of
from fibecfed.privacy.options import PrivacyOptions


def options(**more: int) -> PrivacyOptions:
    return PrivacyOptions(secure_aggregation=True, **more)


def test_nothing_is_asked_without_secure_aggregation() -> None:
    assert cohorts_of(PrivacyOptions(), 1) is None


@pytest.mark.parametrize(
    ("size", "more", "least"), [(5, {}, 4), (10, {"dropouts": 2}, 8), (50, {"dropouts": 5, "colluders": 5, "min_clients": 7}, 45)]
)
def test_a_sum_is_of_all_but_the_dropouts(size: int, more: dict[str, int], least: int) -> None:
    cohorts = cohorts_of(options(**more), size)
    assert cohorts is not None and cohorts.least == least


@pytest.mark.parametrize(
    ("size", "more", "text"),
    [
        (3, {}, r"federation.clients_per_round: got 3, expected at least 4 \(privacy.min_clients\)"),
        (5, {"min_clients": 3, "colluders": 2}, "privacy.min_clients: got 3, expected at least 4, two more than privacy.colluders"),
        (4, {}, "privacy.dropouts: got 1 for 4 clients per round, expected at most 0"),
        (10, {"dropouts": 5}, "privacy.dropouts: got 5 and privacy.colluders = 1 for 10 clients per round, expected 2 dropouts"),
    ],
)
def test_too_few_clients_are_rejected_by_the_key(size: int, more: dict[str, int], text: str) -> None:
    with pytest.raises(UserError, match=text):
        cohorts_of(options(**more), size)


def test_two_sets_of_survivors_never_both_have_enough_signatures() -> None:
    """Each honest client signs one set, each colluder both: 2 t <= (n - c) + 2 c would let both pass."""
    for size in range(2, 40):
        for dropouts in range(size):
            for colluders in range(size):
                try:
                    cohorts = cohorts_of(options(dropouts=dropouts, colluders=colluders, min_clients=colluders + 2), size)
                except UserError:
                    continue
                assert cohorts is not None and 2 * cohorts.least > size + colluders
