"""A byte-level tokenizer with a chat template, a tiny LLaMA beside it, and files of prompts and conversations: what a user starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from published import published
from saved import save_inputs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from fibecfed.config import Config, from_table
from fibecfed.models.tiny import tiny_config

PAD, BOS, START, END = "<pad>", "<s>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As of many models: a newline follows the end token."""


def chat_tokenizer(template: str | None = CHATML, **more: Any) -> PreTrainedTokenizerFast:
    """Each byte is a token, and the word " ls" is one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((PAD, BOS, START, END, *letters, "ls", "Ġls"))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("l", "s"), ("Ġ", "ls")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    names: dict[str, Any] = {"pad_token": PAD, "bos_token": BOS, "eos_token": END, "additional_special_tokens": [START], **more}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.chat_template = template
    return made


def save_chat_model(folder: Path, template: str | None = CHATML, stops: Any = 3) -> None:
    """A random LLaMA with its language-model head."""
    tokenizer = chat_tokenizer(template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = tiny_config("llama", layers=2, hidden=16, vocab=len(tokenizer))
        config.max_position_embeddings, config.eos_token_id = 512, 3
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(20)  # random ones are so small that nothing can be told with them
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=stops, pad_token_id=0).save_pretrained(folder)


SAID = ("list files", "go home", "say hi", "print a file", "count lines", "find it")
DONE = ("ls", "cd ~", "echo hi", "cat f", "wc -l f", "find . -name it")


def rows(count: int = 48) -> list[dict[str, Any]]:
    """Prompts with answers, of three clients."""
    return [{"prompt": SAID[n % 6], "completion": DONE[n % 6] * (1 + n % 2), "client": f"c{n % 3}"} for n in range(count)]


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a conversation of two answers."""
    turns = [("user", row["prompt"]), ("assistant", row["completion"]), ("user", "again"), ("assistant", f"{row['completion']} -a")]
    return {"messages": [{"role": role, "content": content} for role, content in turns], "client": row["client"]}


def write_lines(path: Path, table: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return path


def chat_config(folder: Path, **tables: Any) -> Config:
    """A short run on the model and the rows in `folder`, of FibecFed as published where `tables` name no other method."""
    table: dict[str, Any] = {
        "model": {"name": str(folder / "model"), "rank": 2},
        "data": {"kind": "instruction", "path": str(folder / "rows.jsonl"), "client_column": "client", "max_length": 64},
        "federation": {"clients_per_round": 2, "rounds": 3},
        "training": {"batch_size": 4, "learning_rate": 0.05, "precision": "float32", "device": "cpu"},
        "evaluation": {"every": 3},
    }
    for name, values in tables.items():
        table[name] = {**table.get(name, {}), **values} if isinstance(values, dict) else values
    return from_table({**table, "method": published(table.get("method", {}))})


def save_chats_and_reviews(folder: Path) -> Path:
    """A model that answers with its rows, and a classifier's backbone with its reviews."""
    save_chat_model(folder / "model")
    write_lines(folder / "rows.jsonl", rows())
    return save_inputs(folder)
