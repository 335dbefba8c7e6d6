"""Families beyond the four tiny ones: each adapter is tried out when its task is made, or rejected in a sentence."""

from __future__ import annotations

import pytest
import torch
from adapted import SMALL
from transformers import AutoModelForSequenceClassification, DebertaV2Config, FalconConfig, MistralConfig, PretrainedConfig, Qwen2Config

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.models.heads import UnsupportedModel
from fibecfed.models.own_adapters import add_adapter
from fibecfed.models.transformer_task import TransformerTask

SIZES = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "num_labels": 2, "pad_token_id": 0,
}  # fmt: skip
SHARED_HEADS = {**SIZES, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}


def made(config: PretrainedConfig, kind: str) -> TransformerTask:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    add_adapter(model, SMALL[kind], key=Key(0), sources=torch.randn(2, 3, 16) if kind == "mixed prompt" else None)
    return TransformerTask(model)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("config", [Qwen2Config, MistralConfig])
def test_relatives_of_llama_take_every_adapter(config: type[PretrainedConfig], kind: str) -> None:
    assert any(name.startswith("adapter.") for name in made(config(**SHARED_HEADS), kind).names)


@pytest.mark.parametrize("kind", ["prompt", "generated prompt", "mixed prompt", "late prompt"])
def test_attention_that_counts_distances_over_padding_takes_no_tokens_before_the_text(kind: str) -> None:
    config = DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"])
    with pytest.raises(UserError, match="prompt cannot be used with a DebertaV2Model: its relative positions count padding"):
        made(config, kind)


def test_keys_of_another_shape_than_the_configuration_says_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="FalconForSequenceClassification is not supported with this adapter"):
        made(FalconConfig(**SIZES), "prefix")
