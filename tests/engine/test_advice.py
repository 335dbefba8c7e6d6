"""Which method is advised for which clients."""

from __future__ import annotations

import pytest

from fibecfed.engine.advice import advice, one_sidedness


def clients(*counts: list[int]) -> list[dict[str, list[int]]]:
    return [{"train": one, "test": []} for one in counts]


def test_one_sidedness_is_how_often_each_clients_own_most_frequent_class_comes_beside_that_of_all():
    assert one_sidedness(clients([8, 2], [1, 9])) == (17 / 20, 11 / 20)
    assert one_sidedness(clients([30], [12])) is None  # no classes
    assert one_sidedness(clients([0, 0])) is None


@pytest.mark.parametrize(
    ("counts", "said", "not_said"),
    [
        (clients([8, 2], [1, 9], [3, 7]), "Clients differ in their classes", "two clients"),
        (clients([5, 5], [5, 5], [6, 4]), "Clients are alike in their classes", "two clients"),
        (clients([8, 2], [1, 9]), "With two clients the agreement rule knows one pair", "one client"),
        (clients([8, 2]), 'There is one client, so that nothing is federated: method.kind = "local"', "preset"),
    ],
)
def test_the_advice_follows_from_the_clients(counts: list[dict[str, list[int]]], said: str, not_said: str):
    found = advice(counts)
    assert found is not None and said in found and not_said not in found
    assert found.endswith("See docs/choosing.md.")


def test_where_nothing_is_known_nothing_is_advised():
    assert advice([]) is None
    assert advice(clients([30], [12])) is None
