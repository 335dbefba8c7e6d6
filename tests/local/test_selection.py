"""Layers by importance, neurons by Fisher information: rules by hand, laws, planted answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.core.task import Tape, TracedLinear
from fibecfed.core.types import Batch, Params
from fibecfed.local.fisher import Neurons, fisher_pass
from fibecfed.local.options import LayerOptions, NeuronOptions
from fibecfed.local.selection import aggregate_importance, choose_layers, global_layers, neuron_masks, number_of_layers

A, B = "model.layers.0.q_proj.lora_A.default.weight", "model.layers.0.q_proj.lora_B.default.weight"
IMPORTANCE = torch.tensor([0.1, 0.6, 0.1, 0.15, 0.05, 0.0])


def layers(rule: str, value: float | None = None, **other: float) -> LayerOptions:
    return LayerOptions.model_validate({"rule": rule, "value": value, **other})


def neuron_options(rule: str, value: float | None = None) -> NeuronOptions:
    return NeuronOptions.model_validate({"rule": rule, "value": value})


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_the_most_important_layers_are_chosen_with_ties_to_the_lower_index(values: list[int], data: st.DataObject) -> None:
    number = data.draw(st.integers(1, len(values)))
    expected = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:number])
    assert choose_layers(torch.tensor(values, dtype=torch.float32), number) == tuple(expected)


@pytest.mark.parametrize("number", [0, 7])
def test_a_number_of_layers_that_the_model_does_not_have_is_the_users_mistake(number: int) -> None:
    with pytest.raises(UserError, match=f"got {number} layers .* 1 to 6"):
        choose_layers(IMPORTANCE, number)


def test_an_importance_that_is_not_finite_is_no_ground_to_choose_by() -> None:
    with pytest.raises(FloatingPointError, match="nan"):
        choose_layers(torch.tensor([0.0, math.nan]), 1)


@pytest.mark.parametrize(
    ("options", "ratio", "expected"),
    [
        (layers("share"), None, 3),
        (layers("share", 0.01), None, 1),
        (layers("share", 0.75), None, 5),  # 4.5 is rounded up
        (layers("share", 1.0), None, 6),
        (layers("count"), None, 3),
        (layers("count", 4), None, 4),
        (layers("last", 2), None, 2),
        (layers("first"), None, 3),
        (layers("last", 0.67), None, 4),
        (layers("first", 0.05), None, 1),
        (layers("random", 0.75), None, 5),
        (layers("random", 6), None, 6),
        (layers("all"), None, 6),
        (layers("coverage"), None, 1),  # layer 1 alone holds 0.6
        (layers("coverage", 0.61), None, 2),
        (layers("coverage", 0.85), None, 3),
        (layers("coverage", 1.0), None, 5),  # the last adds nothing
        (layers("layer_gap"), 0.5, 3),
        (layers("layer_gap", mu=0.5), 0.5, 2),
        (layers("plateau"), 0.0, 1),
        (layers("plateau", mu=3.0), 1.0, 6),
    ],
)
def test_each_rule_gives_the_number_worked_out_by_hand(options: LayerOptions, ratio: float | None, expected: int) -> None:
    assert number_of_layers(options, IMPORTANCE, ratio) == expected


def test_half_a_layer_is_rounded_up_whatever_the_product_is_rounded_to() -> None:
    assert 0.29 * 50 < 14.5
    assert number_of_layers(layers("share", 0.29), torch.ones(50)) == 15


def test_coverage_counts_negative_increments_as_nothing_and_keeps_all_layers_where_nothing_is_important() -> None:
    assert number_of_layers(layers("coverage", 0.9), torch.tensor([-5.0, 1.0, 0.05])) == 1
    assert number_of_layers(layers("coverage", 0.9), torch.zeros(4)) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (layers("count", 7), "at most 6"),
        (layers("last", 7), "at most 6"),
        (layers("first", 2.5), "integer number"),
        (layers("share", 1.5), "share above 0 and at most 1"),
        (layers("coverage", 1.5), "share above 0 and at most 1"),
    ],
)
def test_values_that_the_rule_cannot_use_are_the_users_mistake(options: LayerOptions, words: str) -> None:
    with pytest.raises(UserError, match=words):
        global_layers(options, IMPORTANCE, None, Key(0))


def test_rules_on_the_curvature_need_its_ratio() -> None:
    with pytest.raises(ValueError, match="'layer_gap' needs the ratio"):
        number_of_layers(layers("layer_gap"), IMPORTANCE)


def test_the_global_layers_are_the_most_important_ones_or_those_of_the_control() -> None:
    def chosen(options: LayerOptions, ratio: float | None = None) -> tuple[int, ...]:
        return global_layers(options, IMPORTANCE, ratio, Key(0))

    assert chosen(layers("share")) == (0, 1, 3)
    assert chosen(layers("coverage", 0.7)) == (1, 3)
    assert chosen(layers("plateau"), 1 / 3) == (1, 3)
    assert chosen(layers("last", 2)) == (4, 5)
    assert chosen(layers("first", 2)) == (0, 1)
    assert chosen(layers("all")) == (0, 1, 2, 3, 4, 5)


def test_random_layers_follow_the_key_and_nothing_else() -> None:
    drawn = {global_layers(layers("random", 3), IMPORTANCE, None, Key(seed)) for seed in range(30)}
    assert len(drawn) > 5
    assert all(len(set(one)) == 3 and one == tuple(sorted(one)) for one in drawn)
    assert global_layers(layers("random", 3), IMPORTANCE, None, Key(1)) == global_layers(
        layers("random", 3), IMPORTANCE.flip(0), None, Key(1)
    )


def test_importances_are_averaged_by_the_clients_examples() -> None:
    mean = aggregate_importance([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])], [1, 3])
    torch.testing.assert_close(mean, torch.tensor([0.25, 1.5]))


def test_the_largest_shares_of_neurons_are_kept_with_ties_to_the_lower_index() -> None:
    neurons = Neurons({B: torch.tensor([1.0, 5.0, 1.0, 0.0, 2.0])}, {B: torch.zeros(2)})
    params = {B: torch.zeros(5, 2)}
    assert neuron_masks(neuron_options("share"), params, neurons, Key(0))[B].tolist() == [True, True, False, False, True]
    assert neuron_masks(neuron_options("share", 0.2), params, neurons, Key(0))[B].tolist() == [False, True, False, False, False]
    assert neuron_masks(neuron_options("coverage", 0.75), params, neurons, Key(0))[B].tolist() == [False, True, False, False, True]
    assert neuron_masks(neuron_options("coverage"), params, neurons, Key(0))[B].tolist() == [True, True, False, False, True]
    assert neuron_masks(neuron_options("coverage", 1.0), params, neurons, Key(0))[B].tolist() == [True, True, True, False, True]
    assert neuron_masks(neuron_options("all"), params, None, Key(0))[B].tolist() == [True] * 5


@given(st.integers(1, 100), st.integers(1, 64))
def test_share_and_random_keep_exactly_the_ceiling_of_their_share(hundredths: int, rows: int) -> None:
    neurons = Neurons({"w": torch.arange(rows).float()}, {})
    for rule in ("share", "random"):
        mask = neuron_masks(neuron_options(rule, hundredths / 100), {"w": torch.zeros(rows, 3)}, neurons, Key(0))["w"]
        assert int(mask.sum()) == -(-hundredths * rows // 100)
        assert mask.dtype == torch.bool and mask.shape == (rows,)


@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=20), st.floats(0.01, 1))
def test_coverage_holds_its_share_and_one_neuron_fewer_would_not(scores: list[float], value: float) -> None:
    neurons = Neurons({"w": torch.tensor(scores)}, {})
    mask = neuron_masks(neuron_options("coverage", value), {"w": torch.zeros(len(scores), 1)}, neurons, Key(0))["w"]
    kept = [score for score, keep in zip(scores, mask.tolist(), strict=True) if keep]
    target = value * math.fsum(scores)
    assert sum(kept) >= target * (1 - 1e-6)
    if target > 0:
        assert math.fsum(kept) - min(kept) < target * (1 + 1e-6)
    else:
        assert mask.all()


def test_ties_go_to_the_lower_index_in_tensors_of_real_size_too() -> None:
    scores = torch.randint(3, (1000,), generator=Key(0).generator()).float()  # short ones come out in order from any sort
    expected = sorted(range(1000), key=lambda i: (-scores[i].item(), i))[:500]
    mask = neuron_masks(neuron_options("share"), {"w": torch.zeros(1000, 1)}, Neurons({"w": scores}, {}), Key(0))["w"]
    assert mask.nonzero().flatten().tolist() == sorted(expected)


def test_random_masks_differ_by_tensor_and_key_and_need_no_fisher_information() -> None:
    params = {name: torch.zeros(64, 2) for name in ("a", "b")}
    masks = neuron_masks(neuron_options("random"), params, None, Key(0))
    assert not torch.equal(masks["a"], masks["b"])
    assert not torch.equal(masks["a"], neuron_masks(neuron_options("random"), params, None, Key(1))["a"])
    assert torch.equal(masks["a"], neuron_masks(neuron_options("random"), {"a": params["a"]}, None, Key(0))["a"])


def test_a_lora_a_without_any_fisher_information_is_ranked_by_the_columns_of_its_own_b() -> None:
    other = A.replace("q_proj", "v_proj")
    columns = {B: torch.tensor([1.0, 0.0, 3.0, 2.0]), other.replace("lora_A", "lora_B"): torch.tensor([9.0, 9.0, 0.0, 0.0])}
    params = {A: torch.zeros(4, 5), other: torch.zeros(4, 5)}
    zero = Neurons({A: torch.zeros(4), other: torch.zeros(4)}, columns)
    masks = neuron_masks(neuron_options("share"), params, zero, Key(0))
    assert masks[A].tolist() == [False, False, True, True]
    assert masks[other].tolist() == [True, True, False, False]
    once = Neurons({A: torch.tensor([0.0, 1e-9, 0.0, 0.0]), other: torch.zeros(4)}, columns)
    assert neuron_masks(neuron_options("share", 0.25), {A: params[A]}, once, Key(0))[A].tolist() == [False, True, False, False]


def test_masks_are_made_for_the_tensors_given_and_no_others() -> None:
    neurons = Neurons({"a": torch.ones(3), "b": torch.ones(3)}, {})
    assert neuron_masks(neuron_options("share"), {"b": torch.zeros(3, 1)}, neurons, Key(0)).keys() == {"b"}
    assert neuron_masks(neuron_options("share"), {}, neurons, Key(0)) == {}


def test_missing_or_foreign_fisher_information_is_refused_in_words() -> None:
    params = {"w": torch.zeros(3, 1)}
    with pytest.raises(ValueError, match="no Fisher information of w"):
        neuron_masks(neuron_options("share"), params, None, Key(0))
    with pytest.raises(ValueError, match="for 3 rows"):
        neuron_masks(neuron_options("share"), params, Neurons({"w": torch.ones(4)}, {}), Key(0))
    with pytest.raises(FloatingPointError, match="w"):
        neuron_masks(neuron_options("coverage"), params, Neurons({"w": torch.tensor([1.0, math.inf, 0.0])}, {}), Key(0))


class Planted:
    """x + B A x, of which a frozen read-out looks at some coordinates only; one of A's ranks reads inputs that are always 0."""

    num_layers = 1
    num_classes = 2
    device = torch.device("cpu")
    names = (A, B)
    informative = (2, 5, 7)

    def layer_of(self, name: str) -> int | None:
        return 0

    def traced(self, params: Params, batch: Batch) -> tuple[Tensor, Tape]:
        x = batch["input_ids"]
        down = linear(x, params[A])
        up = linear(down, params[B])
        read_out = torch.zeros(2, 8).index_fill_(1, torch.tensor(self.informative), 1.0) * torch.tensor([[1.0], [-1.0]])
        logits = linear((x + up).mean(1), read_out)
        return cross_entropy(logits, batch["labels"], reduction="none"), Tape(
            (TracedLinear(A, None, x, down), TracedLinear(B, None, down, up))
        )


@pytest.mark.parametrize("rule", ["share", "coverage"])
def test_planted_informative_neurons_are_the_ones_kept(rule: str) -> None:
    g = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randn(32, 3, 8, generator=g), "labels": torch.randint(2, (32,), generator=g)}
    batch["input_ids"][..., 4:] = 0.0
    params = {A: torch.randn(2, 8, generator=g), B: torch.zeros(8, 2)}
    params[A][0, :4] = 0.0  # rank 0 reads nothing, so that its column of B can learn nothing
    task = Planted()
    neurons = fisher_pass(task, params, [batch]).neurons  # pyright: ignore[reportArgumentType]
    assert not neurons.rows[A].any()
    masks = neuron_masks(neuron_options(rule, 3 / 8 if rule == "share" else 1.0), params, neurons, Key(0))
    assert masks[B].nonzero().flatten().tolist() == list(task.informative)
    assert masks[A].tolist() == [False, True]
