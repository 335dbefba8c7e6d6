"""The model card beside an adapter: what it is, how it was made, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.prompt import Prompt


def model_card(
    *,
    who: str,
    base: str,
    files: Mapping[str, str],
    labels: Sequence[str],
    summary: Mapping[str, Any],
    config_toml: str,
    versions: Mapping[str, str],
    adapter: str | None = None,
    prompt: Prompt | None = None,
    beside_weights: bool = False,
) -> str:
    """Markdown with the header that model hubs read.

    Args:
        who: "the global model" or "client 07".
        base: published id of the backbone.
        files: weight file of the backbone -> SHA-256; empty where it was loaded by its id.
        summary: as in summary.json.
        config_toml: the resolved configuration.
        adapter: what an adapter that is not LoRA is called.
        prompt: template and words that it was trained with, if it has no head of its own.
        beside_weights: whether delta.safetensors lies in the folder.
    """
    scores = summary["scores"]
    weights = "\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in files.items()) or "- loaded by its id"
    pooled, of_global = _percent(scores["pooled_personalised"]), _percent(scores["global"])
    kind, more = "AutoModelForSequenceClassification", f", num_labels={len(labels)}"
    if prompt is not None:
        kind, more = ("AutoModelForCausalLM" if prompt.mask_id is None else "AutoModelForMaskedLM"), ""
    what = "with its classification head" if prompt is None else "without a head of its own"
    classes = ", ".join(f"{i} = {label}" for i, label in enumerate(labels))
    return f"""---
base_model: {json.dumps(base)}
library_name: {"fibecfed" if adapter else "peft"}
pipeline_tag: text-classification
tags: [federated-learning, {json.dumps(adapter) if adapter else "lora"}, fibecfed]
---

# Adapter of {" ".join(who.split())}

A {adapter or "LoRA"} adapter {what} for `{base}`, made by federated fine-tuning with fibecfed
(method `{summary["method"]}`): the training texts stayed with their clients.

```python
{(_LOAD_OWN if adapter else _LOAD_LORA).format(base=json.dumps(base), kind=kind, classes=more)}{_DELTA if beside_weights else ""}
```

Classes, in order: {classes}.
{_words(prompt)}
## How it did

Accuracy after the last round, over the whole federation (not this adapter alone): {pooled} pooled over the clients with their
own models, {of_global} for the global model; untrained {_percent(scores["untrained"]["global"])}.

## How it was made

{summary["rounds"]} rounds, {summary["steps"]} optimiser steps, {summary["bytes_up"]} bytes up, {summary["bytes_down"]} bytes down.
Versions: {", ".join(f"{name} {version}" for name, version in versions.items())}.

Weights of the backbone:

{weights}

```toml
{config_toml.rstrip()}
```
"""


_LOAD_LORA = """\
from peft import PeftModel
from transformers import {kind}

base = {kind}.from_pretrained({base}{classes})
model = PeftModel.from_pretrained(base, "THIS FOLDER").eval()"""
_LOAD_OWN = """\
import fibecfed
from transformers import {kind}

base = {kind}.from_pretrained({base}{classes})
task = fibecfed.load_adapter(base, "THIS FOLDER")
# task.predict(task.params(), tokenizer(texts, padding=True, return_tensors="pt"))"""


_DELTA = """

from fibecfed.models.export import add_delta

add_delta(model, "THIS FOLDER")  # once: what this method adds to the frozen weights, beside the adapter"""


def _words(prompt: Prompt | None) -> str:
    if prompt is None:
        return ""
    words, tokens = (", ".join(f"`{one}`" for one in some) for some in (prompt.words, prompt.tokens))
    where = "after the last token" if prompt.mask_id is None else "in the place of the tokenizer's mask token"
    return (
        f"\nThe text is put into the template `{prompt.template}`; the class is the likeliest of the words {words} (tokens {tokens})\n"
        f"{where}. labels.json holds all three.\n"
    )


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f} %"
