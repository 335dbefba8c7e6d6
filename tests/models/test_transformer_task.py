"""A classifier as functions of its trainable tensors: names, draws, dropout, precision, and a module that is never written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import PeftModel
from texts import PAD, bits, inputs, noisy, padded, sentences
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForSequenceClassification

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch
from fibecfed.local.collect import Collect
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.base_models import add_lora, set_dropout
from fibecfed.models.options import ModelOptions
from fibecfed.models.precision import store_frozen_maps_in_bf16
from fibecfed.models.tiny import FAMILIES, Family, tiny_config, tiny_model, tiny_task
from fibecfed.models.transformer_task import TransformerTask

KEY = Key(5).fold("test")
A, B = "lora_A.default.weight", "lora_B.default.weight"


def a_batch(family: Family = "bert") -> Batch:
    return padded(sentences([6, 3, 4, 5]), PAD[family], num_classes=2)


@contextmanager
def untouched_global_generator() -> Iterator[None]:
    """Whatever happens inside neither draws from the global generator nor sets it."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


# Names and copies


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_named_parameters_sorted_and_every_tensor_has_its_layer(family: Family) -> None:
    task = tiny_task(family, layers=3, num_classes=4)
    trainable = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert task.names == tuple(sorted(trainable))
    assert (task.num_layers, task.num_classes) == (3, 4)
    adapter = {name for name in task.names if "lora_" in name}
    assert {task.layer_of(name) for name in adapter} == {0, 1, 2}
    assert all(f".{task.layer_of(name)}." in name for name in adapter)
    assert {task.layer_of(name) for name in trainable - adapter} == {None}


def test_parameters_are_copies_of_the_modules_own() -> None:
    task = tiny_task("bert")
    before = bits(task.model)
    params = task.params()
    own = dict(task.model.named_parameters())
    assert all(torch.equal(value, own[name]) and not value.requires_grad for name, value in params.items())
    for value in params.values():
        value.fill_(9.0)
    assert bits(task.model) == before


