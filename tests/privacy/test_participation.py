"""Cyclic cohorts: everybody in turn, the same for everybody who asks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fibecfed.core.rng import Key
from fibecfed.privacy.participation import cyclic, most_rounds


@given(clients=st.integers(1, 30), size=st.integers(1, 35), rounds=st.integers(1, 40), seed=st.integers(0, 5))
def test_nobody_takes_part_more_often_than_is_charged_for(clients: int, size: int, rounds: int, seed: int) -> None:
    names = [f"{number:02d}" for number in range(clients)]
    cohorts = [cyclic(names, size, Key(seed), number) for number in range(rounds)]
    counts = Counter(name for cohort in cohorts for name in cohort)
    assert {len(set(cohort)) for cohort in cohorts} == {min(size, clients)} and all(list(c) == sorted(c) for c in cohorts)
    assert max(counts.values()) == most_rounds(clients, size, rounds)
    assert max(counts.values()) - min(counts[name] for name in names) <= 1


def test_five_of_fifty_take_part_four_times_in_forty_rounds() -> None:
    assert most_rounds(50, 5, 40) == 4
