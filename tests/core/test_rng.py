"""Keys: equal ones draw equal numbers, different ones do not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fibecfed.core.rng import Key

PARTS = st.lists(
    st.text(st.sampled_from(["a", "b", "\x1f", "\\", "x", ":", "1", "s", "t", "r", "\ud800"]), max_size=8) | st.integers(0, 3), max_size=4
)


@given(PARTS, PARTS)
def test_two_keys_have_one_seed_only_if_they_are_equal(a: list[str | int], b: list[str | int]) -> None:
    assert (Key(0).fold(*a).seed() == Key(0).fold(*b).seed()) == (Key(0).fold(*a) == Key(0).fold(*b))


def test_a_name_with_the_separator_in_it_is_not_two_names() -> None:
    assert Key(0).fold("a\x1fstr:b").seed() != Key(0).fold("a", "b").seed()
    assert Key(0).fold("a\\x1fstr:b").seed() != Key(0).fold("a\x1fstr:b").seed()


def test_a_number_and_its_digits_are_different_names() -> None:
    assert Key(0).fold(7).seed() != Key(0).fold("7").seed()
    assert Key(0).seed() != Key(1).seed()


def test_equal_numbers_of_different_types_give_equal_streams() -> None:
    assert Key(0).fold(np.int64(3)) == Key(0).fold(3)  # pyright: ignore[reportArgumentType]
    assert Key(0).fold(np.int64(3)).seed() == Key(0).fold(3).seed()  # pyright: ignore[reportArgumentType]
    assert Key(0).fold(True).seed() == Key(0).fold(1).seed()


@given(PARTS)
def test_folding_at_once_or_one_by_one_is_the_same(parts: list[str | int]) -> None:
    key = Key(5)
    for part in parts:
        key = key.fold(part)
    assert key == Key(5).fold(*parts)


@given(PARTS)
def test_a_seed_has_63_bits(parts: list[str | int]) -> None:
    assert 0 <= Key(0).fold(*parts).seed() < 2**63


def test_seeds_stay_what_they_are_over_releases_and_processes() -> None:
    code = "from fibecfed.core.rng import Key; print(Key(0).fold('client', '007', 3).seed())"
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout
    assert int(printed) == Key(0).fold("client", "007", 3).seed() == FROZEN


FROZEN = 3240952691582198817


def test_every_generator_begins_at_the_start_of_its_stream_and_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    key = Key(0).fold("a")
    assert torch.equal(torch.randn(4, generator=key.generator()), torch.randn(4, generator=key.generator()))
    assert torch.equal(key.permutation(10), key.permutation(10))
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(0, 50))
def test_a_permutation_holds_each_position_once(n: int) -> None:
    drawn = Key(1).fold("order").permutation(n)
    assert drawn.dtype == torch.int64
    assert sorted(drawn.tolist()) == list(range(n))


def test_first_draws_are_spread_evenly_over_keys() -> None:
    firsts = torch.tensor([Key(0).fold("client", str(i)).permutation(4)[0].item() for i in range(2000)])
    counts = torch.bincount(firsts, minlength=4).double()
    assert ((counts - 500) ** 2 / 500).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001
