"""How many clients a sum needs, and what cannot be promised."""

from __future__ import annotations

import pytest

from fibecfed.core.errors import UserError
from fibecfed.privacy.cohorts import cohorts_of
from fibecfed.privacy.options import PrivacyOptions


def options(**more: int) -> PrivacyOptions:
    return PrivacyOptions(secure_aggregation="pairs", **more)


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


def test_with_a_helper_as_many_may_be_lost_as_leave_enough() -> None:
    """The helper adds up one sum in a round, so that no two sets of survivors need to overlap."""
    with_helper = PrivacyOptions(secure_aggregation="helper", dropouts=6)
    cohorts = cohorts_of(with_helper, 10)
    assert cohorts is not None and cohorts.helped and cohorts.least == 4
    with pytest.raises(UserError, match=r"privacy.dropouts: got 7 for 10 clients per round, expected at most 6"):
        cohorts_of(with_helper.model_copy(update={"dropouts": 7}), 10)
    with pytest.raises(UserError, match=r"privacy.min_clients: got 2, expected at least 3"):
        cohorts_of(PrivacyOptions(secure_aggregation="helper", min_clients=2), 10)


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
