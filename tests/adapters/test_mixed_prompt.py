"""Prompts mixed of frozen sources and a trained target: the formula spelt out with loops."""

from __future__ import annotations

import math

import pytest
import torch
from adapted import SMALL, TOKENS, adapted
from texts import PAD, noisy, padded, sentences
from torch import Tensor
from torch.nn.functional import layer_norm

from fibecfed.adapters.mixed_prompt import MixedPrompt
from fibecfed.adapters.options import MixedPromptAdapter
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.tiny import FAMILIES, Family, tiny_task

TEXTS = sentences([5, 3, 4])


def weights_of(params: dict[str, Tensor], prompts: list[Tensor], embeddings: Tensor) -> list[float]:
    """a_j of one text, embeddings (token, hidden), at temperature 2."""
    low = embeddings.max(0).values @ params["adapter.down.weight"].T
    high = (low * low.sigmoid()) @ params["adapter.up.weight"].T
    out = layer_norm(high, (len(high),), params["adapter.norm.weight"], params["adapter.norm.bias"])
    exponents = [math.exp(float(prompt.max(0).values @ out) / 2.0) for prompt in prompts]
    return [exponent / sum(exponents) for exponent in exponents]


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_a_soft_prompt_of_target_and_weighted_sum(family: Family) -> None:
    task, plain = adapted(family, "mixed prompt"), adapted(family, "prompt")
    params = noisy(task)
    plain.model.load_state_dict({name: value for name, value in task.model.state_dict().items() if "adapter." not in name}, strict=False)
    head = {name: value for name, value in params.items() if not name.startswith("adapter.")}
    target = params["adapter.target"]
    prompts = [*task.model.adapter.sources, target]
    for row, text in enumerate(TEXTS):
        weights = weights_of(params, prompts, task.model.get_input_embeddings()(text).detach())
        mixed = target + sum(weight * prompt for weight, prompt in zip(weights, prompts, strict=True))
        expected = plain.logits({**head, "adapter.prompt": mixed}, padded([text], PAD[family]))
        got = task.logits(params, padded(TEXTS, PAD[family], total=7, side="left"))[row : row + 1]
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_the_attention_of_an_example_sums_to_one_and_differs_between_examples() -> None:
    task = adapted("bert", "mixed prompt")
    batch = padded(TEXTS, 0)
    weights = task.model.adapter.attention(task.embed(batch), batch["attention_mask"]).detach()
    assert weights.shape == (3, 3) and bool((weights > 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert float(torch.pdist(weights).min()) > 1e-6


def test_the_sources_stay_frozen_in_training_and_belong_to_no_client() -> None:
    sources = torch.randn(4, TOKENS, 16)
    task = tiny_task("bert", adapter=SMALL["mixed prompt"], sources=sources)
    before = task.init_params(Key(1))
    assert not any("sources" in name for name in task.names)
    state = {name: value.clone() for name, value in task.model.state_dict().items()}
    options = TrainingOptions(learning_rate=0.1, batch_size=3)
    after = fit(task, before, [[padded(TEXTS, 0, num_classes=2)] * 3], options, Key(1)).params
    assert all(torch.equal(value, state[name]) for name, value in task.model.state_dict().items() if not name.endswith("sources"))
    assert torch.equal(task.model.adapter.sources, sources) and not after.keys() & {"adapter.sources"}
    assert all(not torch.equal(after[name], before[name]) for name in after)
    sources.zero_()
    assert bool(task.model.adapter.sources.any())


def test_the_temperature_is_the_hidden_size_times_e_unless_set() -> None:
    sources = torch.zeros(1, 2, 24)
    assert MixedPrompt(sources, 3, None).temperature == 24 * math.e
    assert MixedPrompt(sources, 3, 5.0).temperature == 5.0


def test_the_target_starts_as_the_first_source_prompt_and_the_norm_as_the_identity() -> None:
    sources = torch.randn(2, TOKENS, 16)
    task = tiny_task("gpt2", adapter=SMALL["mixed prompt"], sources=sources)
    start = task.init_params(Key(3))
    assert torch.equal(start["adapter.target"], sources[0]) and torch.equal(task.params()["adapter.target"], sources[0])
    assert bool((start["adapter.norm.weight"] == 1).all()) and not start["adapter.norm.bias"].any()


def test_if_asked_to_the_target_starts_from_words() -> None:
    task = tiny_task("gpt2", adapter=SMALL["mixed prompt"].model_copy(update={"start": "vocabulary"}))
    start, words = task.init_params(Key(3)), task.model.get_input_embeddings().weight.detach()
    assert all(bool((words == row).all(1).any()) for row in start["adapter.target"])


def test_sources_of_another_length_are_refused() -> None:
    with pytest.raises(UserError, match=r"method.sources: got shape \(2, 4, 16\), expected source prompts of shape \(sources, 3, 16\)"):
        tiny_task("bert", adapter=MixedPromptAdapter(num_tokens=3), sources=torch.zeros(2, 4, 16))
