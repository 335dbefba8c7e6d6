"""A saved backbone and a file of reviews, and configurations of runs on them: what a user starts from."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch
from published import published
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from fibecfed.config import Config, from_table
from fibecfed.models.tiny import tiny_config

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
GOOD, BAD = ("good", "great", "warm", "witty"), ("bad", "dull", "cold", "stale")
OTHER = ("film", "plot", "cast", "scene", "story", "the", "a", "is")
WORDS = (*SPECIAL, *GOOD, *BAD, *OTHER)


def save_backbone(folder: Path) -> None:
    """A random BERT, and a tokenizer of whole words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(tiny_config("bert", layers=2, hidden=64)).save_pretrained(folder)
    save_tokenizer(folder)


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words, which puts each text between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # pyright: ignore[reportAttributeAccessIssue]
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save_inputs(folder: Path, reviews: int = 120) -> Path:
    """A backbone and so many reviews in `folder`: all that a small run reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_backbone(folder / "backbone")
    write_reviews(folder / "reviews.csv", reviews)
    return folder


def write_reviews(path: Path, count: int = 120) -> None:
    """Reviews of 5 to 8 words, three of which tell whether it is good, under columns of other names than the defaults."""
    draw = torch.Generator().manual_seed(1)

    def one(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=draw))]

    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["review", "verdict"])
        for n in range(count):
            rest, telling = [one(OTHER) for _ in range(2 + n % 4)], GOOD if n % 2 else BAD
            words = [one(telling), *rest[:2], one(telling), *rest[2:], one(telling)]
            rows.writerow([" ".join(words), "good" if n % 2 else "bad"])


def write_task(folder: Path, task: str, train: int = 24, test: int = 4) -> None:
    """Sentences of a task that the package knows, as a folder of tasks holds them."""
    (folder / task).mkdir()
    for part, size in (("train", train), ("test", test)):
        words = [f"{(GOOD, BAD)[n % 2][n % 4]} film {task}" for n in range(size)]
        table = pa.table({"text_a": words, "text_b": pa.nulls(size, pa.string()), "label": [n % 2 for n in range(size)]})
        pyarrow.parquet.write_table(table, folder / task / f"{part}.parquet")


def run_config(folder: Path, **tables: Any) -> Config:
    """A short run on the backbone and the reviews in `folder`, of FibecFed as published where `tables` name no other method."""
    table: dict[str, Any] = {
        "model": {"name": str(folder / "backbone"), "rank": 8},
        "data": {"path": str(folder / "reviews.csv"), "text_column": "review", "label_column": "verdict"},
        "federation": {"clients": 4, "clients_per_round": 2, "rounds": 4},
        "training": {"batch_size": 4, "learning_rate": 0.02, "precision": "float32", "device": "cpu"},
        "evaluation": {"every": 2},
    }
    for name, values in tables.items():
        table[name] = {**table.get(name, {}), **values} if isinstance(values, dict) else values
    return from_table({**table, "method": published(table.get("method", {}))})


def save_language_model(folder: Path, *, masked: bool) -> None:
    """A random BERT with its masked-language-model head, or a random LLaMA with its causal one, and a tokenizer of whole words."""
    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind.from_config(tiny_config("bert" if masked else "llama", layers=2, hidden=64)).save_pretrained(folder)
    words = (*WORDS, "[MASK]", ".", "it", "was")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # pyright: ignore[reportAttributeAccessIssue]
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} | (
        {"mask_token": "[MASK]"} if masked else {}
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def interrupted_at(number: int) -> Callable[[object], None]:
    """Ctrl-C at the so many-th event, counted from 0."""
    seen = iter(range(number + 1))

    def listen(event: object) -> None:
        if next(seen) == number:
            raise KeyboardInterrupt

    return listen


def adapter_files(run: Path) -> dict[str, bytes]:
    """The saved adapters of a run, by path."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("adapter_model.safetensors"))}
