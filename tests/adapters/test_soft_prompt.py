"""Soft tokens at the input: the body called by hand on concatenated embeddings."""

from __future__ import annotations

import pytest
import torch
from adapted import TOKENS, made
from texts import PAD, padded, sentences
from torch.func import functional_call
from transformers import LongformerConfig, LongformerForSequenceClassification

from fibecfed.adapters.options import PromptAdapter
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.models.own_adapters import add_adapter
from fibecfed.models.tiny import FAMILIES, Family, tiny_task
from fibecfed.models.transformer_task import TransformerTask

pytestmark = pytest.mark.usefixtures("norms_in_float64")


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_body_on_prompt_and_text_with_the_class_read_from_the_texts_own_token(family: Family) -> None:
    task, params = made(family, "prompt")
    (text,) = sentences([4])
    body, model = task.model.base_model, task.model
    embeddings = torch.cat([params["adapter.prompt"], model.get_input_embeddings()(text)])[None]
    first = 2 if family == "roberta" else 0
    hidden = body(inputs_embeds=embeddings, position_ids=torch.arange(first, first + 7)[None]).last_hidden_state
    token = hidden[:, -1] if family in ("gpt2", "llama") else hidden[:, TOKENS]
    if family == "bert":
        token = body.pooler(token[:, None])
    head = "score" if family in ("gpt2", "llama") else "classifier"
    own = {name.removeprefix(f"{head}."): value for name, value in params.items() if name.startswith(head)}
    expected = functional_call(getattr(model, head), own, (token[:, None] if family == "roberta" else token,))
    torch.testing.assert_close(task.logits(params, padded([text], PAD[family])), expected, rtol=1e-10, atol=1e-12)


def test_it_starts_from_the_embeddings_of_different_words() -> None:
    task = tiny_task("gpt2", adapter=PromptAdapter(num_tokens=20))
    words = task.model.get_input_embeddings().weight.detach()
    start = task.init_params(Key(3))["adapter.prompt"]
    found = [(words == row).all(1).nonzero().flatten().tolist() for row in start]
    assert all(len(where) == 1 for where in found) and len({where[0] for where in found}) == 20


def test_a_random_start_is_as_wide_as_the_words() -> None:
    task = tiny_task("gpt2", adapter=PromptAdapter(num_tokens=60, start="random"))
    with torch.no_grad():
        task.model.get_input_embeddings().weight.mul_(10)
    words = task.model.get_input_embeddings().weight.detach()
    start = task.init_params(Key(3))["adapter.prompt"]
    assert float(start.std() / words.std()) == pytest.approx(1, abs=0.1)
    assert not any(bool((words == row).all(1).any()) for row in start)


def test_a_model_that_takes_no_embeddings_or_positions_is_refused() -> None:
    task = tiny_task("bert", adapter=PromptAdapter(num_tokens=2))
    body = task._network._frozen
    lacking = type(body)(body.module, body.blocks, frozenset({"input_ids"}), 0, False, body.pool)
    with pytest.raises(
        UserError, match="a soft prompt cannot be used with a BertModel: its forward pass takes no inputs_embeds and no position_ids"
    ):
        task.model.adapter.check(lacking)


def test_a_model_whose_blocks_cut_the_text_into_windows_is_refused() -> None:
    config = LongformerConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, attention_window=4,
        max_position_embeddings=64, num_labels=2, initializer_range=0.5,  # so large that attention, and so its windows, weigh
    )  # fmt: skip
    model = LongformerForSequenceClassification(config)
    add_adapter(model, PromptAdapter(num_tokens=2), key=Key(0))
    with pytest.raises(ValueError, match="LongformerForSequenceClassification is not supported"):
        TransformerTask(model)
