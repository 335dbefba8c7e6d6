"""Random tiny models of four families with LoRA or another adapter, for tests and benchmarks: nothing is loaded."""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

from ..adapters.options import MixedPromptAdapter
from ..core.options import Options
from ..core.rng import Key
from .heads import head_modules
from .label_words import LabelWords
from .own_adapters import add_adapter
from .transformer_task import TransformerTask

Family = Literal["bert", "roberta", "gpt2", "llama"]
FAMILIES: tuple[Family, ...] = ("bert", "roberta", "gpt2", "llama")

TARGETS = {"bert": ["query", "value"], "roberta": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}


def tiny_config(
    family: Family, *, num_classes: int = 2, layers: int = 2, hidden: int = 16, heads: int = 2, vocab: int = 64
) -> PretrainedConfig:
    """A configuration without dropout; token 0 is padding (1 for RoBERTa)."""
    sizes: dict[str, Any] = {"vocab_size": vocab, "num_labels": num_classes}
    encoder: dict[str, Any] = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 2 * hidden,
        "max_position_embeddings": 130, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if family == "bert":
        return BertConfig(pad_token_id=0, **encoder, **sizes)
    if family == "roberta":
        return RobertaConfig(pad_token_id=1, **encoder, **sizes)
    if family == "gpt2":
        return GPT2Config(
            n_embd=hidden, n_layer=layers, n_head=heads, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes,
        )  # fmt: skip
    return LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=2 * hidden, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes,
    )  # fmt: skip


def tiny_words(family: Family, num_classes: int = 2) -> LabelWords:
    """Tokens 8, 9, ... as words, and token 4 as the mask of the families that have one."""
    return LabelWords(tuple(range(8, 8 + num_classes)), 4 if family in ("bert", "roberta") else None)


def tiny_model(
    family: Family, *, rank: int = 2, alpha: int = 4, seed: int = 0, random_b: bool = True, words: LabelWords | None = None, **sizes: int
) -> PeftModel:
    """A random classifier with LoRA; with `words` a random language model. `random_b` draws LoRA's B too, so that no gradient is zero by
    construction."""
    kind = AutoModelForSequenceClassification if words is None else words.model_class
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(tiny_config(family, **sizes))
        lora = LoraConfig(
            task_type="SEQ_CLS" if words is None else "CAUSAL_LM" if words.mask_id is None else None,
            r=rank, lora_alpha=alpha, target_modules=TARGETS[family], modules_to_save=head_modules(model) if words is None else None,
            fan_in_fan_out=family == "gpt2", init_lora_weights=not random_b,
        )  # fmt: skip
        return get_peft_model(model, lora)


def tiny_adapted(family: Family, adapter: Options, *, sources: Tensor | None = None, seed: int = 0, **sizes: int) -> nn.Module:
    """A random classifier with one of our adapters, and its head trained. A mixed prompt's `sources` are random unless given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(tiny_config(family, **sizes))
        if isinstance(adapter, MixedPromptAdapter) and sources is None:
            sources = torch.randn(2, adapter.num_tokens, model.config.hidden_size)
    add_adapter(model, adapter, key=Key(seed).fold("adapter"), sources=sources)
    return model


def tiny_task(
    family: Family,
    *,
    dtype: torch.dtype = torch.float32,
    rank: int = 2,
    seed: int = 0,
    random_b: bool = True,
    words: LabelWords | None = None,
    adapter: Options | None = None,
    sources: Tensor | None = None,
    **sizes: int,
) -> TransformerTask:
    """`tiny_model`, or `tiny_adapted` where an adapter is asked for, as a task, in the dtype asked for."""
    if adapter is not None:
        return TransformerTask(tiny_adapted(family, adapter, sources=sources, seed=seed, **sizes).to(dtype))
    model = tiny_model(family, rank=rank, seed=seed, random_b=random_b, words=words, **sizes)
    return TransformerTask(model.to(dtype), objective=words)
