"""What `fibecfed check` shows of examples with answers: what is cut or left out, and the exact text that is trained on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .build import Prepared
from .inspection import Section, as_table

_LONGEST = 2000
"""[C] Characters of a text that are shown."""


def answers_sections(prepared: Prepared) -> Iterator[Section]:
    """Nothing where examples have classes, or lie elsewhere."""
    data = prepared.inputs.data
    if not data.cuts:
        return
    header = ("", "prompts cut", "answers cut", "left out", "without an end token", "learned tokens")
    learned = {"train": data.train.targets, "validation": data.validation.targets, "test": data.test.targets}
    rows = [
        (f"{part} file", f"{c.prompts:,}", f"{c.answers:,}", f"{c.dropped:,}", f"{c.without_end:,}", "") for part, c in data.cuts.items()
    ]
    rows += [(part, "", "", "", "", f"{0 if counts is None else int(counts.sum()):,}") for part, counts in learned.items()]
    yield f"Answers, cut to {data.max_length} tokens at the end", as_table(header, rows)
    title = "Three examples as the model reads them, the shortest, the middle and the longest; what is learned stands between « and »"
    yield title, as_table(("", ""), [(f"{number}.", text) for number, text in enumerate(_texts(prepared), start=1)])


def _texts(prepared: Prepared) -> Iterator[str]:
    examples = prepared.inputs.data.train
    order = torch.argsort(examples.lengths, stable=True)
    for place in dict.fromkeys((0, len(order) // 2, len(order) - 1)):
        batch = examples.batch([int(order[place])])
        number = int(batch["attention_mask"].sum())
        ids, learned = batch["input_ids"][0, :number].tolist(), (batch["labels"][0, :number] >= 0).tolist()
        parts, start = list[str](), 0
        for end in range(1, number + 1):
            if end == number or learned[end] != learned[start]:
                text = str(prepared.inputs.tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False))
                parts.append(f"«{text}»" if learned[start] else text)
                start = end
        whole = "".join(parts)
        yield whole if len(whole) <= _LONGEST else f"{whole[:_LONGEST]} ... and {len(whole) - _LONGEST:,} characters more"
