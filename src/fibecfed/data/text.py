"""Text as tokens: every example of a split tokenised once into flat memory, and views of it that make batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.types import Batch
from .names import shown
from .prompt import Filled, Prompt, encode
from .sources import TextSplit

PAD_MULTIPLE = 8
"""Batches are padded to multiples of it: few different shapes, so that the kernels prepared for one serve many batches. On a CPU a
training step took 12 % less time so, and the process a quarter less memory, than with batches padded to their longest example."""

SEPARATOR = "\n"
"""Stands between the two texts of a pair where the tokenizer has nothing for it [C]."""

_CHUNK = 8192  # examples handed to the tokenizer at once: bounds the memory of its Python lists


@dataclass(frozen=True)
class TokenTable:
    """Examples of different lengths end to end. Example i has the tokens ids[offsets[i] : offsets[i + 1]].

    Attributes:
        ids: token ids of all examples, int32, shape (tokens,).
        offsets: int64, shape (examples + 1,), ascending from 0.
        labels: int64, shape (examples,); None where examples have no classes.
        token_type_ids: which of two texts a token belongs to, uint8, shape (tokens,); None for a tokenizer without them.
        pad_id: fills up the shorter examples of a batch, where the attention mask is 0.
        special_ids: ids of [CLS], [SEP] and their like, which are not counted as words, int32.
        segments: where a token comes from, uint8, shape (tokens,): 0 = added by the tokenizer or a template, 1 = the first text, 2 = the
            second. None: every token is one of the first text.
        whole_lengths: tokens of each example before it was truncated, int64, shape (examples,). None: none was truncated.
        digests: a hash of each example's text or texts, int64, shape (examples,); None where the texts were never known.
        unknown_id: the token of words that the vocabulary lacks; None where there is none, or it has other uses too.
        cut_side: the side at which the tokenizer truncates, "right" or "left".
    """

    ids: Tensor
    offsets: Tensor
    labels: Tensor | None
    token_type_ids: Tensor | None
    pad_id: int
    special_ids: Tensor
    segments: Tensor | None = None
    whole_lengths: Tensor | None = None
    digests: Tensor | None = None
    unknown_id: int | None = None
    cut_side: str = "right"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each example, int64, shape (examples,)."""
        return self.offsets.diff()

    def view(self, indices: Tensor | None = None, labels: Tensor | None = None) -> TableExamples:
        """The examples at `indices` (None: all), in that order, under other `labels` if given (one for each index)."""
        rows = torch.arange(len(self)) if indices is None else indices
        return TableExamples(self, rows, _at(self.labels, rows) if labels is None else labels)


def token_table(
    examples: Sequence[Sequence[int]] | Tensor, labels: Sequence[int] | Tensor | None, pad_id: int = 0, special_ids: Sequence[int] = ()
) -> TokenTable:
    """A table of token ids that are already known: a list of lists, or a tensor (examples, tokens) of equal lengths."""
    if isinstance(examples, Tensor):
        ids, lengths = examples.flatten(), torch.full((len(examples),), examples.shape[1])
    else:
        ids = torch.tensor([token for example in examples for token in example], dtype=torch.int32)
        lengths = torch.tensor([len(example) for example in examples], dtype=torch.int64)
    return TokenTable(
        ids=ids.to(torch.int32),
        offsets=_offsets(lengths),
        labels=None if labels is None else torch.as_tensor(labels, dtype=torch.int64),
        token_type_ids=None,
        pad_id=pad_id,
        special_ids=torch.tensor(list(special_ids), dtype=torch.int32),
    )


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
        offsets=_offsets(torch.tensor(lengths, dtype=torch.int64)),
        labels=split.labels,
        token_type_ids=(torch.cat(types) if types else torch.zeros(0, dtype=torch.uint8)) if has_types else None,
        pad_id=0 if pad_id is None else int(pad_id),
        special_ids=torch.tensor(sorted(_special_ids(tokenizer)), dtype=torch.int32),
        segments=torch.cat(segments) if segments else torch.zeros(0, dtype=torch.uint8),
        whole_lengths=torch.tensor(whole, dtype=torch.int64),
        digests=_digests(split),
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


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.to(torch.int64).cumsum(0)])


