"""Texts as tokens, by a Hugging Face tokenizer: cut to a length, put into a template, and known where each token comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from .names import shown
from .prompt import Filled, Prompt, encode
from .sources import TextSplit
from .text import TokenTable, longest_first, offsets_of

SEPARATOR = "\n"
"""Stands between the two texts of a pair where the tokenizer has nothing for it [C]."""

_CHUNK = 8192  # examples handed to the tokenizer at once: bounds the memory of its Python lists


def tokenise(tokenizer: Any, split: TextSplit, max_length: int, prompt: Prompt | None = None) -> TokenTable:
    """Tokenise a split with a Hugging Face tokenizer, without padding; what is longer than `max_length` tokens, special ones included,
    is truncated, of two texts the longer one first. Where the tokenizer puts nothing between two texts, as those of many decoders do, the
    second begins with `SEPARATOR`.

    Args:
        prompt: a template that the texts are put into, as `prompt.encode` says: one text to the model, whose template is never cut.

    Raises:
        UserError: `max_length` beyond what the tokenizer's model takes or without room for a text beside the template, or a text that
            becomes no token at all.
    """
    most = getattr(tokenizer, "model_max_length", max_length)
    if max_length > most:
        raise UserError(f"data.max_length: got {max_length}, expected at most {most}, the longest input of this model.")
    has_types = "token_type_ids" in tokenizer.model_input_names
    between = pair_separator(tokenizer) if split.pairs is not None and prompt is None else ""
    pieces, types, segments, lengths, whole = [], [], [], [], []
    for start in range(0, len(split), _CHUNK):
        part = slice(start, start + _CHUNK)
        texts, pairs = split.texts[part], None if split.pairs is None else [between + pair for pair in split.pairs[part]]
        if prompt is None:
            encoded = tokenizer(
                texts,
                pairs,
                truncation="longest_first",
                max_length=max_length,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=has_types,
            )
            whole += _whole_lengths(tokenizer, texts, pairs, list(map(len, encoded["input_ids"])), max_length)
        else:
            filled = encode(prompt, tokenizer, texts, pairs)
            encoded = _in_template(filled, max_length)
            whole += [len(example.ids) for example in filled]
        pieces.append(torch.tensor([token for example in encoded["input_ids"] for token in example], dtype=torch.int32))
        lengths.extend(map(len, encoded["input_ids"]))
        segments.append(_segments(encoded, tokenizer))
        if has_types:
            types.append(torch.tensor([kind for example in encoded["token_type_ids"] for kind in example], dtype=torch.uint8))
    if 0 in lengths:
        row = lengths.index(0)
        raise UserError(f"the text {shown(split.texts[row])} has no token with this tokenizer; expected at least one. Remove the row.")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TokenTable(
        ids=torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int32),
        offsets=offsets_of(torch.tensor(lengths, dtype=torch.int64)),
        labels=split.labels,
        token_type_ids=(torch.cat(types) if types else torch.zeros(0, dtype=torch.uint8)) if has_types else None,
        pad_id=0 if pad_id is None else int(pad_id),
        special_ids=torch.tensor(sorted(_special_ids(tokenizer)), dtype=torch.int32),
        segments=torch.cat(segments) if segments else torch.zeros(0, dtype=torch.uint8),
        whole_lengths=torch.tensor(whole, dtype=torch.int64),
        digests=_digests(split),
        units=None if split.units is None else _numbers(split.units),
        unknown_id=_unknown_id(tokenizer),
        cut_side="right" if prompt is not None else getattr(tokenizer, "truncation_side", "right"),
    )


def _whole_lengths(tokenizer: Any, texts: list[str], pairs: list[str] | None, lengths: list[int], max_length: int) -> list[int]:
    """Tokens of each example before truncation. Only those as long as is allowed can have been truncated, and are tokenised once more."""
    full = [row for row, length in enumerate(lengths) if length >= max_length]
    if full:
        again = tokenizer(
            [texts[row] for row in full],
            None if pairs is None else [pairs[row] for row in full],
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # else it warns of texts that are longer than the model takes
        )
        for row, ids in zip(full, again["input_ids"], strict=True):
            lengths[row] = len(ids)
    return lengths


def _digests(split: TextSplit) -> Tensor:
    """64 bits of a hash of each example's texts: of a million examples two that differ have the same with a chance of 1 in 10^7."""
    pairs = split.pairs or [""] * len(split)
    found = [
        int.from_bytes(hashlib.blake2b(f"{len(text)} {text}{pair}".encode(errors="surrogatepass"), digest_size=8).digest(), signed=True)
        for text, pair in zip(split.texts, pairs, strict=True)
    ]
    return torch.tensor(found, dtype=torch.int64)


