"""Layer importance against closed forms, a slow reference without padding, and layers made sensitive on purpose."""

from __future__ import annotations

import math

import pytest
import torch
from answering import alone, answer_task, answers
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import noisy
from torch import Tensor

from fibecfed.core.types import Batch
from fibecfed.local.sensitivity import increments, layer_sensitivity, worst_noise
from fibecfed.models.tiny import FAMILIES, Family, tiny_task

NORMS = [1.01, 1.5, 2.0, 3.0, 50.0, math.inf]


def text(seed: int = 0, lengths: tuple[int, ...] = (7, 3, 1, 5)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 64, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 2, (len(lengths),), generator=generator)}


def noise_inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gradient, embeddings = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    return gradient, embeddings, (torch.arange(5) < torch.tensor([[5], [2], [1]])).long()


def over_tokens(values: Tensor, mask: Tensor, norm: float) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(v[m.bool()], ord=norm) for v, m in zip(values, mask, strict=True)])


@pytest.mark.parametrize("norm", NORMS)
def test_the_noise_lies_on_the_ball_of_each_example(norm: float) -> None:
    gradient, embeddings, mask = noise_inputs()
    delta = worst_noise(gradient, embeddings, mask, 0.3, norm)
    torch.testing.assert_close(over_tokens(delta, mask, norm), 0.3 * over_tokens(embeddings, mask, 2.0))


@pytest.mark.parametrize("norm", NORMS)
def test_no_noise_on_the_ball_raises_the_loss_more_to_first_order(norm: float) -> None:
    gradient, embeddings, mask = noise_inputs(1)
    inside = mask[:, :, None]
    reached = (gradient * worst_noise(gradient, embeddings, mask, 0.3, norm) * inside).sum((1, 2))
    radius = 0.3 * over_tokens(embeddings, mask, 2.0)
    dual = 1.0 if math.isinf(norm) else norm / (norm - 1)
    torch.testing.assert_close(reached, radius * over_tokens(gradient, mask, dual))
    generator = torch.Generator().manual_seed(2)
    for _ in range(100):
        other = torch.randn(gradient.shape, generator=generator, dtype=torch.float64) * inside
        other = other * (radius / over_tokens(other, mask, norm))[:, None, None]
        assert ((gradient * other).sum((1, 2)) <= reached * (1 + 1e-12)).all()


def test_noise_for_p_2_and_inf_is_what_the_formula_says() -> None:
    gradient, embeddings, mask = noise_inputs()
    g, e = gradient[1, :2], embeddings[1, :2]  # the second example has two tokens
    torch.testing.assert_close(worst_noise(gradient, embeddings, mask, 0.1, 2.0)[1, :2], 0.1 * e.norm() * g / g.norm())
    torch.testing.assert_close(worst_noise(gradient, embeddings, mask, 0.1, math.inf)[1, :2], 0.1 * e.norm() * g.sign())