@dataclass(frozen=True)
class TableExamples:
    """Some examples of a table, addressed by position 0 .. len - 1; implements `core.types.Examples`. Holds no tokens of its own.

    Attributes:
        indices: rows of the table, int64, shape (examples,).
        labels: int64, shape (examples,); may differ from the table's. None where examples have no classes.
    """

    table: TokenTable
    indices: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each example after truncation, int64, shape (examples,)."""
        return self.table.offsets[self.indices + 1] - self.table.offsets[self.indices]

    @property
    def whole_lengths(self) -> Tensor:
        """Tokens of each example before truncation, int64, shape (examples,)."""
        return self.lengths if self.table.whole_lengths is None else self.table.whole_lengths[self.indices]

    @property
    def added(self) -> Tensor:
        """Tokens of each example that the tokenizer or a template added, int64, shape (examples,)."""
        if self.table.segments is None:
            return torch.zeros(len(self), dtype=torch.int64)
        before = torch.cat([torch.zeros(1, dtype=torch.int64), (self.table.segments == 0).cumsum(0)])
        return before[self.table.offsets[self.indices + 1]] - before[self.table.offsets[self.indices]]

    @property
    def rarity(self) -> Tensor:
        """Mean over an example's tokens w of -log(count(w) / total), nat, float64, shape (examples,).

        Counts are of these examples alone (what one client can know) and leave out special tokens and those of a template. An example
        of such tokens alone has rarity 0. Source of the score: Platanios et al. 2019 (NAACL), there as a sum (`information`) and over
        the whole corpus.
        """
        sums, counts = self._information()
        return sums / counts.clamp(min=1)

    @property
    def information(self) -> Tensor:
        """Sum over an example's tokens w of -log(count(w) / total), nat, float64, shape (examples,); counts as those of `rarity`."""
        return self._information()[0]

    def _information(self) -> tuple[Tensor, Tensor]:
        """Sum of -log unigram frequency, and number of words, of each example."""
        lengths = self.lengths
        first = self.table.offsets[self.indices]
        example = torch.repeat_interleave(torch.arange(len(self)), lengths)
        within = torch.arange(len(example)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        where = first[example] + within
        tokens = self.table.ids[where]
        words = ~torch.isin(tokens, self.table.special_ids)
        if self.table.segments is not None:
            words &= self.table.segments[where] > 0
        _, word, counts = tokens[words].unique(return_inverse=True, return_counts=True)
        information = -(counts.double() / counts.sum()).log()
        sums = torch.zeros(len(self), dtype=torch.float64).index_add_(0, example[words], information[word])
        return sums, torch.bincount(example[words], minlength=len(self))

    def select(self, positions: Tensor, labels: Tensor | None = None) -> TableExamples:
        """The examples at `positions` of these, under other `labels` if given."""
        return TableExamples(self.table, self.indices[positions], _at(self.labels, positions) if labels is None else labels)

    def batch(self, positions: Sequence[int] | Tensor, max_length: int | None = None) -> Batch:
        """`input_ids`, `attention_mask` and, if the examples have them, `labels` and `token_type_ids`, all int64: the examples at
        `positions` in that order, padded on the right to the first multiple of `PAD_MULTIPLE` that holds the longest of them.

        Args:
            positions: in 0 .. len - 1, at least one.
            max_length: cut what is longer to that many tokens, as the tokenizer does: what it added stays, texts lose their ends, of two
                texts the longer one first.

        Raises:
            ValueError: no positions.
            IndexError: a position beyond the last example.
        """
        picked = torch.as_tensor(positions, dtype=torch.int64)
        if not len(picked):
            raise ValueError("got no positions, expected at least one")
        rows = self.indices[picked]
        first, lengths = self.table.offsets[rows], self.table.offsets[rows + 1] - self.table.offsets[rows]
        if max_length is not None and int(lengths.max()) > max_length:
            where, mask = _cut(self.table, first, lengths, max_length)
        else:
            mask = torch.arange(padded_length(int(lengths.max()))) < lengths[:, None]
            # a padding position reads the example's own first token, which is then replaced
            where = first[:, None] + torch.arange(mask.shape[1]) * mask
        batch = {
            "input_ids": self.table.ids[where].long().masked_fill_(~mask, self.table.pad_id),
            "attention_mask": mask.long(),
        }
        if self.labels is not None:
            batch["labels"] = self.labels[picked]
        if self.table.token_type_ids is not None:
            batch["token_type_ids"] = self.table.token_type_ids[where].long() * mask
        return batch


def _at(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if labels is None else labels[rows]


def padded_length(length: int) -> int:
    """Tokens of each row of a batch whose longest example has so many."""
    return -(-length // PAD_MULTIPLE) * PAD_MULTIPLE


def _cut(table: TokenTable, first: Tensor, lengths: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Which tokens are left of some examples, and which places are no padding, both (examples, tokens)."""
    column = torch.arange(int(lengths.max()))
    inside = column < lengths[:, None]
    where = first[:, None] + column * inside
    segment = torch.ones_like(where) if table.segments is None else table.segments[where].long()
    added, one, two = (inside & (segment == number) for number in (0, 1, 2))
    keep_one, keep_two = longest_first(one.sum(1), two.sum(1), (max_length - added.sum(1)).clamp(min=0))
    kept = added | (one & (one.cumsum(1) <= keep_one[:, None])) | (two & (two.cumsum(1) <= keep_two[:, None]))
    order = torch.argsort(~kept, dim=1, stable=True)  # what is kept, in its order, to the left
    counts = kept.sum(1)
    width = padded_length(int(counts.max()))
    order = torch.nn.functional.pad(order[:, :width], (0, max(0, width - order.shape[1])))
    mask = torch.arange(width) < counts[:, None]
    return first[:, None] + order * mask, mask


def longest_first(first: Tensor, second: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens two texts keep: tokens are taken from the end of the longer one until both fit into `room`, all int64 (examples,).

    Where both are cut they share the room evenly, an odd token going to the longer one, of equals to the second: the rule of the
    tokenizers library.
    """
    short, long = torch.minimum(first, second), torch.maximum(first, second)
    half = room // 2
    keep_short = torch.minimum(short, half)
    keep_long = torch.minimum(long, room - keep_short)
    swapped = first > second
    return torch.where(swapped, keep_long, keep_short), torch.where(swapped, keep_short, keep_long)
