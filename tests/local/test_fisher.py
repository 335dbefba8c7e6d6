"""Per-example Fisher information against a loop over examples, vmap, and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, linear

from fibecfed.core.task import Tape, TracedLinear
from fibecfed.core.types import Batch, Params
from fibecfed.local.fisher import Neurons, NeuronSums, Squares, example_gradients, fisher_pass, momentum, per_example_fisher_trace, squares
from fibecfed.models.tiny import FAMILIES, Family, tiny_task

A, B, HEAD, BIAS = "blocks.0.lora_A.default.weight", "blocks.0.lora_B.default.weight", "head.weight", "head.bias"


class HandMade:
    """x -> mean over tokens of tanh(x + x A^T B^T), then a linear head with a bias: all kinds of tensors, in float64."""

    num_layers = 1
    num_classes = 3
    device = torch.device("cpu")
    names = (A, B, HEAD, BIAS)

    def layer_of(self, name: str) -> int | None:
        return None if name.startswith("head") else 0

    def traced(self, params: Params, batch: Batch) -> tuple[Tensor, Tape]:
        x = batch["input_ids"]
        down = linear(x, params[A])
        up = linear(down, params[B])
        pooled = torch.tanh(x + up).mean(1)
        logits = linear(pooled, params[HEAD], params[BIAS])
        tape = Tape((TracedLinear(A, None, x, down), TracedLinear(B, None, down, up), TracedLinear(HEAD, BIAS, pooled, logits)))
        return cross_entropy(logits, batch["labels"], reduction="none"), tape

    def losses(self, params: Params, batch: Batch) -> Tensor:
        return self.traced(params, batch)[0]

    def logits(self, params: Params, batch: Batch) -> Tensor:
        return self.traced(params, batch)[1].linears[-1].output.detach()


def hand_made(dtype: torch.dtype = torch.float64) -> tuple[HandMade, dict[str, Tensor], list[Batch]]:
    g = torch.Generator().manual_seed(0)
    shapes = {A: (2, 6), B: (6, 2), HEAD: (3, 6), BIAS: (3,)}
    params = {name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    batches = [
        {"input_ids": torch.randn(n, 4, 6, generator=g, dtype=torch.float64).to(dtype), "labels": torch.randint(3, (n,), generator=g)}
        for n in (5, 3)
    ]
    return HandMade(), params, batches


def text_batches(sizes: Sequence[int], num_classes: int = 3) -> list[Batch]:
    """Padded batches of random token ids (3 .. 63), padding 0 with mask 0."""
    g = torch.Generator().manual_seed(1)
    batches = []
    for n in sizes:
        lengths = torch.randint(2, 9, (n,), generator=g)
        mask = (torch.arange(9) < lengths[:, None]).long()
        batches.append({
            "input_ids": torch.randint(3, 64, (n, 9), generator=g) * mask,
            "attention_mask": mask,
            "labels": torch.randint(num_classes, (n,), generator=g),
        })  # fmt: skip
    return batches


def looped(task, params: Params, batches: Sequence[Batch], labels: str = "true") -> list[list[tuple[float, dict[str, Tensor]]]]:
    """For each example its weighted gradients, one backward pass each, in float64: [(weight, gradient by name)]."""
    found = []
    for batch in batches:
        for i in range(len(batch["labels"])):
            one = {name: value[i : i + 1] for name, value in batch.items()}
            weighted = []
            for label in range(task.num_classes) if labels == "model" else [int(one["labels"])]:
                leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
                loss = task.losses(leaves, {**one, "labels": torch.tensor([label])})[0]
                gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
                weighted.append((math.exp(-float(loss.detach())) if labels == "model" else 1.0, gradients))
            found.append(weighted)
    return found


def check_against_loop(task, params: Params, batches: Sequence[Batch], labels: str, over: str) -> None:
    found = fisher_pass(task, params, iter(batches), labels, over)
    reference = looped(task, params, batches, labels)
    kept = [name for name in task.names if over == "all" or task.layer_of(name) is not None]
    traces = [sum(w * sum(float(g[name].square().sum()) for name in kept) for w, g in weighted) for weighted in reference]
    torch.testing.assert_close(found.trace, torch.tensor(traces, dtype=torch.float32), rtol=1e-5, atol=1e-12)
    assert found.num_examples == len(reference)
    for name in task.names:
        squared = sum(w * g[name].square() for weighted in reference for w, g in weighted) / len(reference)
        rows = squared.sum(1) if squared.ndim == 2 else squared
        torch.testing.assert_close(found.neurons.rows[name], rows.float(), rtol=1e-5, atol=1e-12)
        if "lora_B" in name:
            torch.testing.assert_close(found.neurons.columns[name], squared.sum(0).float(), rtol=1e-5, atol=1e-12)
    assert found.neurons.rows.keys() == set(task.names)
    assert found.neurons.columns.keys() == {name for name in task.names if "lora_B" in name}


@pytest.mark.parametrize("over", ["all", "adapter"])
@pytest.mark.parametrize("labels", ["true", "model"])
def test_traces_and_neurons_of_a_hand_made_task_equal_a_loop_over_examples(labels: str, over: str) -> None:
    check_against_loop(*hand_made(), labels, over)


@pytest.mark.parametrize("labels", ["true", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_traces_and_neurons_of_tiny_transformers_equal_a_loop_over_examples(family: Family, labels: str) -> None:
    task = tiny_task(family, dtype=torch.float64, num_classes=3)
    check_against_loop(task, task.params(), text_batches((4, 2)), labels, "all")


@pytest.mark.parametrize("family", FAMILIES)
def test_traces_over_the_adapter_leave_out_the_head_of_tiny_transformers(family: Family) -> None:
    task = tiny_task(family, dtype=torch.float64, num_classes=3)
    check_against_loop(task, task.params(), text_batches((3,)), "true", "adapter")


@pytest.mark.parametrize("family", FAMILIES)
def test_traces_of_tiny_transformers_equal_vmap_of_grad(family: Family) -> None:
    task = tiny_task(family, dtype=torch.float64, num_classes=3)
    (batch,) = text_batches((5,))
    mask = batch["attention_mask"].bool()
    seen = mask[:, None, None, :].expand(-1, 1, 9, 9)
    if family in ("gpt2", "llama"):
        seen = seen & torch.ones(9, 9, dtype=torch.bool).tril()
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    ids, first = batch["input_ids"], 2 if family == "roberta" else 0  # RoBERTa counts from behind its padding index, 1

    def loss(params: Params, ids: Tensor, bias: Tensor, label: Tensor) -> Tensor:
        inputs = {"input_ids": ids[None], "attention_mask": bias[None], "position_ids": torch.arange(first, first + 9)[None]}
        logits = functional_call(task.model, dict(params), (), inputs, tie_weights=False).logits
        return cross_entropy(logits, label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0, 0))(task.params(), ids, bias, batch["labels"])
    norms = {name: gradients[name].square().flatten(1).sum(1) for name in task.names}
    found = fisher_pass(task, task.params(), [batch])
    torch.testing.assert_close(found.trace, sum(norms.values()).float(), rtol=1e-5, atol=1e-12)
    # the head has most of the trace: only tensor by tensor would a mistake in the adapter's show
    for name, norm in norms.items():
        torch.testing.assert_close(found.neurons.rows[name].sum(), norm.mean().float(), rtol=1e-5, atol=0)


def test_example_gradients_equal_autograd_for_maps_with_and_without_tokens() -> None:
    g = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    for shape in ((4, 7, 3), (4, 3)):
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        y = linear(x, weight.requires_grad_(), bias.requires_grad_())
        loss = torch.sin(y).flatten(1).sum(1)
        (e,) = torch.autograd.grad(loss.sum(), y, retain_graph=True)
        weights, biases = example_gradients(TracedLinear("w", "b", x, y), e)
        for i in range(4):
            by_weight, by_bias = torch.autograd.grad(loss[i], [weight, bias], retain_graph=True)
            torch.testing.assert_close(weights[i], by_weight)
            torch.testing.assert_close(biases[i], by_bias)
    assert example_gradients(TracedLinear("w", None, x, y), e)[1] is None


@pytest.mark.parametrize("shape", [(4, 7), (4,)])
@pytest.mark.parametrize(("name", "d_out", "d_in"), [("w.lora_A.x", 2, 5), ("w.lora_B.x", 5, 2), ("w.lora_B.x", 2, 5), ("w", 3, 3)])
def test_sums_of_squares_equal_those_of_the_example_gradients(name: str, d_out: int, d_in: int, shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(3)
    x, e = torch.randn(*shape, d_in, generator=g, dtype=torch.float64), torch.randn(*shape, d_out, generator=g, dtype=torch.float64)
    linear_map = TracedLinear(name, "bias", x, e)
    weights, biases = example_gradients(linear_map, e)
    found = squares(Tape((linear_map,)), [e], scale=3.0)
    torch.testing.assert_close(found.trace, 9 * (weights.square().sum((1, 2)) + biases.square().sum(1)))
    torch.testing.assert_close(found.rows[name], 9 * weights.square().sum((0, 2)))
    torch.testing.assert_close(found.rows["bias"], 9 * biases.square().sum(0))
    if "lora_B" in name:
        torch.testing.assert_close(found.columns[name], 9 * weights.square().sum((0, 1)))
    else:
        assert not found.columns
    assert squares(Tape((linear_map,)), [e], trace_over=["bias"]).trace.tolist() == pytest.approx(biases.square().sum(1).tolist())
    assert squares(Tape((linear_map,)), [e], trace_over=[]).trace.tolist() == [0.0] * 4


def test_a_mean_loss_with_the_batch_size_as_scale_gives_the_same_squares_as_the_summed_loss() -> None:
    task, params, (batch, _) = hand_made()
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    losses, tape = task.traced(leaves, batch)
    outputs = [one.output for one in tape.linears]
    of_sum = squares(tape, torch.autograd.grad(losses.sum(), outputs, retain_graph=True))
    of_mean = squares(tape, torch.autograd.grad(losses.mean(), outputs), scale=len(losses))
    torch.testing.assert_close(of_sum.trace, of_mean.trace)
    torch.testing.assert_close(of_sum.rows, of_mean.rows)
    torch.testing.assert_close(of_sum.columns, of_mean.columns)


def test_half_precision_gradients_are_squared_and_summed_in_float32() -> None:
    x, e = torch.full((2, 300, 4), 1.0, dtype=torch.bfloat16), torch.full((2, 300, 2), 1.0, dtype=torch.bfloat16)
    linear_map = TracedLinear("w.lora_A.weight", None, x, e)
    found = squares(Tape((linear_map,)), [e])
    assert found.trace.dtype == found.rows["w.lora_A.weight"].dtype == torch.float32
    assert found.trace.tolist() == [8 * 300.0**2] * 2  # 300 is no bf16 number: a sum in bf16 would stop short of it
    assert example_gradients(linear_map, e)[0].dtype == torch.float32


def test_the_gradients_of_a_map_that_is_used_twice_are_added_before_they_are_squared() -> None:
    g = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(5, 3, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    inputs = [torch.randn(4, tokens, 3, generator=g, dtype=torch.float64) for tokens in (7, 2)]
    outputs = [linear(x, weight, bias) for x in inputs]
    loss = (torch.sin(outputs[0]).flatten(1).sum(1) + 1) * torch.cos(outputs[1]).flatten(1).sum(1)
    tape = Tape(tuple(TracedLinear("w.lora_B.x", "b", x, y) for x, y in zip(inputs, outputs, strict=True)))
    found = squares(tape, torch.autograd.grad(loss.sum(), outputs, retain_graph=True))
    each = [torch.autograd.grad(loss[i], [weight, bias], retain_graph=True) for i in range(4)]
    of_weight, of_bias = (torch.stack(parts).square() for parts in zip(*each, strict=True))
    torch.testing.assert_close(found.trace, of_weight.sum((1, 2)) + of_bias.sum(1))
    torch.testing.assert_close(found.rows, {"w.lora_B.x": of_weight.sum((0, 2)), "b": of_bias.sum(0)})
    torch.testing.assert_close(found.columns, {"w.lora_B.x": of_weight.sum((0, 1))})


def test_an_input_with_one_vector_per_head_and_token_counts_as_that_many_tokens() -> None:
    g = torch.Generator().manual_seed(6)
    x, e = torch.randn(4, 2, 3, 5, generator=g), torch.randn(4, 2, 3, 7, generator=g)
    found = squares(Tape((TracedLinear("w", None, x, e),)), [e])
    flat = squares(Tape((TracedLinear("w", None, x.view(4, 6, 5), e.view(4, 6, 7)),)), [e.view(4, 6, 7)])
    assert torch.equal(found.trace, flat.trace) and torch.equal(found.rows["w"], flat.rows["w"])


def test_a_map_that_no_loss_depends_on_has_no_fisher_information_and_counts_for_nothing_beside_another_use() -> None:
    g = torch.Generator().manual_seed(5)
    x, e = torch.randn(4, 6, 3, generator=g), torch.randn(4, 6, 2, generator=g)
    used, unused = TracedLinear("w", "b", x, e), TracedLinear("v", "c", x, e)
    found = squares(Tape((used, replace(used, input=x + 1), unused)), [e, None, None])
    alone = squares(Tape((used,)), [e])
    assert torch.equal(found.trace, alone.trace)
    assert torch.equal(found.rows["w"], alone.rows["w"]) and torch.equal(found.rows["b"], alone.rows["b"])
    assert found.rows["v"].tolist() == found.rows["c"].tolist() == [0.0, 0.0]


def test_the_square_is_inside_the_sum_over_examples() -> None:
    x, e = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [-2.0]])
    found = squares(Tape((TracedLinear("w", None, x, e),)), [e])
    assert found.rows["w"].tolist() == [8.0]  # the batch gradient is 0
    sums = NeuronSums()
    sums.add(found)
    assert sums.mean().rows["w"].tolist() == [4.0]


def test_the_trace_of_an_example_does_not_depend_on_its_batch() -> None:
    task, params, batches = hand_made(torch.float32)
    whole = per_example_fisher_trace(task, params, batches)
    single = [{name: value[i : i + 1] for name, value in batch.items()} for batch in batches for i in range(len(batch["labels"]))]
    torch.testing.assert_close(per_example_fisher_trace(task, params, single), whole, rtol=1e-5, atol=1e-7)
    assert whole.dtype == torch.float32 and whole.shape == (8,)


def test_batches_of_unequal_size_weigh_by_their_examples() -> None:
    def of(value: float, n: int) -> Squares:
        return Squares(torch.zeros(n), {"b": torch.tensor([value * n])}, {"b": torch.tensor([value * n])})

    sums = NeuronSums()
    first = of(1.0, 3)
    sums.add(first)
    sums.add(of(5.0, 1))
    assert first.rows["b"].tolist() == [3.0]
    assert sums.num_examples == 4
    assert sums.mean().rows["b"].tolist() == sums.mean().columns["b"].tolist() == [2.0]
    with pytest.raises(ValueError, match="no example"):
        NeuronSums().mean()
    with pytest.raises(ValueError, match="different tensors"):
        sums.add(Squares(torch.zeros(1), {"a": torch.zeros(1)}, {}))


def test_momentum_weighs_the_old_by_gamma_and_starts_with_the_new() -> None:
    old = Neurons({"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor([4.0])})
    new = Neurons({"a": torch.tensor([0.0, 2.0])}, {"a": torch.tensor([8.0])})
    mixed = momentum(old, new, 0.75)
    assert mixed.rows["a"].tolist() == [0.75, 0.5]
    assert mixed.columns["a"].tolist() == [5.0]
    assert momentum(None, new, 0.75) is new
    assert old.rows["a"].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="other tensors"):
        momentum(old, Neurons({"b": torch.zeros(2)}, {}), 0.5)


def test_what_comes_in_is_not_written_and_gets_no_gradient() -> None:
    task, params, batches = hand_made()
    before = {name: value.clone() for name, value in params.items()}
    fisher_pass(task, params, batches, "model")
    torch.testing.assert_close(params, before, rtol=0, atol=0)
    assert not any(value.requires_grad or value.grad is not None for value in params.values())


def test_numbers_that_are_not_finite_name_the_batch_and_the_tensor() -> None:
    task, params, batches = hand_made()
    spoilt = [batches[0], {**batches[1], "input_ids": batches[1]["input_ids"].clone().index_fill_(0, torch.tensor([2]), math.nan)}]
    with pytest.raises(FloatingPointError, match=r"batch 1: the loss of its example 2 is nan"):
        fisher_pass(task, params, spoilt)
    huge = {**params, A: params[A] * 1e-200, B: params[B] * 1e200}
    with pytest.raises(FloatingPointError, match=r"batch 0, tensor blocks\.0\.lora_A\.default\.weight"):
        fisher_pass(task, huge, batches, over="all")


def test_misuse_is_refused_in_words() -> None:
    task, params, batches = hand_made()
    with pytest.raises(ValueError, match="no batches"):
        fisher_pass(task, params, [])
    with pytest.raises(ValueError, match="labels = 'own'"):
        fisher_pass(task, params, batches, "own")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="over = 'head'"):
        fisher_pass(task, params, batches, over="head")  # pyright: ignore[reportArgumentType]
    one = TracedLinear("w", None, torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="got 1 output gradients for 2"):
        squares(Tape((one, replace(one, weight="v"))), [one.output])
