"""Blocks below all that is trained: no graph, and with their output kept the same bits as without, in training, scoring and evaluation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from adapted import SMALL
from every_family import tiny
from texts import PAD, bits, noisy, padded, sentences
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch
from fibecfed.local.collect import Collect
from fibecfed.local.fisher import squares
from fibecfed.local.optimise import Fit, fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.base_models import add_lora, set_dropout
from fibecfed.models.depth import ENOUGH
from fibecfed.models.options import ModelOptions
from fibecfed.models.precision import store_frozen_maps_in_bf16
from fibecfed.models.tiny import FAMILIES, Family, tiny_config, tiny_model, tiny_task, tiny_words
from fibecfed.models.transformer_task import TransformerTask

KEY = Key(3)
LAYERS, FIRST = 4, 2
PLENTY = 2**22
FEW = 5_000
"""Bytes that hold a few examples."""
TEXTS = sentences([6, 3, 4, 5, 8, 7, 2, 16, 12, 4, 5, 6], seed=1)


def task_of(family: str, **more: Any) -> TransformerTask:
    if family in PAD:
        return tiny_task(family, layers=LAYERS, **more)  # pyright: ignore[reportArgumentType]
    config = tiny(family)
    config.num_hidden_layers, config.layer_types = LAYERS, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(type(config)(**config.to_dict()))
    return TransformerTask(add_lora(model, ModelOptions(rank=2), dropout=0.0, key=KEY))


def upper(task: TransformerTask, first: int = FIRST) -> list[str]:
    """Names of what is trained."""
    return [name for name in task.names if (layer := task.layer_of(name)) is None or layer >= first]


def epochs(pad: int, number: int = 10) -> list[list[Batch]]:
    """The texts in random order, in batches of four, three and one, padded to 8 or 16 tokens; some have no padding at all."""
    found = []
    for epoch in range(number):
        order = KEY.fold(epoch).permutation(len(TEXTS)).tolist()
        cut = [[TEXTS[i] for i in some] for some in (order[:4], order[4:8], order[8:11], order[11:])]
        found.append([padded(texts, pad, total=8 if max(map(len, texts)) <= 8 else 16, num_classes=2) for texts in cut])
    return found


def trained(task: TransformerTask, pad: int, first: int = FIRST) -> Fit:
    return fit(task, noisy(task), epochs(pad), TrainingOptions(learning_rate=0.01), KEY, trained=upper(task, first), collect=Collect())


def same_fit(one: Fit, other: Fit) -> None:
    assert bits(one.params) == bits(other.params)
    assert one.neurons is not None and other.neurons is not None
    assert bits(one.neurons.rows) == bits(other.neurons.rows) and bits(one.neurons.columns) == bits(other.neurons.columns)
    assert (one.loss, one.steps) == (other.loss, other.steps)


# Without a graph


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", [0, 1, LAYERS - 1, LAYERS])
def test_blocks_below_all_that_is_trained_run_without_a_graph_and_those_above_with_one(family: Family, first: int) -> None:
    task, batch = task_of(family), epochs(PAD[family])[0][0]
    params = {name: value.requires_grad_(name in upper(task, first)) for name, value in noisy(task).items()}
    seen: list[bool] = []
    blocks: Any = task._network.blocks
    handles = [block.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled())) for block in blocks]
    losses = task.losses(params, batch)
    assert seen[:first] == [False] * first and all(seen[first + 1 :])
    assert torch.is_grad_enabled() and losses.requires_grad
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2"])
def test_the_gradients_above_are_those_of_a_graph_through_all_blocks(family: str) -> None:
    task, batch = task_of(family), epochs(PAD.get(family, 0))[0][0]
    names, found = upper(task), []
    for leaves_of in (names, list(task.names)):
        leaves = {name: value.requires_grad_(name in leaves_of) for name, value in noisy(task).items()}
        losses = task.losses(leaves, batch)
        found.append((losses.detach(), torch.autograd.grad(losses.sum(), [leaves[name] for name in names])))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))
    assert all(gradient.any() for gradient in found[0][1])


def test_an_error_in_the_lower_blocks_leaves_gradients_on() -> None:
    task = task_of("bert")
    params = {name: value.requires_grad_(name in upper(task)) for name, value in noisy(task).items()}
    blocks: Any = task._network.blocks

    def fail(*_: Any) -> None:
        raise RuntimeError("stop here")

    handle = blocks[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop here"):
        task.losses(params, epochs(0)[0][0])
    handle.remove()
    assert torch.is_grad_enabled()
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_the_tape_has_the_maps_that_a_gradient_reaches() -> None:
    task, batch = task_of("bert"), epochs(0)[0][0]
    params = {name: value.requires_grad_(name in upper(task)) for name, value in noisy(task).items()}
    losses, tape = task.traced(params, batch)
    assert sorted({linear.weight for linear in tape.linears}) == [name for name in upper(task) if not name.endswith("bias")]
    gradients = torch.autograd.grad(losses.sum(), [linear.output for linear in tape.linears])
    whole = {name: value.detach().requires_grad_() for name, value in params.items()}
    all_losses, all_tape = task.traced(whole, batch)
    all_gradients = torch.autograd.grad(all_losses.sum(), [linear.output for linear in all_tape.linears])
    rows, all_rows = squares(tape, gradients).rows, squares(all_tape, all_gradients).rows
    assert rows.keys() < all_rows.keys() and all(torch.equal(value, all_rows[name]) for name, value in rows.items())


# Kept


@pytest.mark.parametrize("budget", [PLENTY, FEW])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen2", "electra", "mistral"])
def test_training_scoring_and_predicting_have_the_same_bits(family: str, budget: int) -> None:
    pad = PAD.get(family, 0)
    plain, keeps = task_of(family), task_of(family)
    assert keeps.keep_activations(budget) is not None
    one, other = trained(plain, pad), trained(keeps, pad)
    same_fit(one, other)
    for batch in itertools.chain(*epochs(pad, 6)):
        assert torch.equal(plain.logits(one.params, batch), keeps.logits(one.params, batch))
        for a, b in zip(plain.hidden_states(one.params, batch), keeps.hidden_states(one.params, batch), strict=True):
            assert torch.equal(a, b)
    lower = keeps.lower_blocks
    assert lower is not None and lower.by_row and lower.kept.nbytes <= budget
    assert lower.found > 20 if budget == PLENTY else len(lower.kept) > 0


@pytest.mark.parametrize("first", [1, 3, LAYERS])
def test_the_same_bits_wherever_the_trained_part_begins(first: int) -> None:
    plain, keeps = task_of("llama"), task_of("llama")
    keeps.keep_activations(PLENTY)
    same_fit(trained(plain, 0, first), trained(keeps, 0, first))
    assert keeps.lower_blocks is not None and keeps.lower_blocks.found > 20


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_same_bits_with_words_for_classes(family: Family) -> None:
    plain, keeps = (task_of(family, words=tiny_words(family)) for _ in range(2))
    keeps.keep_activations(PLENTY)
    texts = [torch.cat([torch.tensor([5, 4]), text.clamp(min=10)]) for text in TEXTS]
    batches = [[padded([texts[i] for i in some], 0, num_classes=2) for some in ([0, 1, 2], [3, 4, 5], [6, 8, 9])] for _ in range(9)]
    found = [fit(task, noisy(task), batches, TrainingOptions(), KEY, trained=upper(task)) for task in (plain, keeps)]
    assert bits(found[0].params) == bits(found[1].params)
    assert keeps.lower_blocks is not None and keeps.lower_blocks.found > 0


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_same_bits_in_bf16_with_plain_attention_for_gradients(family: Family) -> None:
    def made() -> TransformerTask:
        model = tiny_model(family, layers=LAYERS)
        store_frozen_maps_in_bf16(model)
        task = TransformerTask(model, precision="bf16")
        task.use_plain_attention_for_gradients()
        return task

    plain, keeps = made(), made()
    keeps.keep_activations(PLENTY)
    one, other = trained(plain, 0), trained(keeps, 0)
    same_fit(one, other)
    for batch in itertools.chain(*epochs(0, 6)):
        assert torch.equal(plain.logits(one.params, batch), keeps.logits(one.params, batch))


def test_kept_blocks_do_not_run() -> None:
    task, batch = task_of("bert"), padded(TEXTS[:4], 0, num_classes=2)
    task.keep_activations(PLENTY)
    sizes: list[int] = []
    inner: Any = task._network.blocks[0].attention
    inner.register_forward_hook(lambda _module, _args, out: sizes.append(len(out[0])))
    fit(task, noisy(task), [[batch] * 20], TrainingOptions(), KEY, trained=upper(task))
    assert sizes == [4, 2], "computed once, and two rows of it by themselves to compare"


def test_a_text_alone_is_compared_when_it_comes_again() -> None:
    task, batches = task_of("bert"), [padded(TEXTS[i : i + 1], 0, total=16, num_classes=2) for i in range(ENOUGH + 1)]
    task.keep_activations(PLENTY)
    calls: list[int] = []
    inner: Any = task._network.blocks[0].attention
    inner.register_forward_hook(lambda *_: calls.append(1))
    fit(task, noisy(task), [batches, batches, batches], TrainingOptions(), KEY, trained=upper(task))
    assert len(calls) == len(batches) + ENOUGH, "there is nothing to compute it beside"


def test_a_few_new_rows_are_computed_by_themselves() -> None:
    task = task_of("bert")
    task.keep_activations(PLENTY)
    known, other = (padded(TEXTS[:8], 0, total=16, num_classes=2), padded([*TEXTS[:6], TEXTS[8], TEXTS[9]], 0, total=16, num_classes=2))
    sizes: list[int] = []
    inner: Any = task._network.blocks[0].attention
    fit(task, noisy(task), [[known] * 3], TrainingOptions(), KEY, trained=upper(task))
    inner.register_forward_hook(lambda _module, _args, out: sizes.append(len(out[0])))
    one = fit(task, noisy(task), [[other, known, other]], TrainingOptions(), KEY, trained=upper(task))
    assert sizes == [4], "two new rows and two to compare"
    plain = task_of("bert")
    assert bits(one.params) == bits(fit(plain, noisy(plain), [[other, known, other]], TrainingOptions(), KEY, trained=upper(plain)).params)


def test_the_new_rows_of_all_batches_of_a_training_are_computed_together() -> None:
    task, plain = task_of("bert"), task_of("bert")
    task.keep_activations(PLENTY)
    known = padded(TEXTS[:8], 0, total=16, num_classes=2)
    others = [padded([*TEXTS[:7], TEXTS[i]], 0, total=16, num_classes=2) for i in (8, 9)]
    sizes: list[int] = []
    inner: Any = task._network.blocks[0].attention
    fit(task, noisy(task), [[known] * 2], TrainingOptions(), KEY, trained=upper(task))
    inner.register_forward_hook(lambda _module, _args, out: sizes.append(len(out[0])))
    found = [fit(one, noisy(one), [others, others], TrainingOptions(), KEY, trained=upper(one)).params for one in (task, plain)]
    assert sizes == [4], "two new rows of two batches and two to compare"
    assert bits(found[0]) == bits(found[1])


def test_rows_are_computed_ahead_only_as_far_as_they_can_be_kept_and_are_wanted() -> None:
    task = task_of("bert")
    size = task.keep_activations(10**5)
    assert size is not None
    some = [padded([text], 0, total=16, num_classes=2) for text in TEXTS[:6]]
    task.keep_activations(3 * size.of(16))
    fit(task, noisy(task), [some], TrainingOptions(), KEY, trained=upper(task))
    assert task.lower_blocks is not None and task.lower_blocks.computed <= 3 + len(some)
    task.keep_activations(PLENTY)
    fit(task, noisy(task), [some, some], TrainingOptions(max_steps=2), KEY, trained=upper(task))
    assert task.lower_blocks.computed == 4, "each of the two once ahead, and once where nothing was there to compare it with"


class _Crowded(nn.Module):
    """A block whose rows depend on how many others there are."""

    def forward(self, _module: nn.Module, _args: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (out[0] * (1 + 1e-3 * len(out[0])), *out[1:])
        return out * (1 + 1e-3 * len(out))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_where_rows_depend_on_their_batch_only_the_same_batch_is_taken_as_kept(family: Family) -> None:
    tasks = [task_of(family) for _ in range(2)]
    for task in tasks:
        blocks: Any = task._network.blocks
        blocks[0].register_forward_hook(_Crowded().forward)
    plain, keeps = tasks
    keeps.keep_activations(PLENTY)
    batches = [padded(TEXTS[:4], 0, total=16, num_classes=2), padded(TEXTS[1:4], 0, total=16, num_classes=2)]
    found = [fit(task, noisy(task), [batches] * 8, TrainingOptions(), KEY, trained=upper(task)) for task in tasks]
    assert bits(found[0].params) == bits(found[1].params)
    assert keeps.lower_blocks is not None and not keeps.lower_blocks.by_row and keeps.lower_blocks.found > 0
    assert plain.lower_blocks is None


# What it is of


def test_other_values_in_the_lower_blocks_are_never_answered_with_what_is_kept() -> None:
    plain, keeps = task_of("bert"), task_of("bert")
    keeps.keep_activations(PLENTY)
    batch = epochs(0)[0][0]
    for seed in (0, 1, 0):
        params = noisy(plain, seed)
        found = [fit(task, params, [[batch] * 8], TrainingOptions(), KEY, trained=upper(task)).params for task in (plain, keeps)]
        assert bits(found[0]) == bits(found[1])
        for other in (found[0], noisy(plain, 2), {name: value + 1e-6 for name, value in params.items()}):
            assert torch.equal(plain.logits(other, batch), keeps.logits(other, batch))
    assert keeps.lower_blocks is not None and keeps.lower_blocks.found > 0


def test_a_weight_given_in_place_of_a_frozen_one_is_never_answered_with_what_is_kept() -> None:
    plain, keeps = task_of("bert"), task_of("bert")
    keeps.keep_activations(PLENTY)
    batch, params = epochs(0)[0][0], noisy(plain)
    fit(keeps, params, [[batch] * 8], TrainingOptions(), KEY, trained=upper(keeps))
    weights = {name: value + 0.1 for name, value in plain.adapted_weights().items() if ".0." in name}
    deltas = {name + ".delta": torch.ones_like(value) for name, value in weights.items()}
    assert weights
    for more in (weights, deltas):
        assert torch.equal(plain.logits({**params, **more}, batch), keeps.logits({**params, **more}, batch))
        assert not torch.equal(keeps.logits({**params, **more}, batch), keeps.logits(params, batch))


def test_a_training_of_all_blocks_neither_uses_nor_drops_what_is_kept() -> None:
    task, batch = task_of("bert"), epochs(0)[0][0]
    task.keep_activations(PLENTY)
    lower: Any = task.lower_blocks
    fit(task, noisy(task), [[batch] * 8], TrainingOptions(), KEY, trained=upper(task))
    before = (lower.found, lower.computed, len(lower.kept))
    fit(task, noisy(task), [[batch] * 8], TrainingOptions(), KEY)
    assert (lower.found, lower.computed, len(lower.kept)) == before and before[0] > 0


def test_with_dropout_nothing_is_kept() -> None:
    config = tiny_config("bert", layers=LAYERS)
    set_dropout(config, 0.5)
    model = AutoModelForSequenceClassification.from_config(config)
    task = TransformerTask(add_lora(model, ModelOptions(rank=2), dropout=0.5, key=KEY), dropout=0.5)
    assert task.keep_activations(PLENTY) is None and task.lower_blocks is None


def test_a_body_whose_blocks_hand_on_more_than_their_output_is_left_alone() -> None:
    task = task_of("bert")
    blocks: Any = task._network.blocks

    def more(_module: nn.Module, _args: Any, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        return (hidden, torch.zeros(()))

    handle = blocks[0].register_forward_hook(more)
    assert task.keep_activations(PLENTY) is None and task.lower_blocks is None
    handle.remove()


def test_a_prompt_at_the_middle_keeps_what_is_below_it() -> None:
    plain, keeps = (task_of("bert", adapter=SMALL["late prompt"]) for _ in range(2))
    size = keeps.keep_activations(PLENTY)
    assert size is not None and size.before == 3
    found = [fit(task, noisy(task), epochs(0), TrainingOptions(), KEY) for task in (plain, keeps)]
    assert bits(found[0].params) == bits(found[1].params)
    assert keeps.lower_blocks is not None and keeps.lower_blocks.found > 20
    assert torch.equal(plain.logits(found[0].params, epochs(0)[0][0]), keeps.logits(found[0].params, epochs(0)[0][0]))


@pytest.mark.parametrize("kind", ["bottleneck", "prompt", "generated prompt", "mixed prompt", "prefix"])
def test_adapters_that_act_from_the_first_block_on_keep_nothing(kind: str) -> None:
    plain, keeps = (task_of("bert", adapter=SMALL[kind]) for _ in range(2))
    keeps.keep_activations(PLENTY)
    found = [fit(task, noisy(task), epochs(0, 2), TrainingOptions(), KEY) for task in (plain, keeps)]
    assert bits(found[0].params) == bits(found[1].params)
    assert keeps.lower_blocks is None or keeps.lower_blocks.found == 0


def test_gradients_of_the_embeddings_reach_through_all_blocks() -> None:
    task, batch = task_of("bert"), epochs(0)[0][0]
    task.keep_activations(PLENTY)
    params = {name: value.requires_grad_(name in upper(task)) for name, value in noisy(task).items()}
    leaf: Tensor = task.embed(batch).requires_grad_()
    (gradient,) = torch.autograd.grad(task.losses(params, batch, leaf).sum(), leaf)
    assert gradient.any()