def test_missing_and_unknown_names_are_refused_by_name() -> None:
    task, batch = tiny_task("bert"), a_batch()
    params = task.params()
    first, second = task.names[:2]
    without = {name: value for name, value in params.items() if name not in (first, second)}
    saved_name = first.replace(".default", "")  # as PEFT writes it into a file: torch.func would take it in silence
    for call in (task.losses, task.logits, task.predict, task.traced, task.hidden_states):
        with pytest.raises(KeyError) as missing:
            call(without, batch)
        assert first in str(missing.value) and second in str(missing.value) and task.names[2] not in str(missing.value)
        with pytest.raises(KeyError, match=f"missing \\[\\], unknown \\['{saved_name}'\\]"):
            call({**params, saved_name: params[first]}, batch)
    with pytest.raises(KeyError):
        task.losses({}, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_a_task_does_writes_its_module(family: Family) -> None:
    task, batch = tiny_task(family), a_batch(family)
    before = bits(task.model)
    params = noisy(task)
    given = bits(params)
    task.logits(params, batch)
    task.predict(params, batch)
    task.hidden_states(params, batch, task.embed(batch))
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    losses, _ = task.traced(leaves, batch)
    losses.sum().backward()
    task.init_params(KEY)
    task.exact().losses(params, batch)
    options = TrainingOptions(learning_rate=0.1)
    after = fit(task, params, [[batch, batch], [batch]], options, KEY, collect=Collect())
    assert any(bits(after.params)[name] != given[name] for name in given)
    assert bits(task.model) == before
    assert bits(params) == given
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert not task.model.training


def test_two_clients_in_turn_compute_what_each_computes_alone() -> None:
    task, batch = tiny_task("llama"), a_batch("llama")
    first, second = noisy(task, 1), noisy(task, 2)
    alone = [task.logits(params, batch) for params in (first, second)]
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(task.logits(first, batch), alone[0])
    assert torch.equal(tiny_task("llama").logits(second, batch), alone[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapted_weight_given_by_name_stands_in_for_the_frozen_one(family: Family) -> None:
    task, batch = tiny_task(family), a_batch(family)
    params, weights = task.params(), task.adapted_weights()
    assert len(weights) == sum(name.endswith(A) for name in task.names)
    before, expected = bits(task.model), task.logits(params, batch)
    assert torch.equal(task.logits({**params, **weights}, batch), expected)
    name, weight = next(iter(weights.items()))
    replaced = task.logits({**params, name: -10 * weight}, batch)
    assert not torch.allclose(replaced, expected)
    assert bits(task.model) == before
    with torch.no_grad():
        task.adapted_weights()[name].mul_(-10)  # the module's own
    assert torch.equal(task.logits(params, batch), replaced)


def test_predictions_are_the_largest_logits_and_losses_their_cross_entropy() -> None:
    task, batch = tiny_task("gpt2", num_classes=3), padded(sentences([6, 3, 4, 5]), 0)
    params = noisy(task)
    logits = task.logits(params, batch)
    assert logits.shape == (4, 3) and not logits.requires_grad
    assert torch.equal(task.predict(params, batch), logits.argmax(1))
    expected = [
        -math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(logits.tolist(), batch["labels"], strict=True)
    ]
    assert task.losses(params, batch).tolist() == pytest.approx(expected, rel=1e-5)


# The start


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_drawn_from_its_key_alone(family: Family) -> None:
    task = tiny_task(family)
    with untouched_global_generator():
        first = task.init_params(KEY)
    torch.rand(3)
    other_module = tiny_task(family, seed=9)
    drawn = bits(first)
    for value in first.values():  # what one caller does with its tensors changes nobody else's
        value.fill_(7)
    first = task.init_params(KEY)
    assert bits(first) == drawn == bits(other_module.init_params(KEY))
    other = task.init_params(KEY.fold("other"))
    assert [name for name in task.names if first[name].abs().max() > 0 and torch.equal(first[name], other[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_lora_without_effect_and_a_small_random_head(family: Family) -> None:
    task = tiny_task(family, hidden=64, num_classes=50, rank=8)
    params = task.init_params(KEY)
    for name, value in params.items():
        if name.endswith((B, "bias")):
            assert not value.any()
        elif name.endswith(A):
            bound = 1 / math.sqrt(value.shape[1])
            assert 0.9 * bound < value.abs().max() <= bound
            assert float(value.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        else:
            assert task.layer_of(name) is None
            assert float(value.std()) == pytest.approx(0.02, rel=0.1)
            assert abs(float(value.mean())) < 0.002
    draws = [value.flatten()[:4].tolist() for value in params.values() if value.any()]
    assert len({tuple(draw) for draw in draws}) == len(draws)  # each tensor has its own stream


def test_the_start_follows_the_backbones_own_initializer_range() -> None:
    config = tiny_config("bert", hidden=64, num_classes=50)
    config.initializer_range = 0.5
    model = add_lora(AutoModelForSequenceClassification.from_config(config), ModelOptions(rank=2), dropout=0.0, key=KEY)
    params = TransformerTask(model).init_params(KEY)
    assert float(params["base_model.model.classifier.modules_to_save.default.weight"].std()) == pytest.approx(0.5, rel=0.1)


# Parts of the computation


def test_hidden_states_are_the_outputs_of_the_blocks() -> None:
    task, batch = tiny_task("bert", layers=3), padded(sentences([5, 5]), 0)
    own = task.model(**inputs(batch), output_hidden_states=True).hidden_states
    found = task.hidden_states(task.params(), batch)
    assert len(found) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, own[1:], strict=True))


@pytest.mark.parametrize(("family", "norm"), [("gpt2", "transformer.ln_f"), ("llama", "model.norm")])
def test_hidden_states_of_decoders_are_those_before_the_final_norm(family: Family, norm: str) -> None:
    task, batch = tiny_task(family, layers=3), padded(sentences([5, 5]), 0)
    own = task.model(**inputs(batch), output_hidden_states=True).hidden_states
    found = task.hidden_states(task.params(), batch)
    assert len(found) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[:-1], own[1:-1], strict=True))
    assert isinstance(task.model, PeftModel)
    assert torch.equal(task.model.get_base_model().get_submodule(norm)(found[-1]), own[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_stand_in_for_token_ids_and_carry_gradients(family: Family) -> None:
    task, batch = tiny_task(family), a_batch(family)
    params, embeddings = noisy(task), task.embed(batch)
    assert embeddings.shape == (4, 6, 16) and not embeddings.requires_grad
    assert torch.equal(task.losses(params, batch, embeddings), task.losses(params, batch))
    (gradient,) = torch.autograd.grad(task.losses(params, batch, embeddings.requires_grad_()).sum(), embeddings)
    seen = batch["attention_mask"] == 1
    assert gradient[seen].any(1).all()
    assert not gradient[~seen].any()
    assert not torch.equal(task.hidden_states(params, batch, 2 * embeddings.detach())[0], task.hidden_states(params, batch)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tape_holds_every_trained_map_with_its_input_and_output(family: Family) -> None:
    task, batch = tiny_task(family), a_batch(family)
    params = noisy(task)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    losses, tape = task.traced(leaves, batch)
    assert torch.equal(losses, task.losses(params, batch))
    assert sorted(name for one in tape.linears for name in (one.weight, one.bias) if name) == list(task.names)
    for one in tape.linears:
        bias = None if one.bias is None else params[one.bias]
        torch.testing.assert_close(linear(one.input, params[one.weight], bias), one.output)
        assert one.output.requires_grad and not one.input.requires_grad
    assert not any(module._forward_hooks for module in task.model.modules())


def test_a_trainable_tensor_that_is_no_linear_map_is_refused_by_name() -> None:
    model = tiny_model("bert")
    name = "base_model.model.bert.encoder.layer.1.output.LayerNorm.weight"
    model.get_parameter(name).requires_grad_(True)
    task = TransformerTask(model)
    assert name in task.names and task.layer_of(name) == 1
    task.losses(task.params(), a_batch())
    with pytest.raises(ValueError, match=f"linear maps; these are not: \\['{name}'\\]"):
        task.traced(task.params(), a_batch())


# Dropout


def with_dropout(family: Family, rate: float) -> TransformerTask:
    config = tiny_config(family)
    set_dropout(config, rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    return TransformerTask(add_lora(model, ModelOptions(rank=2), dropout=rate, key=KEY), dropout=rate)


def losses_in_training(task: TransformerTask, key: Key) -> Tensor:
    with task.training(key):
        return task.losses(noisy(task), a_batch())


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_draws_from_its_key_alone_and_gives_the_generator_back(family: Family) -> None:
    task = with_dropout(family, 0.3)
    still = task.losses(noisy(task), a_batch())
    with untouched_global_generator():
        first = losses_in_training(task, KEY)
    torch.rand(3)
    assert torch.equal(losses_in_training(task, KEY), first)
    assert not torch.equal(losses_in_training(task, KEY.fold("other")), first)
    assert not torch.equal(first, still)
    assert torch.equal(task.losses(noisy(task), a_batch()), still)
    assert not any(module.training for module in task.model.modules())


def test_draws_go_on_inside_a_training() -> None:
    task = with_dropout("bert", 0.3)
    with task.training(KEY):
        assert not torch.equal(task.losses(noisy(task), a_batch()), task.losses(noisy(task), a_batch()))


def test_an_error_inside_a_training_ends_dropout_and_gives_the_generator_back() -> None:
    task = with_dropout("bert", 0.3)
    with untouched_global_generator(), pytest.raises(RuntimeError, match="stop"), task.training(KEY):
        torch.rand(1)
        raise RuntimeError("stop")
    assert not any(module.training for module in task.model.modules())


def test_without_dropout_training_changes_nothing() -> None:
    task = with_dropout("bert", 0.0)
    with untouched_global_generator():
        assert torch.equal(losses_in_training(task, KEY), task.losses(noisy(task), a_batch()))
    with task.training(KEY):
        assert not any(module.training for module in task.model.modules())


# Precision


@pytest.mark.parametrize("family", FAMILIES)
def test_storing_frozen_maps_in_bf16_changes_no_bit_of_what_autocast_computes(family: Family) -> None:
    plain, stored = (TransformerTask(tiny_model(family), precision="bf16") for _ in range(2))
    store_frozen_maps_in_bf16(stored.model)
    halved = {name for name, p in stored.model.named_parameters() if p.dtype == torch.bfloat16}
    assert halved or family == "gpt2"  # whose maps are no nn.Linear
    assert halved.isdisjoint(stored.names)
    params, batch = noisy(plain), a_batch(family)
    found = []
    for task in (plain, stored):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        losses = task.losses(leaves, batch)
        assert losses.dtype == torch.float32
        found.append([losses, *torch.autograd.grad(losses.sum(), list(leaves.values()))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    exact = TransformerTask(tiny_model(family)).losses(params, batch)
    assert not torch.equal(found[0][0], exact)
    torch.testing.assert_close(found[0][0], exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_plain_for_gradients_and_what_it_was_without(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, task = (TransformerTask(tiny_model(family), precision="bf16") for _ in range(2))
    kernel, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *args, **rest: [calls.append(1), kernel(*args, **rest)][1]
    )
    task.use_plain_attention_for_gradients()
    params, batch = noisy(task), a_batch(family)
    assert torch.equal(task.logits(params, batch), fused.logits(params, batch)) and len(calls) == 2 * task.num_layers
    losses = task.losses(params, batch)
    assert len(calls) == 2 * task.num_layers
    torch.testing.assert_close(losses, fused.losses(params, batch), rtol=0.02, atol=0.02)
    calls.clear()
    with pytest.raises(KeyError):
        task.logits(params, {"input_ids": batch["input_ids"]})
    task.losses(params, batch)
    assert calls == []


def test_the_exact_copy_of_a_bf16_task_is_float32_and_leaves_the_task_as_it_is() -> None:
    task = TransformerTask(tiny_model("bert"), precision="bf16")
    store_frozen_maps_in_bf16(task.model)
    before = bits(task.model)
    exact = task.exact()
    assert {p.dtype for p in exact.model.parameters()} == {torch.float32}
    assert (exact.precision, exact.names, exact.dropout) == ("float32", task.names, 0.0)
    assert not {id(p) for p in exact.model.parameters()} & {id(p) for p in task.model.parameters()}
    assert bits(task.model) == before and task.precision == "bf16"
    torch.testing.assert_close(exact.losses(noisy(task), a_batch()), task.losses(noisy(task), a_batch()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_copy_keeps_float64_and_has_second_derivatives(family: Family) -> None:
    task, batch = tiny_task(family, dtype=torch.float64), a_batch(family)
    exact = task.exact()
    params = {name: value.requires_grad_() for name, value in task.params().items()}
    losses = exact.losses(params, batch)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, task.losses(params, batch))
    gradients = torch.autograd.grad(losses.mean(), list(params.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in gradients), list(params.values()))
    assert all(torch.isfinite(value).all() and value.any() for value in second)


# Refusals


def test_a_model_without_anything_to_train_or_of_unknown_precision_is_refused() -> None:
    model = AutoModelForSequenceClassification.from_config(tiny_config("bert"))
    with pytest.raises(ValueError, match=r"expected 'float32' or 'bf16'"):
        TransformerTask(model, precision="fp16")
    with pytest.raises(ValueError, match="wrap it with peft"):
        TransformerTask(model.requires_grad_(False))


def test_a_classifier_without_an_adapter_is_a_task_as_well() -> None:
    model = AutoModelForSequenceClassification.from_config(tiny_config("bert")).requires_grad_(False)
    nn.Module.requires_grad_(model.classifier, True)
    task = TransformerTask(model)
    assert task.names == ("classifier.bias", "classifier.weight")
    assert task.adapted_weights() == {}
    assert torch.equal(task.logits(task.params(), a_batch()), model(**inputs(a_batch())).logits)
