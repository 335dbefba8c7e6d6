"""Classification as filling in a word: a template around the text, and one word of the vocabulary for each class.

Source of the form: Schick and Schuetze 2021 (EACL); of most templates: Gao, Fisch and Chen 2021 (ACL), with words and templates as the
tasks' table has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError
from .options import DataOptions
from .tasks import TASKS

MASK = "<mask>"
"""Stands in a template for the word, whatever the tokenizer's own mask is called."""

_PARTS = re.compile(r"(\{[^{}]*\}|<mask>)")


def mistake_in(template: str, pair: bool) -> str | None:
    """What is wrong with a template, as "got ..., expected ..."; None where it is right: `<mask>` once, and `{x}`, or for pairs `{a}` and
    `{b}`, once each."""
    wanted = sorted(("{a}", "{b}", MASK) if pair else ("{x}", MASK))
    found = sorted(_PARTS.findall(template))
    if found == wanted:
        return None
    return f"got {template!r} with {', '.join(found) or 'no placeholder'}, expected {', '.join(wanted)}, each once"


def with_mask_last(template: str) -> str:
    """The template for a model that only reads from left to right: the word comes last.

    What follows the last text behind the mask is left out; where a text stands behind the mask, it moves before it, and what stood
    between mask and text then stands between text and mask: `<mask> : {x}` becomes `{x} : <mask>`, `{a} ? <mask> , {b}` becomes
    `{a} ? {b} , <mask>`, and `{x} . It was <mask> .` becomes `{x} . It was <mask>`.
    """
    before, _, after = template.partition(MASK)
    texts = [part.span() for part in _PARTS.finditer(after)]
    if texts:
        between, moved = after[: texts[0][0]], after[texts[0][0] : texts[-1][1]]
        before += moved + between
    return before.rstrip(" ") + " " + MASK


@dataclass(frozen=True)
class Prompt:
    """A template and the words of the classes, as one model's tokenizer knows them.

    Attributes:
        template: with `<mask>`, which stands last for a causal model.
        words: one per class, in the order of the classes.
        tokens: the vocabulary's entries for the words, with the leading space where the vocabulary has such.
        token_ids: their numbers.
        mask_id: the tokenizer's mask; None for a causal model, whose word comes after the last token.
    """

    template: str
    words: tuple[str, ...]
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    mask_id: int | None

    def about(self, labels: Sequence[str]) -> Mapping[str, Any]:
        """What someone needs to use a model trained with it, besides the model."""
        return {"labels": list(labels), "template": self.template, "label_words": list(self.words), "tokens": list(self.tokens)}


def template_and_words(options: DataOptions, label_names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Template and words of a configuration: its own, else those of its task, in the order of `label_names`.

    Raises:
        UserError: there are none, or another number of words than of classes.
    """
    task = None if options.task is None else TASKS[options.task]
    template = options.template or (task and task.template)
    words = options.label_words
    if words is None and task is not None and set(label_names) == set(task.labels):
        word_of = dict(zip(task.labels, task.label_words, strict=True))
        words = tuple(word_of[name] for name in label_names)
    classes = ", ".join(map(repr, label_names[:20]))
    if template is None:
        raise UserError('data.template: got none, expected a template such as "{x} . It was <mask> ." for `model.head` = "label-words"')
    if words is None or len(words) != len(label_names):
        got = "none" if words is None else f"{len(words)}: {', '.join(map(repr, words))}"
        raise UserError(f"data.label_words: got {got}, expected {len(label_names)}, one for each class in this order: {classes}")
    return template, words


def make_prompt(tokenizer: Any, template: str, words: Sequence[str], *, masked: bool) -> Prompt:
    """Template and words for one tokenizer.

    Args:
        masked: whether the model fills in a mask; else it continues the text.

    Raises:
        UserError: a word that is not one token, two words that are the same token, or a tokenizer without a mask or without the places
            of its tokens in the text.
    """
    if not tokenizer.is_fast:
        raise UserError(
            'model.head: "label-words" needs a tokenizer that returns the offsets of its tokens; this model has none. Set "full"'
        )
    if masked and tokenizer.mask_token_id is None:
        raise UserError('model.head: "label-words" needs a tokenizer with a mask token; this model\'s has none. Set "full"')
    ids = [_one_token(tokenizer, word) for word in words]
    for place, one in enumerate(ids):
        if one in ids[:place]:
            first = words[ids.index(one)]
            raise UserError(
                f"data.label_words: {first!r} and {words[place]!r} are the same token {tokenizer.convert_ids_to_tokens(one)!r} of this "
                "model; expected one of its own for each class; choose another word"
            )
    return Prompt(
        template=template if masked else with_mask_last(template),
        words=tuple(words),
        tokens=tuple(tokenizer.convert_ids_to_tokens(ids)),
        token_ids=tuple(ids),
        mask_id=tokenizer.mask_token_id if masked else None,
    )


def _one_token(tokenizer: Any, word: str) -> int:
    before, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"a {word}"))
    pieces = whole[len(before) :]
    shown = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(pieces)))
    if len(pieces) != 1:
        raise UserError(f"data.label_words: {word!r} is {len(pieces)} tokens of this model ({shown}), expected one; choose another word")
    if pieces[0] == tokenizer.unk_token_id:
        raise UserError(f"data.label_words: {word!r} is not in the vocabulary of this model ({shown}); choose another word")
    return pieces[0]


@dataclass(frozen=True)
class Filled:
    """One example in its template, as tokens.

    Attributes:
        segments: where each token comes from: 0 the template or the tokenizer, 1 the first text, 2 the second.
    """

    ids: list[int]
    segments: list[int]


def encode(prompt: Prompt, tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Filled]:
    """The filled-in template of each example, tokenised as one text, special tokens included and nothing cut.

    The tokenizer's mask is taken out of the texts themselves. For a causal model nothing follows the template, an end-of-text token
    neither.
    """
    mask = "" if prompt.mask_id is None else str(tokenizer.mask_token)
    filled = [_fill(prompt.template, text, None if pairs is None else pairs[row], mask) for row, text in enumerate(texts)]
    encoded = tokenizer(
        [string for string, _ in filled],
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    rows = []
    for row, (string, spans) in enumerate(filled):
        ids, offsets = encoded["input_ids"][row], encoded["offset_mapping"][row]
        if prompt.mask_id is None:
            added = encoded["special_tokens_mask"][row]
            length = next((n for n in range(len(ids), 0, -1) if not added[n - 1]), 0)
            ids, offsets = ids[:length], offsets[:length]
        rows.append(Filled(ids, [_segment(string, first, end, spans) for first, end in offsets]))
    return rows


def _fill(template: str, text: str, pair: str | None, mask: str) -> tuple[str, list[tuple[int, int, int]]]:
    """The filled-in template, and of each text in it where it begins and ends, and whether it is the first or second one."""
    values = {"{x}": (text, 1), "{a}": (text, 1), "{b}": (pair or "", 2)}
    string, spans = "", []
    for part in _PARTS.split(template):
        if part in values:
            value, which = values[part]
            value = value.replace(mask, "") if mask else value
            spans.append((len(string), len(string) + len(value), which))
            string += value
        else:
            string += mask if part == MASK else part
    return (string if mask else string.rstrip(" ")), spans


def _segment(string: str, first: int, end: int, spans: Sequence[tuple[int, int, int]]) -> int:
    """The text that a token from `first` to `end` lies in; 0 for a part of the template, though it reach into a text."""
    while first < end and string[first].isspace():  # the space before a word may be the template's, and part of the word's token
        first += 1
    return next((which for start, stop, which in spans if start <= first < end <= stop), 0)
