"""Heads of the families that are known, and rejection of those whose logits would be another function's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from texts import inputs, noisy, padded, sentences
from torch import nn
from torch.func import functional_call
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from fibecfed.core.rng import Key
from fibecfed.models.base_models import add_lora
from fibecfed.models.heads import UnsupportedModel, head_modules, last_linear, pool
from fibecfed.models.options import ModelOptions
from fibecfed.models.transformer_task import TransformerTask

ENCODER: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 130,
}  # fmt: skip
DECODER: dict[str, Any] = {**ENCODER, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW: dict[str, Any] = {**DECODER, "head_dim": 8, "sliding_window": 4}
DEBERTA: dict[str, Any] = {
    **ENCODER, "pooler_hidden_size": 16, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0,
    "position_biased_input": False,
}  # fmt: skip
MODERN: dict[str, Any] = {
    **ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4, "local_attention": 4,
    "global_attn_every_n_layers": 2,
}  # fmt: skip

SUPPORTED: dict[str, Callable[[], PretrainedConfig]] = {
    "DistilBERT": lambda: transformers.DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "ELECTRA": lambda: transformers.ElectraConfig(**ENCODER, embedding_size=8),
    "XLM-RoBERTa": lambda: transformers.XLMRobertaConfig(**ENCODER, pad_token_id=1),
    "MPNet": lambda: transformers.MPNetConfig(**ENCODER),
    "DeBERTa": lambda: transformers.DebertaConfig(**DEBERTA),
    "DeBERTa-v2 and v3": lambda: transformers.DebertaV2Config(**DEBERTA, position_buckets=32, share_att_key=True),
    "ModernBERT, first token": lambda: transformers.ModernBertConfig(**MODERN, classifier_pooling="cls"),
    "ModernBERT, mean": lambda: transformers.ModernBertConfig(**MODERN, classifier_pooling="mean"),
    "Mistral": lambda: transformers.MistralConfig(**WINDOW),
    "Qwen2": lambda: transformers.Qwen2Config(**DECODER),
    "Qwen3": lambda: transformers.Qwen3Config(**DECODER, head_dim=8),
    "Gemma": lambda: transformers.GemmaConfig(**DECODER, head_dim=8),
    "Gemma 2": lambda: transformers.Gemma2Config(**WINDOW),
    "Gemma 3, text": lambda: transformers.Gemma3TextConfig(**WINDOW),
    "Phi-3": lambda: transformers.Phi3Config(**DECODER),
    "OPT": lambda: transformers.OPTConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=16, pad_token_id=0
    ),
}

REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "T5": (lambda: transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2), "got the parts"),
    "XLNet": (lambda: transformers.XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=32), "got the parts"),
    "ALBERT": (lambda: transformers.AlbertConfig(**ENCODER, embedding_size=8), "no list of 2 transformer blocks"),
    "Longformer": (
        lambda: transformers.LongformerConfig(**ENCODER, attention_window=[4, 4]),
        "pooling the first token and applying its head does not reproduce",
    ),
    "ConvBERT": (lambda: transformers.ConvBertConfig(**ENCODER, embedding_size=16), "depend on the padding"),
}


def made(config: PretrainedConfig, targets: tuple[str, ...] | None = None) -> TransformerTask:
    """A task on a random model whose logits differ from text to text."""
    config.num_labels = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.mul_(4)
    return TransformerTask(add_lora(model, ModelOptions(rank=2, target_modules=targets), dropout=0.0, key=Key(0)))


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_logits_of_a_supported_family_are_its_own_and_do_not_depend_on_padding(family: str) -> None:
    task = made(SUPPORTED[family]())
    params, pad = noisy(task), task.model.config.pad_token_id or 0
    full = padded(sentences([6, 6, 6]), pad)
    own = functional_call(task.model, params, (), inputs(full), tie_weights=False).logits
    close = {"rtol": 1e-4, "atol": 1e-4 * float(own.abs().max())}
    torch.testing.assert_close(task.logits(params, full), own, **close)
    assert float(torch.pdist(own).min()) > 100 * close["atol"]
    texts = sentences([6, 2, 4])
    alone = torch.cat([task.logits(params, padded([text], pad)) for text in texts])
    for side in ("left", "right"):
        batch = padded(texts, pad, total=7, side=side)
        torch.testing.assert_close(task.logits(params, batch), alone, **close)
        losses = task.losses(params, batch, task.embed(batch))
        torch.testing.assert_close(losses, task.losses(params, batch))
    losses, tape = task.traced({name: value.requires_grad_() for name, value in params.items()}, full)
    assert {name for one in tape.linears for name in (one.weight, one.bias) if name} == set(task.names)
    assert len(task.hidden_states(params, full)) == task.num_layers == 2
    assert {task.layer_of(name) for name in task.names} == {0, 1, None}


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_would_be_trained_as_another_function_is_refused(family: str) -> None:
    config, reason = REFUSED[family]
    with pytest.raises(UnsupportedModel, match=reason):
        made(config(), targets=("q", "v") if family == "T5" else ("query", "value"))


def classifier(**parts: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def test_the_head_is_what_no_pre_trained_body_has() -> None:
    linear = nn.Linear(2, 2)
    assert head_modules(classifier(model=linear, score=linear)) == ["score"]
    assert head_modules(classifier(bert=linear, dropout=nn.Dropout(), classifier=linear)) == ["classifier"]
    assert head_modules(classifier(distilbert=linear, pre_classifier=linear, classifier=linear)) == ["classifier", "pre_classifier"]
    with pytest.raises(UnsupportedModel, match=r"got the parts \['body', 'answer'\]"):
        head_modules(classifier(body=linear, answer=nn.Dropout()))


def test_the_last_linear_map_of_a_head_may_lie_inside_it() -> None:
    linear = nn.Linear(2, 2)
    assert last_linear(classifier(score=linear)) == "score"
    assert last_linear(classifier(pre_classifier=linear, classifier=linear)) == "classifier"
    assert last_linear(classifier(classifier=classifier(dense=linear, out_proj=linear))) == "classifier.out_proj"


def test_pooling_follows_the_mask() -> None:
    hidden = torch.arange(10.0).reshape(2, 5, 1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0]])
    assert pool(hidden, mask, "first").tolist() == [[0.0], [7.0]]
    assert pool(hidden, mask, "last").tolist() == [[2.0], [8.0]]
    assert pool(hidden, mask, "mean").tolist() == [[1.0], [7.5]]
