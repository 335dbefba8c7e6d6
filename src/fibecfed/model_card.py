"""The model card beside an adapter: what it is, how to use it, how it did, how it was made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .core.metrics import Metric
from .data.prompt import Prompt
from .engine.baselines import metric_of, no_better, remarks
from .privacy.statement import section
from .snippet import Base, Reading, snippet


@dataclass(frozen=True)
class SavedAdapter:
    """What lies in the folder.

    Attributes:
        client: whose it is; None: the global one.
        own_kind: what an adapter that is not LoRA is called.
        beside_weights: whether delta.safetensors lies there.
    """

    client: str | None
    own_kind: str | None = None
    beside_weights: bool = False


def model_card(
    adapter: SavedAdapter,
    base: Base,
    reading: Reading,
    *,
    files: Mapping[str, str],
    labels: Sequence[str],
    max_length: int,
    summary: Mapping[str, Any],
    settings: str,
    versions: Mapping[str, str],
) -> str:
    """Markdown with the header that model hubs read. It names no licence and no language: those of the texts are not known here.

    Args:
        files: weight file of the base model -> SHA-256; empty where it was loaded by its id.
        summary: as in summary.json, with the client's own scores under `client`.
        settings: what is worth reading of the configuration, as TOML.
    """
    kind, prompt = adapter.own_kind or "LoRA", reading.prompt
    who = "the global model" if adapter.client is None else f"client {' '.join(adapter.client.split())}"
    what = "with its classification head" if prompt is None else "without a head of its own"
    weights = "\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in files.items()) or f"- loaded by its id{at_revision(base)}"
    code = snippet(base, reading, own_adapter=adapter.own_kind is not None, beside_weights=adapter.beside_weights)
    classes = ", ".join(f"{i} = {label}" for i, label in enumerate(labels))
    return f"""---
base_model: {json.dumps(base.published)}
library_name: {"fibecfed" if adapter.own_kind else "peft"}
pipeline_tag: text-classification
tags: [text-classification, federated-learning, {json.dumps(adapter.own_kind) if adapter.own_kind else "lora"}, fibecfed]
metrics: [{", ".join(_hub_metrics(summary))}]
---

# Adapter of {who}

A {kind} adapter {what} for `{base.published}`, made by federated fine-tuning with fibecfed
(method `{summary["method"]}`): the training texts stayed with their clients. It takes one of {len(labels)} classes for
{"two texts" if reading.pair else "a text"}, of which it reads at most {max_length} tokens.
{other_weights(base)}
## Use it

In this folder{", with the base model's folder in it," if base.local else ""} where torch, transformers and peft are installed\
{", and fibecfed" if base.packaged or adapter.own_kind or adapter.beside_weights else ""}:

```python
{code}
```

Classes, in order: {classes}. The tokenizer lies in the folder; labels.json holds the classes' names and the length in tokens.
{_words(prompt)}
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


def steps_of(summary: Mapping[str, Any]) -> str:
    """Optimiser steps of a run, where they are known: a private run does not tell, nor one of sums."""
    return "" if summary.keys() & {"privacy", "secure_aggregation"} else f"{summary['steps']:,} optimiser steps, "


def at_revision(base: Base) -> str:
    """The revision of a base model, behind its name; nothing where it has none."""
    return f", revision `{base.revision}`" if base.revision else ""


def other_weights(base: Base) -> str:
    """What has to be said of weights from a file of its own, and of quantised ones; nothing of others."""
    found = ""
    if base.gguf_file is not None:
        found = (
            f"\nThe adapter was trained on the weights in `{base.gguf_file}`, expanded to float32. They are not those of "
            "the model's repository with full precision, under which the adapter computes something else.\n"
        )
    if base.quantization is not None:
        found += (
            f"\nIn training the base model's linear maps were quantised ({base.quantization}, by bitsandbytes). The code below loads them "
            "in full precision, where the scores differ a little; merge the adapter into weights of full precision alone.\n"
        )
    return found