@pytest.mark.parametrize("norm", NORMS)
def test_padding_gets_no_noise_and_counts_in_no_norm(norm: float) -> None:
    gradient, embeddings, mask = noise_inputs()
    padding = mask[:, :, None] == 0
    delta = worst_noise(gradient, embeddings, mask, 0.1, norm)
    assert (delta.masked_select(padding) == 0).all()
    torch.testing.assert_close(
        worst_noise(gradient.masked_fill(padding, 1e9), embeddings.masked_fill(padding, 1e9), mask, 0.1, norm), delta, rtol=0, atol=0
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_gets_zero_noise_and_a_broken_one_shows(norm: float) -> None:
    gradient, embeddings, mask = noise_inputs()
    gradient[0], gradient[1, 0, 0] = 0, math.nan
    delta = worst_noise(gradient, embeddings, mask, 0.1, norm)
    assert (delta[0] == 0).all()
    assert delta[1, 0].isnan().all()
    assert delta[2].isfinite().all()


@settings(max_examples=25, deadline=None)
@given(st.integers(-150, 150), st.sampled_from(NORMS))
def test_the_noise_does_not_depend_on_the_length_of_the_gradient(exponent: int, norm: float) -> None:
    gradient, embeddings, mask = noise_inputs()
    torch.testing.assert_close(
        worst_noise(gradient * 10.0**exponent, embeddings, mask, 0.1, norm), worst_noise(gradient, embeddings, mask, 0.1, norm)
    )


@pytest.mark.parametrize(("noise_scale", "norm"), [(0.1, 1.0), (0.1, math.nan), (0.0, 2.0), (math.inf, 2.0)])
def test_a_ball_that_does_not_exist_is_refused(noise_scale: float, norm: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        worst_noise(*noise_inputs(), noise_scale, norm)


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("family", FAMILIES)
def test_importance_equals_a_loop_over_single_examples_without_padding(family: Family, norm: float) -> None:
    task, batch = tiny_task(family, dtype=torch.float64), text()
    params = task.params()
    expected = torch.zeros(task.num_layers, dtype=torch.float64)
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        one = {name: tensor[i : i + 1] if name == "labels" else tensor[i : i + 1, :length] for name, tensor in batch.items()}
        e = task.embed(one)
        leaf = e.clone().requires_grad_()
        (g,) = torch.autograd.grad(task.losses(params, one, embeddings=leaf).sum(), leaf)
        delta = 0.1 * e.norm() * (g / g.norm() if norm == 2 else g.sign())
        for layer, (clean, shifted) in enumerate(
            zip(task.hidden_states(params, one, embeddings=e), task.hidden_states(params, one, embeddings=e + delta), strict=True)
        ):
            expected[layer] += ((shifted - clean).norm() / clean.norm()).detach() / 4
    got = layer_sensitivity(task, params, [batch], norm=norm)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected.float())


def test_importance_does_not_depend_on_how_examples_are_batched_and_stops_at_the_number_asked_for() -> None:
    task, batch = tiny_task("bert", dtype=torch.float64), text()
    params = task.params()

    def rows(first: int, last: int) -> Batch:
        return {name: tensor[first:last] for name, tensor in batch.items()}

    whole = layer_sensitivity(task, params, [batch])
    torch.testing.assert_close(layer_sensitivity(task, params, iter([rows(0, 1), rows(1, 4)])), whole)
    torch.testing.assert_close(layer_sensitivity(task, params, [batch, batch], max_examples=4), whole)
    three = layer_sensitivity(task, params, [rows(0, 3)])
    torch.testing.assert_close(layer_sensitivity(task, params, [rows(0, 2), rows(2, 4)], max_examples=3), three)
    assert not torch.equal(three, whole)


def test_increments_start_from_the_noise_itself_and_add_up_to_the_importance() -> None:
    task, batch = tiny_task("llama", dtype=torch.float64, layers=3), text()
    importance = layer_sensitivity(task, task.params(), [batch], noise_scale=0.2)
    added = layer_sensitivity(task, task.params(), [batch], noise_scale=0.2, importance="increment")
    torch.testing.assert_close(added, increments(importance, 0.2))
    torch.testing.assert_close(0.2 + added.cumsum(0), importance)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("layer", range(4))
def test_a_layer_made_sensitive_has_the_largest_increment(family: Family, layer: int) -> None:
    task = tiny_task(family, layers=4, seed=layer)
    with torch.no_grad():
        for name, value in task.model.named_parameters():
            if "word_embeddings" in name or "embed_tokens" in name:
                value.mul_(50)  # from a standard deviation of 0.02 to 1, so that a block of random weights adds little to its input
            elif value.ndim == 2 and "lora" not in name and (f"layer.{layer}." in name or f"layers.{layer}." in name):
                value.mul_(30)
    added = layer_sensitivity(task, task.params(), [text(layer)], importance="increment")
    assert int(added.argmax()) == layer
    assert added[layer] > 3 * added[torch.arange(4) != layer].max()


def test_nothing_is_written_and_an_outer_no_grad_does_not_matter() -> None:
    task, batch = tiny_task("gpt2"), text()
    params = task.params()
    before = {name: tensor.clone() for name, tensor in params.items()}
    with torch.no_grad():
        first = layer_sensitivity(task, params, [batch])
    assert torch.equal(first, layer_sensitivity(task, params, [batch]))
    assert all(torch.equal(params[name], before[name]) and not params[name].requires_grad for name in before)
    assert all(p.grad is None for p in task.model.parameters())


def test_no_examples_and_unknown_kinds_are_refused() -> None:
    task, batch = tiny_task("bert"), text()
    params = task.params()
    with pytest.raises(ValueError, match="no examples"):
        layer_sensitivity(task, params, [])
    with pytest.raises(ValueError, match="max_examples = 0"):
        layer_sensitivity(task, params, [batch], max_examples=0)
    with pytest.raises(ValueError, match="importance = 'outputs'"):
        layer_sensitivity(task, params, [batch], importance="outputs")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="attention_mask"):
        layer_sensitivity(task, params, [{name: tensor for name, tensor in batch.items() if name != "attention_mask"}])


@pytest.mark.parametrize("side", ["right", "left"])
def test_of_answers_it_is_the_mean_change_at_the_positions_that_predict_them(side: str, norms_in_float64: None) -> None:
    task, batch = answer_task(dtype=torch.float64), answers(side=side)
    params = noisy(task)
    expected = torch.zeros(2, dtype=torch.float64)
    for row in range(4):
        one = alone(batch, row)
        embeddings = task.embed(one).requires_grad_()
        (gradient,) = torch.autograd.grad(task.losses(params, one, embeddings=embeddings).sum(), embeddings)
        noise = worst_noise(gradient, embeddings.detach(), one["attention_mask"], 0.1)
        clean, noisy_ones = (task.hidden_states(params, one, embeddings=embeddings.detach() + extra) for extra in (0.0, noise))
        places = [t for t in range(one["labels"].shape[1] - 1) if one["labels"][0, t + 1] >= 0]
        for layer, (a, b) in enumerate(zip(clean, noisy_ones, strict=True)):
            changes = [float((b[0, t] - a[0, t]).norm() / a[0, t].norm()) for t in places]
            expected[layer] += sum(changes) / len(changes) / 4
    torch.testing.assert_close(layer_sensitivity(task, params, [batch]), expected.float(), rtol=1e-5, atol=0.0)
