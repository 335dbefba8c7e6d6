"""Whether the adapter that a run leaves writes under plain transformers and PEFT what it writes here, for batches of 1, 2 and 8.

FIBECFED_DATA=FOLDER python benchmarks/same_answers.py runs/instruction/nl2bash/0/lora [CLIENT] [PROMPTS]

Prompts are those of the run's test set, evenly spread, 16 by default; answers have at most 48 tokens. Both in float32.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fibecfed.data.conversations import Message
from fibecfed.models.base_models import find as find_source
from fibecfed.trained.answers import AnsweringModel, load

NEW_TOKENS = 48


def prompts(model: AnsweringModel, number: int) -> list[str]:
    """Of the test set, as the model reads them."""
    path = os.path.join(os.environ["FIBECFED_DATA"], str(model.found.config.data.task), "test.parquet")
    rows = pq.read_table(path).to_pylist()
    rows = [rows[place * len(rows) // number] for place in range(number)]
    assert model.template is not None
    return [model.template.prompt([Message("system", row["system"]), Message("user", row["prompt"])]) for row in rows]


def plain(base: Any, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """What plain transformers and PEFT write behind prompts, in one batch padded on the left; up to the end token."""
    batch = tokenizer(list(texts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        rows = base.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)[:, batch["input_ids"].shape[1] :].tolist()
    end = tokenizer.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def main() -> None:
    """See the module's text."""
    torch.set_num_threads(1)
    client = sys.argv[2] if len(sys.argv) > 2 and not sys.argv[2].isdecimal() else None
    number = next((int(word) for word in sys.argv[2:] if word.isdecimal()), 16)
    model = load(sys.argv[1], client, device="cpu")
    texts = prompts(model, number)
    read = [list(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    source: Any = find_source(model.found.config.model)
    pad = model.tokenizer.pad_token_id
    whole = AutoModelForCausalLM.from_pretrained(source.location, gguf_file=source.gguf_file, pad_token_id=pad, dtype=torch.float32)
    base = PeftModel.from_pretrained(whole, model.found.folder).eval()
    for size in (1, 2, 8):
        batches = range(0, number, size)
        ours = [
            row
            for start in batches
            for row in model.task.generate(
                model.task.params(), read[start : start + size], stop_ids=model.stop_ids, max_new_tokens=NEW_TOKENS
            )
        ]
        theirs = [row for start in batches for row in plain(base, model.tokenizer, texts[start : start + size])]
        same = sum(left == right for left, right in zip(ours, theirs, strict=True))
        ended = sum(row[-1] in model.stop_ids for row in ours)
        print(f"batches of {size}: {same} of {number} answers have the same tokens, {ended} of ours end", flush=True)


if __name__ == "__main__":
    main()
