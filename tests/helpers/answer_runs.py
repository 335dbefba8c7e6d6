"""Finished runs on answers, of a tiny model in which all that stands before a token counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from chats import chat_config, rows, save_chat_model, write_lines
from transformers import AutoModelForCausalLM

from fibecfed import session

FIBECFED = {"kind": "fibecfed", "score_after": 1, "layers": {"importance_clients": 2}}


def save_chats(folder: Path, *, tied: bool = False) -> None:
    """A model and rows to train it on."""
    save_chat_model(folder / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, tie_word_embeddings=tied)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(12 if "layers" in name and weight.ndim == 2 else 1)
    model.config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()
    model.save_pretrained(folder / "model")
    write_lines(folder / "rows.jsonl", rows())


def trained(folder: Path, name: str, **tables: Any) -> Path:
    """A run by its name, made once; FibecFed's, or where tables are given FedAvg's."""
    out = folder / name
    if not out.exists():
        tables = {"method": FIBECFED if not tables else {"kind": "lora"}, **tables}
        session.start(chat_config(folder, **tables), out)
    return out
