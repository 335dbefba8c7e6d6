"""The model card beside an adapter: what it is, how it was made, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def model_card(
    *, who: str, base: str, files: Mapping[str, str], labels: Sequence[str], summary: Mapping[str, Any], config_toml: str, versions: Mapping[str, str]
) -> str:
    """Markdown with the header that model hubs read.

    Args:
        who: "the global model" or "client 07".
        files: weight file of the backbone -> SHA-256.
    """
    scores = summary["scores"]
    weights = "\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in files.items()) or "- loaded by its id"
    return f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-classification
tags: [federated-learning, lora, fibecfed]
---

# Adapter of {who}

A LoRA adapter with its classification head for `{base}`, made by federated fine-tuning with fibecfed
(method `{summary["method"]}`): the training texts stayed with their clients.

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={len(labels)})
model = PeftModel.from_pretrained(base, "THIS FOLDER").eval()
```

Classes, in order: {", ".join(f"{i} = {label}" for i, label in enumerate(labels))}.

## How it did

Accuracy after the last round, over the whole federation (not this adapter alone): {100 * scores["pooled_personalised"]:.1f} % pooled over the
clients with their own models, {100 * scores["global"]:.1f} % for the global model; untrained {100 * scores["untrained"]["global"]:.1f} %.

## How it was made

{summary["rounds"]} rounds, {summary["steps"]} optimiser steps, {summary["bytes_up"]} bytes up, {summary["bytes_down"]} bytes down.
Versions: {", ".join(f"{name} {version}" for name, version in versions.items())}.

Weights of the backbone:

{weights}

```toml
{config_toml.rstrip()}
```
"""
