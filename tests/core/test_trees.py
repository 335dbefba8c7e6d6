"""Arithmetic on named tensors, against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fibecfed.core.trees import WeightedSum, checksum, first_not_finite, num_values, pick, weighted_mean


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 2**31),
)
def test_the_weighted_mean_equals_numpy_in_float64_rounded_once(num_trees: int, dtype: torch.dtype, shape: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    trees = [{name: torch.randn(shape, generator=draw).to(dtype) for name in ("b", "a")} for _ in range(num_trees)]
    weights = [float(w) for w in torch.randint(1, 500, (num_trees,), generator=draw)]
    mean = weighted_mean(trees, weights)
    assert list(mean) == ["a", "b"]
    for name in mean:
        exact = np.average(np.stack([tree[name].double().numpy() for tree in trees]), axis=0, weights=np.array(weights))
        assert mean[name].dtype == dtype
        assert mean[name].shape == torch.Size(shape)
        tolerance = 2.0**-50 if dtype == torch.float64 else torch.finfo(dtype).eps  # eps: a tie may fall either way
        torch.testing.assert_close(mean[name].double(), torch.from_numpy(np.asarray(exact)), rtol=tolerance, atol=2.0**-50)


def test_small_bfloat16_updates_are_not_lost_in_the_sum() -> None:
    trees = [{"w": torch.tensor([256.0], dtype=torch.bfloat16)}] + [{"w": torch.tensor([1.0], dtype=torch.bfloat16)}] * 255
    assert weighted_mean(trees, [1] * 256)["w"].item() == pytest.approx((256 + 255) / 256, rel=2**-8)


def test_a_client_with_twice_the_weight_counts_as_two() -> None:
    a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([4.0, -1.0])}
    assert torch.equal(weighted_mean([a, b], [2, 1])["w"], weighted_mean([a, a, b], [5, 5, 5])["w"])


def test_one_tree_is_its_own_mean_bit_for_bit_and_in_new_memory() -> None:
    tree = {"w": torch.randn(7, dtype=torch.float64)}
    mean = weighted_mean([tree], [13])
    assert torch.equal(mean["w"], tree["w"])
    mean["w"].zero_()
    assert tree["w"].abs().sum() > 0


def test_equal_trees_have_that_tree_as_mean() -> None:
    tree = {"w": torch.randn(50)}
    assert torch.equal(weighted_mean([tree] * 3, [1, 1, 1])["w"], tree["w"])


@pytest.mark.parametrize(
    ("trees", "weights", "said"),
    [
        ([], [], "at least one"),
        ([{"w": torch.ones(1)}], [1, 2], "1 trees and 2 weights"),
        ([{"w": torch.ones(1)}], [0], "positive, finite"),
        ([{"w": torch.ones(1)}], [-1], "positive, finite"),
        ([{"w": torch.ones(1)}], [math.nan], "positive, finite"),
        ([{"w": torch.ones(1)}], [math.inf], "positive, finite"),
        ([{"w": torch.ones(1)}, {"v": torch.ones(1)}], [1, 1], "other names"),
        ([{"w": torch.ones(1)}, {"w": torch.ones(2)}], [1, 1], r"w: \(2,\)"),
        ([{"w": torch.ones(1)}, {"w": torch.ones(1, 1)}], [1, 1], r"w: \(1, 1\)"),
        ([{"w": torch.ones(1)}, {"w": torch.ones(1).bfloat16()}], [1, 1], "bfloat16 beside"),
        ([{"w": torch.ones(1, dtype=torch.int64)}], [1], "floating point"),
    ],
)
def test_trees_that_have_no_mean_are_refused_with_the_reason(trees: list[dict[str, Tensor]], weights: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weighted_mean(trees, weights)


def test_pick_gives_the_named_entries_in_sorted_order() -> None:
    params = {name: torch.ones(1) for name in "dbca"}
    assert list(pick(params, {"d", "a"})) == ["a", "d"]
    assert pick(params, ["a"])["a"] is params["a"]
    with pytest.raises(KeyError, match="zz"):
        pick(params, ["a", "zz"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_tensor_that_is_not_finite_is_named(bad: float, dtype: torch.dtype) -> None:
    params = {"c": torch.tensor([bad], dtype=dtype), "b": torch.tensor([0.0, bad], dtype=dtype), "a": torch.ones(2), "0": torch.zeros(0)}
    assert first_not_finite(params) == "b"
    assert first_not_finite({"a": params["a"], "0": params["0"], "n": torch.arange(3)}) is None


def test_values_are_counted() -> None:
    assert num_values([torch.ones(2, 3), torch.ones(()), torch.ones(0, 4)]) == 7


BASE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0, 3), "c": torch.tensor(1.5, dtype=torch.bfloat16)}


def _bit_flipped() -> Tensor:
    tensor = BASE["a"].clone()
    tensor.view(torch.int32)[1, 2] ^= 1
    return tensor


@pytest.mark.parametrize(
    "other",
    [
        {**BASE, "a": BASE["a"].reshape(3, 2)},
        {**BASE, "a": BASE["a"].view(torch.int32)},
        {**BASE, "a": _bit_flipped()},
        {**BASE, "a": -BASE["a"]},  # the zero becomes a negative zero
        {**BASE, "b": torch.zeros(3, 0)},
        {**BASE, "b": torch.zeros(0, 3, dtype=torch.float64)},
        {**BASE, "c": BASE["c"].to(torch.float16)},
        {**BASE, "c": BASE["c"].reshape(1)},
        {"a": BASE["a"], "b": BASE["b"], "d": BASE["c"]},
        {"a": BASE["a"], "b": BASE["b"]},
        {**BASE, "d": torch.zeros(0)},
    ],
)
def test_a_checksum_differs_with_any_name_dtype_shape_or_bit(other: dict[str, Tensor]) -> None:
    assert checksum(other) != checksum(BASE)


def test_a_checksum_does_not_depend_on_order_layout_or_gradient() -> None:
    other = {name: BASE[name].clone() for name in reversed(BASE)}
    other["a"] = torch.nn.Parameter(BASE["a"].T.contiguous()).T
    assert not other["a"].is_contiguous()
    assert checksum(other) == checksum(BASE)


def test_a_name_cannot_pose_as_another_tensor() -> None:
    value = torch.ones(1)
    two = {"a": torch.zeros(0, dtype=torch.uint8), "b": value}
    assert checksum({"a|torch.uint8|(0,)|b": value}) != checksum(two)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text('ab|",[]0()', max_size=6), st.binary(max_size=3), max_size=3),
    st.dictionaries(st.text('ab|",[]0()', max_size=6), st.binary(max_size=3), max_size=3),
)
def test_checksums_are_equal_only_for_equal_tensors(a: dict[str, bytes], b: dict[str, bytes]) -> None:
    def tensors(table: dict[str, bytes]) -> dict[str, Tensor]:
        return {name: torch.tensor(list(raw), dtype=torch.uint8) for name, raw in table.items()}

    assert (checksum(tensors(a)) == checksum(tensors(b))) == (a == b)


# ---- sums of large trees


def unblocked(trees: list[dict[str, Tensor]], weights: list[int]) -> dict[str, Tensor]:
    """Each tensor in one go."""
    mean: dict[str, Tensor] = {}
    for name, first in trees[0].items():
        acc = torch.zeros(first.shape, dtype=torch.float64)
        for tree, weight in zip(trees, weights, strict=True):
            acc.add_(tree[name].to(torch.float64), alpha=weight / sum(weights))
        mean[name] = acc.to(first.dtype)
    return mean


LARGE = (2**16 - 1, 2**16, 2**16 + 1, 3 * 2**16 + 7)
WEIGHTS = [3, 5, 1, 200, 96]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_summing_in_blocks_changes_no_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(), (0,), (5, 7), *((size,) for size in LARGE), (300, 700)]
    trees = [{str(shape): torch.randn(shape, generator=generator).to(dtype) for shape in shapes} for _ in WEIGHTS]
    turned = [{**tree, "turned": tree["(300, 700)"].T} for tree in trees]
    expected, got = unblocked(turned, WEIGHTS), weighted_mean(turned, WEIGHTS)
    assert all(torch.equal(got[name], expected[name]) and got[name].dtype == dtype for name in expected)


@given(st.integers(1, 10), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.integers(0, 2**31))
def test_a_running_sum_has_the_weighted_mean_up_to_rounding(count: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    trees = [
        {"a": torch.randn(2, 3, generator=generator).to(dtype), "b": torch.randn((), generator=generator).to(dtype)} for _ in range(count)
    ]
    weights = torch.randint(1, 1000, (count,), generator=generator).tolist()
    total = WeightedSum()
    for tree, weight in zip(trees, weights, strict=True):
        total.add(tree, weight)
    expected, got = weighted_mean(trees, weights), total.mean()
    for name, value in expected.items():
        assert got[name].dtype == dtype and got[name].shape == value.shape
        exact = sum(weight * tree[name].double() for tree, weight in zip(trees, weights, strict=True)) / sum(weights)
        room = torch.finfo(dtype).eps * exact.abs() + 1e-14  # pyright: ignore[reportAttributeAccessIssue]
        assert bool(((got[name].double() - exact).abs() <= room).all()) and bool(((value.double() - exact).abs() <= room).all())


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_trees_that_wait_are_added_in_their_order(count: int) -> None:
    trees = [{"a": torch.randn(300_000, generator=torch.Generator().manual_seed(k)) * 10.0**k} for k in range(count)]
    total, expected = WeightedSum(), torch.zeros(300_000, dtype=torch.float64)
    for k, tree in enumerate(trees):
        total.add(tree, k + 1)
        expected.add_(tree["a"], alpha=k + 1)
    assert torch.equal(total.mean()["a"], (expected / sum(range(1, count + 1))).float())


def test_a_running_sum_writes_into_no_tree() -> None:
    tree = {"a": torch.ones(4)}
    total = WeightedSum()
    total.add(tree, 2)
    total.add(tree, 3)
    assert tree["a"].tolist() == [1.0] * 4 and total.mean()["a"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"b": torch.ones(2)}, "tree 1 has other names"),
        ({"a": torch.ones(3)}, r"a: \(3,\) torch.float32 beside \(2,\)"),
        ({"a": torch.ones(2, dtype=torch.float64)}, "torch.float64 beside"),
    ],
)
def test_a_running_sum_of_trees_that_differ_is_refused(second: dict[str, Tensor], said: str) -> None:
    total = WeightedSum()
    total.add({"a": torch.ones(2)}, 1)
    with pytest.raises(ValueError, match=said):
        total.add(second, 1)


def test_a_running_sum_of_nothing_or_of_whole_numbers_has_no_mean() -> None:
    with pytest.raises(ValueError, match="expected a positive, finite sum"):
        WeightedSum().mean()
    with pytest.raises(ValueError, match="expected floating point"):
        WeightedSum().add({"a": torch.ones(2, dtype=torch.int64)}, 1)


def test_finite_numbers_whose_sum_is_not_are_finite() -> None:
    huge = {"a": torch.full((10,), 3e38), "h": torch.full((9,), 6e4, dtype=torch.float16), "i": torch.full((4,), 2**62)}
    assert first_not_finite(huge) is None
    assert first_not_finite({**huge, "b": torch.tensor([math.inf, -math.inf])}) == "b"