def _hub_metrics(summary: Mapping[str, Any]) -> list[str]:
    """What the hub calls the metric of the card's table, where it has a name for it."""
    name = metric_of(summary).name.partition(":")[0].removeprefix("macro_")
    return [{"matthews": "matthews_correlation"}.get(name, name)] if name not in ("loss", "calibration_error") else []


def _scores(adapter: SavedAdapter, summary: Mapping[str, Any]) -> str:
    saved, own, metric = summary["saved"], summary.get("client") or {}, metric_of(summary)
    rows = [("", metric.title, "always the most frequent class")]
    if adapter.client is not None and own.get("score") is not None:
        rows.append((f"this adapter, on this client's {own['test_examples']} test examples", own["score"], own["majority"]))
    rows.append(("all clients, each with its own model", saved["pooled_personalised"], saved["own_majority"]))
    rows.append(("the global model" if adapter.client else "this adapter, on all test examples", saved["global"], saved["majority"]))
    rows.append(("before training", summary["scores"]["untrained"]["global"], saved["majority"]))
    head, *body = [f"| {name} | {_cell(score, metric)} | {_cell(simple, metric)} |" for name, score, simple in rows]
    notes = remarks({**summary, "clients": {}})  # other clients are nobody's business
    if adapter.client is not None and no_better(own.get("score"), own.get("majority"), metric):
        notes.insert(0, "On this client's test examples the adapter is no better than always predicting the most frequent class.")
    return "\n".join([head, "|---|---|---|", *body, *(["", " ".join(notes)] if notes else [])])


def _cell(value: float | str | None, metric: Metric) -> str:
    return value if isinstance(value, str) else "not measured" if value is None else metric.text(value)


def _words(prompt: Prompt | None) -> str:
    if prompt is None:
        return ""
    words, tokens = (", ".join(f"`{one}`" for one in some) for some in (prompt.words, prompt.tokens))
    where = "after the last token" if prompt.mask_id is None else "in the place of the tokenizer's mask token"
    return (
        f"\nThe text is put into the template `{prompt.template}`; the class is the most probable of the words {words} (tokens {tokens})\n"
        f"{where}. labels.json holds all three.\n"
    )


_USE, _AFTER = "\n## Use it\n", "\n## How it did\n"


_LABELS = "labels.json holds the classes' names and the length in tokens"


def merged_card(card: str, code: str, *, onnx: bool, beside: str = _LABELS) -> str:
    """The card of the merged model, from that of its adapter: how it is used is another thing, how it was made and how it did are not.

    Args:
        card: of the adapter; "" where it has none.
        code: that uses the model, in its folder.
        onnx: whether it is an ONNX file, and not weights for transformers.
        beside: what lies in its folder, as a clause.
    """
    what = "ONNX model" if onnx else "Merged model"
    before, _, rest = card.partition(_USE)
    _, found, after = rest.partition(_AFTER)
    if not found:  # somebody wrote it anew
        before, after = f"# {what}\n", card
    before = re.sub(r"(?m)^library_name: .*$", f"library_name: {'onnx' if onnx else 'transformers'}", before, count=1)
    before = before.replace("# Adapter of ", f"# {what} of ", 1)
    weights = r"\nThe weights of `\2` with a \1 adapter merged into them, and their classification head,"
    before = re.sub(r"\nA (\S+) adapter with its classification head for `([^`]*)`,", weights, before, count=1)
    before = re.sub(
        r"\nA LoRA adapter for `([^`]*)` that", r"\nThe weights of `\1` with a LoRA adapter merged into them that", before, count=1
    )
    need = "onnxruntime and transformers" if onnx else "torch and transformers"
    use = f"In this folder, where {need} are installed; {beside}:"
    return f"{before}{_USE}\n{use}\n\n```python\n{code}\n```\n{found}{after}"
