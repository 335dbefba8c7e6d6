"""Bottleneck layers: a block spelt out, and the start near the model without them."""

from __future__ import annotations

import pytest
import torch
from adapted import adapted
from texts import PAD, noisy, padded, sentences
from torch import Tensor
from torch.nn.functional import gelu, layer_norm
from transformers import AutoModelForSequenceClassification, DistilBertConfig

from fibecfed.adapters.options import BottleneckAdapter
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.models.own_adapters import add_adapter
from fibecfed.models.tiny import FAMILIES, Family, tiny_task
from fibecfed.models.transformer_task import TransformerTask

(TEXT,) = sentences([5])


def inserted(params: dict[str, Tensor], part: str, h: Tensor) -> Tensor:
    """h + up(GELU(down(h))) of block 0."""
    down, up = ({kind: params[f"adapter.layers.0.{part}.{name}.{kind}"] for kind in ("weight", "bias")} for name in ("down", "up"))
    return h + gelu(h @ down["weight"].T + down["bias"]) @ up["weight"].T + up["bias"]


def test_in_bert_they_stand_between_a_sub_layer_and_its_residual_and_norm() -> None:
    task = adapted("bert", "bottleneck", layers=1)
    params = noisy(task)
    bert = task.model.bert
    layer = bert.encoder.layer[0]

    def normed(path: str, x: Tensor) -> Tensor:
        return layer_norm(x, (16,), params[f"bert.{path}.weight"], params[f"bert.{path}.bias"], 1e-12)

    words = bert.embeddings.word_embeddings(TEXT) + bert.embeddings.position_embeddings.weight[:5]
    x = normed("embeddings.LayerNorm", words + bert.embeddings.token_type_embeddings.weight[0])
    attention = layer.attention.output.dense(layer.attention.self(x[None])[0][0])
    h = normed("encoder.layer.0.attention.output.LayerNorm", inserted(params, "attention", attention) + x)
    fed = layer.output.dense(layer.intermediate(h))
    expected = normed("encoder.layer.0.output.LayerNorm", inserted(params, "feed_forward", fed) + h)
    (got,) = task.hidden_states(params, padded([TEXT], 0))
    torch.testing.assert_close(got[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("norms_in_float64")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_in_decoders_they_stand_between_a_sub_layer_and_its_residual(family: Family) -> None:
    task = adapted(family, "bottleneck", layers=1)
    params = {name: value if "norm" in name or ".ln_" in name else noisy(task)[name] for name, value in task.params().items()}
    body = task.model.base_model
    block = task._network.blocks[0]
    if family == "gpt2":
        x = body.wte(TEXT) + body.wpe.weight[:5]
        h = x + inserted(params, "attention", block.attn(block.ln_1(x)[None])[0][0])
        expected = h + inserted(params, "feed_forward", block.mlp(block.ln_2(h)))
    else:
        x = body.embed_tokens(TEXT)
        turned = body.rotary_emb(x[None], position_ids=torch.arange(5)[None])
        h = x + inserted(params, "attention", block.self_attn(block.input_layernorm(x)[None], position_embeddings=turned)[0][0])
        expected = h + inserted(params, "feed_forward", block.mlp(block.post_attention_layernorm(h)))
    (got,) = task.hidden_states(params, padded([TEXT], PAD[family]))
    torch.testing.assert_close(got[0], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_start_near_the_model_without_them_and_norms_as_they_were(family: Family) -> None:
    task = tiny_task(family, adapter=BottleneckAdapter(size=4), dtype=torch.float64)
    start, batch = task.init_params(Key(1)), padded([TEXT], PAD[family])
    own = task.params()
    norms = [name for name in start if "norm" in name.lower() or ".ln_" in name]
    assert norms and all(torch.equal(start[name], own[name]) for name in norms)
    weights = torch.cat([value.flatten() for name, value in start.items() if name.startswith("adapter.") and name.endswith("weight")])
    assert 0.005 < float(weights.std()) < 0.012 and float(weights.abs().max()) <= 0.02
    adapted_logits, plain = task.logits(start, batch), task._logits(start, batch, adapted=False).detach()
    assert 0 < float((adapted_logits - plain).abs().max()) < 0.01


def test_other_blocks_are_refused_by_the_names_of_their_parts() -> None:
    config = DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=64, num_labels=2)
    model = AutoModelForSequenceClassification.from_config(config)
    add_adapter(model, BottleneckAdapter(size=2), key=Key(0))
    with pytest.raises(UserError, match=r"cannot be used with a DistilBertModel: got blocks with the parts \['attention', 'sa_layer_norm'"):
        TransformerTask(model)