def _numbers(names: Sequence[str]) -> Tensor:
    """The place of each name among those that there are, int64."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([places[name] for name in names], dtype=torch.int64)


def _unknown_id(tokenizer: Any) -> int | None:
    unknown = getattr(tokenizer, "unk_token_id", None)
    return None if unknown in _special_ids(tokenizer) else unknown


def _in_template(examples: Sequence[Filled], max_length: int) -> dict[str, list[list[int]]]:
    """A tokenizer's answer for filled-in templates, whose texts are cut and nothing else."""
    counts = torch.tensor([[example.segments.count(part) for part in (0, 1, 2)] for example in examples]).view(-1, 3)
    template = int(counts[:, 0].max()) if len(examples) else 0
    if template >= max_length:
        raise UserError(f"data.max_length: got {max_length}, but the template alone takes {template} tokens; expected more; raise it")
    kept = torch.stack(longest_first(counts[:, 1], counts[:, 2], max_length - counts[:, 0]), dim=1).tolist()
    ids, segments = [], []
    for example, room in zip(examples, kept, strict=True):
        left = {0: len(example.ids), 1: room[0], 2: room[1]}
        both = []
        for token, part in zip(example.ids, example.segments, strict=True):
            left[part] -= 1
            if left[part] >= 0:
                both.append((token, part))
        ids.append([token for token, _ in both])
        segments.append([part for _, part in both])
    return {"input_ids": ids, "segments": segments, "token_type_ids": [[0] * len(row) for row in ids]}


def _segments(encoded: Any, tokenizer: Any) -> Tensor:
    """Where each token of a tokenizer's answer comes from: 0 added, 1 first text, 2 second text."""
    if "segments" in encoded:
        return torch.tensor([text for example in encoded["segments"] for text in example], dtype=torch.uint8)
    if getattr(encoded, "encodings", None) is not None:
        found = [0 if text is None else text + 1 for example in encoded.encodings for text in example.sequence_ids]
        return torch.tensor(found, dtype=torch.uint8)
    # a tokenizer written in Python does not say: a run of words after added tokens is the next text
    added = _special_ids(tokenizer)
    found = []
    for ids in encoded["input_ids"]:
        text, before = 0, 0
        for token in ids:
            here = int(token not in added)
            text += here > before
            before = here
            found.append(min(text, 2) * here)
    return torch.tensor(found, dtype=torch.uint8)


def pair_separator(tokenizer: Any) -> str:
    """What the second text of a pair begins with: nothing, where the tokenizer itself puts something between the two."""
    return SEPARATOR if _runs_pairs_together(tokenizer) else ""


def _runs_pairs_together(tokenizer: Any) -> bool:
    """Whether nothing stands between two texts of a pair."""
    one, both = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a", "a")["input_ids"]
    return any(both[start : start + 2 * len(one)] == one + one for start in range(len(both)))


def _special_ids(tokenizer: Any) -> set[int]:
    """Tokens that are added to texts. The one of unknown words stands for a word, unless the tokenizer takes it for something else too."""
    other = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "sep", "pad", "cls", "mask")}
    return set(tokenizer.all_special_ids) - ({getattr(tokenizer, "unk_token_id", None)} - other)
