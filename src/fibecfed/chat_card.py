"""The model card beside an adapter that answers: what it was trained on, how to use it, how it did, how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .core.metrics import METRICS, Metric
from .engine.baselines import metric_of, remarks
from .model_card import SavedAdapter, at_revision, other_weights, steps_of
from .privacy.statement import section
from .snippet import Base, arguments


@dataclass(frozen=True)
class Chat:
    """How an adapter that answers is asked.

    Attributes:
        template: whether prompts are put into the tokenizer's chat template; else they are read as they are.
        system: the system message of every conversation that has none of its own.
        max_length: tokens of an example that were trained on, at most.
        loss_on: "answers" or "all".
        objective: what a step minimised: the mean over "token" or "example".
    """

    template: bool
    system: str | None
    max_length: int
    loss_on: str
    objective: str


def chat_card(
    adapter: SavedAdapter,
    base: Base,
    chat: Chat,
    *,
    files: Mapping[str, str],
    summary: Mapping[str, Any],
    settings: str,
    versions: Mapping[str, str],
) -> str:
    """Markdown with the header that model hubs read; arguments as for `model_card.model_card`."""
    who = "the global model" if adapter.client is None else f"client {' '.join(adapter.client.split())}"
    weights = "\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in files.items()) or f"- loaded by its id{at_revision(base)}"
    learned = "the answers" if chat.loss_on == "answers" else "the whole text"
    what = "LoRA adapter" if adapter.own_kind is None else f"{adapter.own_kind} (an adapter that fibecfed loads)"
    asked = "in the chat template that lies beside it" if chat.template else "as it is, without a chat template"
    return f"""---
base_model: {json.dumps(base.published)}
library_name: {"peft" if adapter.own_kind is None else "fibecfed"}
pipeline_tag: text-generation
tags: [text-generation, federated-learning{", lora" if adapter.own_kind is None else ""}, fibecfed]
---

# Adapter of {who}

A {what} for `{base.published}` that answers prompts, made by federated fine-tuning with fibecfed (method `{summary["method"]}`): the
training texts stayed with their clients. It was trained on {learned} of examples of at most {chat.max_length} tokens, on the mean loss of
a step's {chat.objective}s, and is asked {asked}.
{other_weights(base)}
## Use it

In this folder{", with the base model's folder in it," if base.local else ""} where torch, transformers and peft are installed\
{", and fibecfed" if base.packaged or adapter.beside_weights or adapter.own_kind else ""}:

```python
{_snippet(base, chat, own_adapter=adapter.own_kind is not None, beside_weights=adapter.beside_weights)}
```

## How it did

{_scores(adapter, summary)}
{section(summary.get("privacy"), adapter.client)}
## How it was made

{summary["rounds"]} rounds with {summary["clients_that_took_part"]} clients; the models of round {summary["saved"]["rounds"]} are saved. \
{steps_of(summary)}{summary["bytes_up"]:,} bytes up, {summary["bytes_down"]:,} bytes down.
Versions: {", ".join(f"{name} {version}" for name, version in versions.items())}.

Weights of the base model:

{weights}

Settings; what is not named has its default:

```toml
{settings.rstrip()}
```
"""


def _snippet(base: Base, chat: Chat, *, own_adapter: bool, beside_weights: bool) -> str:
    """Python that ends in an answer. It is run in the adapter's folder."""
    imports = ["import torch", *(["import fibecfed"] if base.packaged else []), *([] if own_adapter else ["from peft import PeftModel"])]
    imports += [f"from transformers import AutoModelForCausalLM, AutoTokenizer{', GenerationConfig' if own_adapter else ''}"]
    imports += ["from fibecfed.models.export import add_delta"] if beside_weights else []
    imports += ["from fibecfed.models.own_adapters import load_answers"] if own_adapter else []
    load = [
        'folder = "."  # of this card',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "base = AutoModelForCausalLM.from_pretrained(",
        *(f"    {line}" for line in arguments(base, of_classes=False)),
        ")",
        "task = load_answers(base, folder)" if own_adapter else "model = PeftModel.from_pretrained(base, folder).eval()",
    ]
    load += ["add_delta(model, folder)  # once: what this method adds to the frozen weights, beside the adapter"] if beside_weights else []
    if chat.template:
        system = [] if chat.system is None else [f'    {{"role": "system", "content": {json.dumps(chat.system, ensure_ascii=False)}}},']
        ask = ["messages = [", *system, '    {"role": "user", "content": "a prompt"},', "]"]
        ask += ['batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")']
    else:
        ask = ['batch = tokenizer("a prompt", return_tensors="pt")']
    if own_adapter:
        ask += [
            "stops = GenerationConfig.from_pretrained(folder).eos_token_id",
            'prompts = batch["input_ids"].tolist()',
            "(tokens,) = task.generate(task.params(), prompts, stop_ids=stops, max_new_tokens=256)",
            "print(tokenizer.decode(tokens, skip_special_tokens=True))",
        ]
    else:
        ask += [
            "with torch.no_grad():",
            "    tokens = model.generate(**batch, do_sample=False, max_new_tokens=256)",
            'print(tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    return "\n".join([*imports, "", *load, "", *ask])


def _scores(adapter: SavedAdapter, summary: Mapping[str, Any]) -> str:
    saved, own, metric = summary["saved"], summary.get("client") or {}, metric_of(summary)
    rows = [("", metric.title)]
    if adapter.client is not None and own.get("score") is not None:
        rows.append((f"this adapter, on this client's {own['test_examples']} test examples", _cell(own["score"], metric)))
    rows.append(("all clients, each with its own model", _cell(saved["pooled_personalised"], metric)))
    rows.append(("the global model" if adapter.client else "this adapter, on all test examples", _cell(saved["global"], metric)))
    rows.append(("before training", _cell(summary["scores"]["untrained"]["global"], metric)))
    head, *body = [f"| {name} | {score} |" for name, score in rows]
    notes = remarks({**summary, "clients": {}})  # other clients are nobody's business
    return "\n".join([head, "|---|---|", *body, *(["", " ".join(notes)] if notes else [])])


def _cell(value: float | None, metric: Metric = METRICS["nll"]) -> str:
    return "not measured" if value is None else metric.text(value)
