"""Answers that a model wrote beside those that were to be written: what matches, and the sums that such answers are scored by."""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Literal, TypeAlias

import torch
from torch import Tensor

GENERATED, EXACT, STOPPED, NEW_TOKENS, ROUGE_L = "generated", "exact", "stopped", "new_tokens", "rouge_l"
"""Names of the sums: answers that were generated, those that match, those that came to their end token, their tokens, and their Rouge-L."""
COUNTED = (GENERATED, EXACT, STOPPED, NEW_TOKENS)

Match: TypeAlias = Literal["whitespace", "squad", "number"]
"""How texts are made alike before they are compared; see `normalised`."""


def zero_of_written() -> dict[str, Tensor]:
    """The sums over no answers."""
    counts = {name: torch.zeros((), dtype=torch.int64) for name in COUNTED}
    return {**counts, ROUGE_L: torch.zeros((), dtype=torch.float64)}


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


def rouge_l(written: str, expected: str) -> float:
    """Rouge-L of an answer: F1 of the longest common subsequence of words (Lin 2004), in [0, 1].

    torchmetrics' score, as rouge-score's without stemming: words are runs of the letters a to z and digits, in small letters. It says
    nothing about texts in other scripts.

    >>> rouge_l("the cat sat", "The cat is sitting.")  # the, cat: two of three words, and two of four
    0.5714285969734192
    """
    from torchmetrics.functional.text import rouge_score  # imports for a second

    return float(rouge_score(written, expected, rouge_keys="rougeL")["rougeL_fmeasure"])
