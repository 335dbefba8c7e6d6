"""What every adapter keeps to, on every family of models."""

from __future__ import annotations

import pytest
import torch
from adapted import SMALL, adapted, made
from texts import PAD, bits, noisy, padded, sentences
from torch.nn.functional import cross_entropy

from fibecfed.core.rng import Key
from fibecfed.local.fisher import per_example_fisher_trace
from fibecfed.models.tiny import FAMILIES, Family, tiny_task
from fibecfed.models.transformer_task import TransformerTask

pytestmark = pytest.mark.usefixtures("norms_in_float64")
EXACTLY = {"rtol": 1e-10, "atol": 1e-11}
each = pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in FAMILIES for kind in SMALL])
each_kind = pytest.mark.parametrize("kind", SMALL)
TEXTS = sentences([5, 3, 1])


@each
def test_the_logits_of_an_example_depend_neither_on_padding_nor_on_its_side_nor_on_the_batch(family: Family, kind: str) -> None:
    task, params = made(family, kind)
    alone = torch.cat([task.logits(params, padded([text], PAD[family])) for text in TEXTS])
    for batch in (padded(TEXTS, PAD[family], total=8), padded(TEXTS, PAD[family], total=7, side="left")):
        torch.testing.assert_close(task.logits(params, batch), alone, **EXACTLY)
    assert float(torch.pdist(alone).min()) > 1e-3


@each
def test_embeddings_in_place_of_tokens_give_the_same_losses(family: Family, kind: str) -> None:
    task, params = made(family, kind)
    batch = padded(TEXTS, PAD[family], total=6, side="left")
    losses = task.losses(params, batch, task.embed(batch))
    torch.testing.assert_close(losses, cross_entropy(task.logits(params, batch), batch["labels"], reduction="none"), **EXACTLY)
    assert torch.equal(task.embed(batch), task.model.get_input_embeddings()(batch["input_ids"]))


@each
def test_hidden_states_are_those_of_the_texts_tokens_one_a_block(family: Family, kind: str) -> None:
    task = adapted(family, kind)  # a new one, so that nothing is kept of a text yet
    params, right, left = noisy(task), padded(TEXTS, PAD[family], total=6), padded(TEXTS, PAD[family], total=6, side="left")
    states = task.hidden_states(params, right)
    assert [state.shape for state in states] == [(3, 6, 16)] * task.num_layers
    for a, b in zip(states, task.hidden_states(params, left), strict=True):
        torch.testing.assert_close(a[right["attention_mask"] == 1], b[left["attention_mask"] == 1], **EXACTLY)


@each
def test_every_trained_tensor_gets_a_gradient_and_is_part_of_adapter_norms_or_head(family: Family, kind: str) -> None:
    task, params = made(family, kind)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    batch = padded(sentences([5, 4, 6]), PAD[family])
    task.losses(leaves, batch).sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.abs().max() > 0, name
    heads = ("classifier.", "score.")
    outside = [name for name in params if not name.startswith(("adapter.", *heads))]
    assert bool(outside) == (kind == "bottleneck")
    assert all("norm" in name.lower() or ".ln_" in name for name in outside)


@each
def test_the_module_is_never_written_and_keeps_no_hook(family: Family, kind: str) -> None:
    task = adapted(family, kind)
    before, params, batch = bits(task.model), noisy(task), padded(TEXTS, PAD[family])
    task.losses({name: value.requires_grad_() for name, value in params.items()}, batch).sum().backward()
    task.hidden_states(params, batch)
    assert bits(task.model) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.model.modules())
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert not any(module.training for module in task.model.modules())


@each_kind
def test_the_start_is_drawn_by_name_from_the_key_alone(kind: str) -> None:
    task, other = (tiny_task("bert", adapter=SMALL[kind], seed=seed) for seed in (0, 0))
    with torch.no_grad():
        for name in other.names:
            if name.startswith(("adapter.", "classifier.")):
                other.model.get_parameter(name).fill_(9.0)
    first, same, new = task.init_params(Key(1)), other.init_params(Key(1)), task.init_params(Key(2))
    constant = [name for name in first if first[name].std() == 0 or "LayerNorm" in name]
    given = ["adapter.target"] if kind == "mixed prompt" else []  # the first source prompt, whatever the key
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert all(torch.equal(first[name], new[name]) == (name in (*constant, *given)) for name in first)
    assert all(name.endswith(("bias", "norm.weight", "LayerNorm.weight")) for name in constant)
    assert any(name.startswith("adapter.") and name not in constant for name in first)


@each_kind
def test_the_module_starts_from_a_draw_of_its_own_seed(kind: str) -> None:
    a, b, c = (tiny_task("gpt2", adapter=SMALL[kind], seed=seed).params() for seed in (0, 0, 1))
    drawn = [name for name in a if name.startswith("adapter.") and a[name].std() > 0]
    assert drawn and all(torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name]) for name in drawn)


@each_kind
def test_the_copy_for_curvature_computes_the_same(kind: str) -> None:
    task, params = made("llama", kind)
    batch = padded(TEXTS, 0)
    torch.testing.assert_close(task.exact().logits(params, batch), task.logits(params, batch), **EXACTLY)


@pytest.mark.parametrize(("kind", "works"), [("generated prompt", True), ("late prompt", True), ("prompt", False), ("prefix", False)])
def test_per_example_gradients_need_linear_maps(kind: str, works: bool) -> None:
    task, params = made("bert", kind)
    batch = padded(TEXTS, 0)
    if not works:
        with pytest.raises(ValueError, match=r"per-example gradients need linear maps; these are not: \['adapter"):
            task.traced(params, batch)
        return
    slow = []
    for text, label in zip(TEXTS, batch["labels"], strict=True):
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        grads = torch.autograd.grad(task.losses(leaves, {**padded([text], 0), "labels": label[None]}).sum(), list(leaves.values()))
        slow.append(sum(float(grad.square().sum()) for grad in grads))
    torch.testing.assert_close(
        per_example_fisher_trace(task, params, [batch]).double(), torch.tensor(slow, dtype=torch.float64), rtol=1e-5, atol=0
    )


@each_kind
def test_a_backbone_in_bf16_computes_about_the_same(kind: str) -> None:
    task = tiny_task("llama", adapter=SMALL[kind])
    coarse = TransformerTask(task.model, precision="bf16")
    batch = padded(TEXTS, 0)
    torch.testing.assert_close(coarse.logits(task.params(), batch), task.logits(task.params(), batch), rtol=0.1, atol=0.02)
