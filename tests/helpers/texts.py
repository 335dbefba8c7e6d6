"""Token ids and pre-trained folders for tests of tiny transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedTokenizerFast

from fibecfed.core.types import Batch
from fibecfed.models.tiny import Family, tiny_config
from fibecfed.models.transformer_task import TransformerTask

PAD = {"bert": 0, "roberta": 1, "gpt2": 0, "llama": 0}
WORDS = ("good", "bad", "film", "plot", "great", "dull", "fine", "poor")


def sentences(lengths: Sequence[int], *, seed: int = 0, vocab: int = 64) -> list[Tensor]:
    """Random token ids from 3 on, below which the special tokens are."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (length,), generator=generator) for length in lengths]


def padded(
    texts: Sequence[Tensor], pad: int, *, total: int | None = None, side: Literal["left", "right"] = "right", num_classes: int = 3
) -> dict[str, Tensor]:
    """A batch of `texts`, each filled up to `total` tokens (default: the longest) on one side."""
    width = total or max(map(len, texts))
    ids = torch.full((len(texts), width), pad)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(width - len(text), width)
        ids[row, where], mask[row, where] = text, 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(len(texts)) % num_classes}


def inputs(batch: Batch) -> dict[str, Tensor]:
    """A batch without its labels, as a model's own call takes it."""
    return {name: value for name, value in batch.items() if name != "labels"}


def noisy(task: TransformerTask, seed: int = 0, scale: float = 0.3) -> dict[str, Tensor]:
    """The task's parameters with noise on all of them, so that they are not those of the module."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in task.params().items()}
    return {name: value + scale * noise[name].to(value.dtype) for name, value in task.params().items()}


def bits(tensors: dict[str, Tensor] | nn.Module) -> dict[str, bytes]:
    """Every tensor's bytes."""
    found = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    return {name: value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for name, value in found.items() if value.ndim}


def save_tokenizer(folder: Path, *, pad: str | None = "[PAD]", **special: str) -> None:
    """A tokenizer of a few words."""
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "[END]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokens = {"unk_token": "[UNK]", **special} | ({"pad_token": pad} if pad else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)


def save_backbone(folder: Path, config: Family | PretrainedConfig, *, seed: int = 0, spread: float = 5.0) -> Path:
    """The random body of a model and a tokenizer, as a folder of a published one; matrices `spread` times as wide as at random, so that
    texts differ in their logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(tiny_config(config) if isinstance(config, str) else config)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.mul_(spread)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
