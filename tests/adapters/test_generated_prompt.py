"""Prompts made from each example's sentence vector, which is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from adapted import SMALL, TOKENS, adapted, made
from texts import PAD, noisy, padded, sentences
from torch import Tensor

from fibecfed.adapters.generated_prompt import GeneratedPrompt
from fibecfed.adapters.options import GeneratedPromptAdapter
from fibecfed.core.rng import Key
from fibecfed.models.tiny import FAMILIES, Family, tiny_task
from fibecfed.models.transformer_task import TransformerTask

TEXTS = sentences([5, 3, 4])


@contextmanager
def body_calls(task: TransformerTask) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of what the first block gets, call by call."""
    calls: list[tuple[int, ...]] = []
    handle = task._network.blocks[0].register_forward_pre_hook(
        lambda _, args, keywords: calls.append(tuple((args or (keywords["hidden_states"],))[0].shape)), with_kwargs=True
    )
    yield calls
    handle.remove()


def prompts_of(task: TransformerTask, params: dict[str, Tensor], text: Tensor) -> Tensor:
    """up(ReLU(down(mean of the last hidden state))), spelt out."""
    hidden = task.model.base_model(input_ids=text[None]).last_hidden_state[0]
    low = (hidden.mean(0) @ params["adapter.down.weight"].T + params["adapter.down.bias"]).clamp(min=0)
    return (low @ params["adapter.up.weight"].T + params["adapter.up.bias"]).view(TOKENS, -1)


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_a_soft_prompt_of_each_examples_own(family: Family) -> None:
    task, params = made(family, "generated prompt")
    plain = adapted(family, "prompt")
    plain.model.load_state_dict({name: value for name, value in task.model.state_dict().items() if "adapter." not in name}, strict=False)
    head = {name: value for name, value in params.items() if not name.startswith("adapter.")}
    prompts = [prompts_of(task, params, text) for text in TEXTS]
    for row, (text, prompt) in enumerate(zip(TEXTS, prompts, strict=True)):
        expected = plain.logits({**head, "adapter.prompt": prompt}, padded([text], PAD[family]))
        torch.testing.assert_close(task.logits(params, padded(TEXTS, PAD[family]))[row : row + 1], expected, rtol=1e-9, atol=1e-11)
    assert all(float((a - b).abs().max()) > 0.01 for a, b in pairwise(prompts))


def test_the_vector_of_an_example_is_computed_once_alone_and_without_padding() -> None:
    task = adapted("bert", "generated prompt")
    params = noisy(task)
    with body_calls(task) as calls:
        task.logits(params, padded(TEXTS, 0, total=8))
        assert calls == [(1, 5, 16), (1, 3, 16), (1, 4, 16), (3, 8 + TOKENS, 16)]
        calls.clear()
        task.logits(noisy(task, seed=1), padded([TEXTS[1], TEXTS[0]], 0, total=7, side="left"))  # other parameters, other batch
        assert calls == [(2, 7 + TOKENS, 16)]


def test_the_bits_of_a_vector_do_not_depend_on_what_was_asked_before() -> None:
    first, second = (tiny_task("bert", adapter=SMALL["generated prompt"]) for _ in range(2))
    params = noisy(first)
    second.logits(params, padded(list(reversed(TEXTS)), 0, total=16))
    assert torch.equal(first.logits(params, padded(TEXTS, 0)), second.logits(params, padded(TEXTS, 0)))


def test_pairs_with_the_same_words_divided_otherwise_have_vectors_of_their_own() -> None:
    task = adapted("bert", "generated prompt")
    params, batch = noisy(task), padded([TEXTS[0]], 0)
    halves = [torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[0, 0, 0, 0, 1]])]
    with body_calls(task) as calls:
        for kinds in halves:
            task.logits(params, {**batch, "token_type_ids": kinds})
    assert len(calls) == 4


def test_the_vector_is_that_of_the_model_without_dropout_and_the_body_goes_on_training() -> None:
    task = adapted("bert", "generated prompt")
    dropped = TransformerTask(task.model, dropout=0.5)
    for module in dropped.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    params, batch = noisy(task), padded(TEXTS, 0)
    with dropped.training(Key(1)):
        assert not torch.equal(dropped.logits(params, batch), dropped.logits(params, batch))
        assert all(module.training for module in dropped.model.base_model.modules())
    kept = list(dropped.model.adapter.sentences.kept.values())
    expected = [task.model.base_model(input_ids=text[None]).last_hidden_state[0].mean(0) for text in TEXTS]
    for vector, wanted in zip(kept[-3:], expected, strict=True):
        torch.testing.assert_close(vector, wanted, rtol=1e-10, atol=1e-12)


def test_what_is_kept_is_bounded_and_the_least_recently_used_goes_first() -> None:
    task = adapted("bert", "generated prompt")
    adapter = task.model.adapter
    assert isinstance(adapter, GeneratedPrompt)
    assert GeneratedPrompt(5, 64, 384).sentences.most * 384 * 4 <= 2**26
    adapter.sentences.most = 2
    adapter.sentences.kept.clear()
    params = noisy(task)
    for text in (TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2]):
        task.logits(params, padded([text], 0))
    assert list(adapter.sentences.kept) == [tuple(TEXTS[0].tolist()), tuple(TEXTS[2].tolist())]


def test_a_copy_keeps_nothing_of_what_was_computed_in_another_precision() -> None:
    task = tiny_task("llama", adapter=GeneratedPromptAdapter(num_tokens=2, size=3))
    assert task.model.adapter.sentences.kept  # of the trial when it was made
    coarse = TransformerTask(task.model, precision="bf16")
    coarse.logits(task.params(), padded(TEXTS, 0))
    assert {value.dtype for value in coarse.model.adapter.sentences.kept.values()} == {torch.float32}
    assert len(coarse.exact().model.adapter.sentences.kept) < len(coarse.model.adapter.sentences.kept)
