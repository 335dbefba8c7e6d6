"""The code on a model card: from an adapter's folder and its base model to the label of a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .data.prompt import Prompt


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on.

    Attributes:
        published: the id it is published under; of a local folder or file its name.
        location: what `from_pretrained` is given: a hub id or the name of a folder; of a packaged model its short name.
        packaged: whether a Python package carries it.
        local: whether it was a folder or file of the user's own.
        gguf_file: name of its weight file, if that is GGUF.
        revision: commit or tag of a hub id, where it is known.
        quantization: `model.quantization` of the run.
    """

    published: str
    location: str
    packaged: bool = False
    local: bool = False
    gguf_file: str | None = None
    revision: str | None = None
    quantization: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a text becomes the input of the model.

    Attributes:
        pair: whether the model reads two texts.
        separator: what the second text begins with, since the tokenizer puts nothing between the two.
        prompt: template and words, if the model has no head of its own.
    """

    pair: bool = False
    separator: str = ""
    prompt: Prompt | None = None


def snippet(base: Base, reading: Reading, *, own_adapter: bool = False, beside_weights: bool = False) -> str:
    """Python that ends in the label of a text. It is run in the adapter's folder.

    Args:
        own_adapter: the adapter is one that PEFT cannot load.
        beside_weights: delta.safetensors lies in the folder.
    """
    prompt = reading.prompt
    kind = "AutoModelForSequenceClassification"
    if prompt is not None:
        kind = "AutoModelForCausalLM" if prompt.mask_id is None else "AutoModelForMaskedLM"
    imports = ["import json", "", "import torch"]
    if base.packaged or own_adapter:
        imports.insert(2, "import fibecfed")
    imports += [] if own_adapter else ["from peft import PeftModel"]
    imports += [f"from transformers import {kind}, AutoTokenizer"]
    imports += ["from fibecfed.models.export import add_delta"] if beside_weights else []
    load = [
        'folder = "."  # of this card',
        'about = json.load(open(f"{folder}/labels.json", encoding="utf-8"))',
        'tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")',
        f"base = {kind}.from_pretrained(",
        *(f"    {line}" for line in arguments(base, of_classes=prompt is None)),
        ")",
    ]
    load += ["task = fibecfed.load_adapter(base, folder)"] if own_adapter else ["model = PeftModel.from_pretrained(base, folder).eval()"]
    load += ["add_delta(model, folder)  # once: what this method adds to the frozen weights, beside the adapter"] if beside_weights else []
    return "\n".join([*imports, "", *load, "", *_ask(reading, own_adapter)])


def arguments(base: Base, *, of_classes: bool) -> list[str]:
    """Of `from_pretrained`, a line each; `of_classes`: with a new classification head."""
    if base.packaged:
        where = f"fibecfed.model_folder({json.dumps(base.location)}),"
    else:
        note = f"  # the folder {'of the file' if base.gguf_file else 'that the adapter was trained on'}; its checksums are below"
        where = f"{json.dumps(base.location, ensure_ascii=False)}," + (note if base.local else "")
    lines = [where]
    if base.gguf_file:
        lines.append(f"gguf_file={json.dumps(base.gguf_file, ensure_ascii=False)},")
    if base.revision:
        lines.append(f"revision={json.dumps(base.revision)},")
    if of_classes:
        lines += ['num_labels=len(about["labels"]),', 'id2label=about["id2label"],', 'label2id=about["label2id"],']
    return [*lines, "pad_token_id=tokenizer.pad_token_id,", 'dtype="float32",']


def _ask(reading: Reading, own_adapter: bool) -> list[str]:
    if reading.prompt is not None:
        return _ask_for_a_word(reading.pair, reading.separator, masked=reading.prompt.mask_id is not None)
    texts = ['["a text"]']
    if reading.pair:
        texts.append(f"[{_second(reading.separator)}]")
    cut = 'truncation="longest_first", max_length=about["max_length"], padding=True, return_tensors="pt"'
    score = "task.logits(task.params(), dict(batch))" if own_adapter else "model(**batch).logits"
    return [
        f"batch = tokenizer({', '.join(texts)}, {cut})",
        "with torch.no_grad():",
        f"    logits = {score}",
        'print([about["labels"][i] for i in logits.argmax(-1)])',
    ]


def _ask_for_a_word(pair: bool, separator: str, *, masked: bool) -> list[str]:
    names = ["{a}", "{b}"] if pair else ["{x}"]
    second = _second(separator)
    texts = ", ".join([f'"{names[0]}": "a text"', *([f'"{names[1]}": {second}'] if pair else [])])
    mask = "str(tokenizer.mask_token)" if masked else '""'
    tokens = ['    return tokenizer(text, verbose=False)["input_ids"]']
    if not masked:
        tokens = [
            "    encoded = tokenizer(text, return_special_tokens_mask=True, verbose=False)",
            '    last = max(i for i, added in enumerate(encoded["special_tokens_mask"]) if not added)',
            '    return encoded["input_ids"][: last + 1]  # nothing follows the template',
        ]
    place = 'int((batch["input_ids"][0] == tokenizer.mask_token_id).nonzero())' if masked else "-1"
    return [
        "def tokens(text):",
        *tokens,
        "",
        "def ends(text):  # of its tokens",
        "    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)",
        '    return [end for _, end in encoded["offset_mapping"]]',
        "",
        f"texts = {{{texts}}}",
        f'template = about["template"].replace("<mask>", {mask}).rstrip(" ")',
        "filled = template",
        "for name in texts:",
        '    filled = filled.replace(name, "")',
        'room = about["max_length"] - len(tokens(filled))  # only the texts are cut, the longer one first',
        "kept = {name: ends(text) for name, text in texts.items()}",
        "while sum(map(len, kept.values())) > room:",
        "    max(reversed(kept.values()), key=len).pop()",
        "filled = template",
        "for name, text in texts.items():",
        "    filled = filled.replace(name, text[: kept[name][-1]])",
        'batch = {"input_ids": torch.tensor([tokens(filled)])}',
        f"place = {place}",
        "with torch.no_grad():",
        "    logits = model(**batch).logits[0, place]",
        'words = tokenizer.convert_tokens_to_ids(about["tokens"])',
        'print(about["labels"][logits[words].argmax()])',
    ]


def about_labels(labels: Any, max_length: int, reading: Reading) -> dict[str, Any]:
    """labels.json: what somebody needs to use an adapter, beside its tensors and the tokenizer."""
    prompt = {} if reading.prompt is None else reading.prompt.about(labels)
    return {
        "labels": list(labels),
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
        "max_length": max_length,
        "pair": reading.pair,
        "separator": reading.separator,
        **{name: value for name, value in prompt.items() if name != "labels"},
    }


def merged_snippet(reading: Reading, max_length: int) -> str:
    """Python that ends in the label of a text, by a merged model. It is run in the model's folder."""
    asked = json.dumps("a text")
    if reading.pair:
        asked = f'{{"text": "a text", "text_pair": {_second(reading.separator)}}}'
    return "\n".join(
        [
            "from transformers import pipeline",
            "",
            f'classify = pipeline("text-classification", ".", truncation=True, max_length={max_length})',
            f"print(classify({asked}))",
        ]
    )


def onnx_snippet(reading: Reading) -> str:
    """As `merged_snippet`, by ONNX, without torch."""
    texts = f'["a text"], [{_second(reading.separator)}]' if reading.pair else '["a text"]'
    return "\n".join(
        [
            "import json",
            "",
            "import onnxruntime",
            "from transformers import AutoTokenizer",
            "",
            'about = json.load(open("labels.json", encoding="utf-8"))',
            'tokenizer = AutoTokenizer.from_pretrained(".", padding_side="right")',
            'session = onnxruntime.InferenceSession("model.onnx")',
            "",
            f'batch = tokenizer({texts}, truncation=True, max_length=about["max_length"], padding=True, return_tensors="np")',
            "inputs = {one.name: batch[one.name] for one in session.get_inputs()}",
            '[logits] = session.run(["logits"], inputs)',
            'print([about["labels"][i] for i in logits.argmax(-1)])',
        ]
    )


def _second(separator: str) -> str:
    return f"{json.dumps(separator)} + {json.dumps('its second text')}" if separator else json.dumps("its second text")
