"""Answers that a model wrote beside those that were to be written: what matches, and the sums that such answers are scored by."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Literal, TypeAlias

import torch
from torch import Tensor

GENERATED, EXACT, STOPPED, NEW_TOKENS = "generated", "exact", "stopped", "new_tokens"
"""Names of the sums: answers that were generated, those that match, those that came to their end token, and their tokens."""
WRITTEN = (GENERATED, EXACT, STOPPED, NEW_TOKENS)

Match: TypeAlias = Literal["whitespace", "squad", "number"]
"""How texts are made alike before they are compared; see `normalised`."""


def zero_of_written() -> dict[str, Tensor]:
    """The sums over no answers."""
    return {name: torch.zeros((), dtype=torch.int64) for name in WRITTEN}


def normalised(text: str, how: Match) -> str | None:
    r"""A text as it is compared.

    whitespace: runs of white space are one blank, none at the ends. squad: as SQuAD's evaluation has it, in small letters without
    punctuation and English articles. number: the last number, without thousands' commas (gsm8k: the one behind ####); None without one.

    >>> normalised("  ls \n -l ", "whitespace"), normalised("The answer, Bob!", "squad"), normalised("5 and\n#### 1,200.0", "number")
    ('ls -l', 'answer bob', '1200')
    """
    if how == "number":
        found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        if not found:
            return None
        number = found[-1].replace(",", "")
        return number.rstrip("0").rstrip(".") if "." in number else number
    if how == "squad":
        text = unicodedata.normalize("NFKC", text).lower().translate(str.maketrans("", "", string.punctuation))
        text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def matches(written: str, expected: str, how: Match) -> bool:
    """Whether an answer is the expected one; never where the expected one has no number that it needs."""
    found = normalised(expected, how)
    return found is not None and normalised(written, how) == found
