"""Trained keys and values in every layer: attention spelt out."""

from __future__ import annotations

import math

import pytest
import torch
from adapted import TOKENS, adapted, made
from texts import PAD, noisy, padded, sentences
from torch import Tensor
from transformers import AutoModelForSequenceClassification, DistilBertConfig, DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from fibecfed.adapters.options import PrefixAdapter
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.models.own_adapters import add_adapter
from fibecfed.models.tiny import FAMILIES, Family, tiny_config, tiny_task
from fibecfed.models.transformer_task import TransformerTask

pytestmark = pytest.mark.usefixtures("norms_in_float64")
(TEXT,) = sentences([5])


def by_head(value: Tensor, heads: int) -> Tensor:
    return value.reshape(len(value), heads, -1).transpose(0, 1)


def attended(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Attention of the text's queries (heads, T, dim) over prefix and text (heads, m + T, dim)."""
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[2])
    if causal:
        length = query.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores[:, :, -length:] = scores[:, :, -length:].masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)


def test_in_bert_the_keys_and_values_of_the_text_follow_those_of_the_prefix() -> None:
    task = adapted("bert", "prefix", layers=1)
    params = noisy(task)
    layer = task.model.bert.encoder.layer[0]
    inner, prefix = layer.attention.self, {name: by_head(params[f"adapter.layers.0.{name}"], 2) for name in ("key", "value")}
    x = task.model.bert.embeddings(input_ids=TEXT[None])[0]
    key, value = (torch.cat([prefix[name], by_head(getattr(inner, name)(x), 2)], 1) for name in ("key", "value"))
    h = layer.attention.output(attended(by_head(inner.query(x), 2), key, value, causal=False), x)
    expected = layer.output(layer.intermediate(h), h)
    (got,) = task.hidden_states(params, padded([TEXT], 0))
    torch.testing.assert_close(got[0], expected, rtol=1e-10, atol=1e-12)


def test_in_llama_with_fewer_heads_of_keys_the_prefix_is_not_turned_and_seen_by_every_token() -> None:
    config = tiny_config("llama", layers=1, heads=4)
    config.num_key_value_heads = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    add_adapter(model, PrefixAdapter(num_tokens=TOKENS), key=Key(0))
    task = TransformerTask(model.double())
    params = noisy(task)
    assert params["adapter.layers.0.key"].shape == (TOKENS, 8)
    block, body = task.model.model.layers[0], task.model.model
    inner = block.self_attn
    x = body.embed_tokens(TEXT)
    y = block.input_layernorm(x)
    cos, sin = body.rotary_emb(y[None], position_ids=torch.arange(5)[None])
    query, key = apply_rotary_pos_emb(by_head(inner.q_proj(y), 4)[None], by_head(inner.k_proj(y), 2)[None], cos, sin)
    keys = torch.cat([by_head(params["adapter.layers.0.key"], 2), key[0]], 1).repeat_interleave(2, 0)
    values = torch.cat([by_head(params["adapter.layers.0.value"], 2), by_head(inner.v_proj(y), 2)], 1).repeat_interleave(2, 0)
    h = x + inner.o_proj(attended(query[0], keys, values, causal=True))
    expected = h + block.mlp(block.post_attention_layernorm(h))
    (got,) = task.hidden_states(params, padded([TEXT], 0))
    torch.testing.assert_close(got[0], expected, rtol=1e-8, atol=1e-10)  # the angles are float32 in transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_layer_it_is_what_past_keys_and_values_are(family: Family) -> None:
    task, params = made(family, "prefix")
    cache = DynamicCache()
    for layer in range(task.num_layers):
        key, value = (by_head(params[f"adapter.layers.{layer}.{name}"], 2)[None] for name in ("key", "value"))
        cache.update(key, value, layer)
    first = 2 if family == "roberta" else 0
    outputs = task.model.base_model(
        input_ids=TEXT[None], past_key_values=cache, attention_mask=torch.ones(1, TOKENS + 5), output_hidden_states=True,
        position_ids=torch.arange(first, first + 5)[None],
    )  # fmt: skip
    states = task.hidden_states(params, padded([TEXT], PAD[family]))
    torch.testing.assert_close(states[0], outputs.hidden_states[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_has_its_layer(family: Family) -> None:
    task = tiny_task(family, adapter=PrefixAdapter(num_tokens=2), layers=3)
    layers = {name: task.layer_of(name) for name in task.names if name.startswith("adapter.")}
    assert layers == {f"adapter.layers.{layer}.{name}": layer for layer in range(3) for name in ("key", "value")}


def test_a_model_that_takes_no_past_keys_is_refused_with_the_reason() -> None:
    config = DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64, num_labels=2)
    model = AutoModelForSequenceClassification.from_config(config)
    add_adapter(model, PrefixAdapter(num_tokens=2), key=Key(0))
    with pytest.raises(UserError, match="a prefix cannot be used with a DistilBertModel: its forward pass takes no past_key_values"):
        TransformerTask(model)
