"""Tiny causal language models with LoRA whose examples are answers, and batches of them padded on either side."""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from fibecfed.core.types import Batch
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.answers import Answers
from fibecfed.models.tiny import TARGETS, tiny_config

CausalFamily = Literal["llama", "qwen2", "gpt2"]
CAUSAL: tuple[CausalFamily, ...] = ("llama", "qwen2", "gpt2")


def answer_model(family: CausalFamily, *, vocab: int = 64, hidden: int = 16, layers: int = 2, seed: int = 0) -> Any:
    """A random language model with LoRA, its B drawn too, whose scores are spread enough for losses to differ."""
    if family == "qwen2":
        config: Any = Qwen2Config(
            vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=2 * hidden, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    else:
        config = tiny_config(family, vocab=vocab, hidden=hidden, layers=layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(20)
        targets = TARGETS["llama" if family == "qwen2" else family]
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=targets, fan_in_fan_out=family == "gpt2", init_lora_weights=False
        )
        return get_peft_model(model, lora)


def answer_task(family: CausalFamily = "llama", dtype: torch.dtype = torch.float32, **sizes: int) -> AdaptedModel:
    """`answer_model` as a task."""
    return AdaptedModel(answer_model(family, **sizes).to(dtype), objective=Answers())


def answers(
    lengths: tuple[int, ...] = (9, 6, 12, 7),
    learned: tuple[int, ...] = (3, 1, 7, 4),
    *,
    side: str = "right",
    width: int = 12,
    seed: int = 0,
) -> Batch:
    """Texts whose last tokens are learned, padded on a side with the end token, which is thus learned in one place and not in others."""
    draw = torch.Generator().manual_seed(seed)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for length, number in zip(lengths, learned, strict=True):
        ids = torch.cat([torch.randint(3, 64, (length - 1,), generator=draw), torch.tensor([2])])
        labels = ids.clone()
        labels[: length - number] = -100
        empty = width - length
        parts = [(ids, labels, torch.ones(length, dtype=torch.int64))]
        padding = (torch.full((empty,), 2), torch.full((empty,), -100), torch.zeros(empty, dtype=torch.int64))
        parts = [padding, *parts] if side == "left" else [*parts, padding]
        rows.append(tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True)))  # pyright: ignore[reportArgumentType]
    ids, labels, mask = (torch.stack(column) for column in zip(*rows, strict=True))
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def alone(batch: Batch, row: int) -> dict[str, Tensor]:
    """One text of a batch without its padding, as a batch of one."""
    seen = batch["attention_mask"][row].bool()
    return {name: value[row, seen][None] for name, value in batch.items()}
