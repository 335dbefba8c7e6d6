"""Answers: texts of which only some tokens are to be predicted. Which tokens of a batch these are, and the sums that they are scored by."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .statistics import EXAMPLES, Statistics, Totals
from .types import Batch
from .written import EXACT, GENERATED, ROUGE_L, STOPPED, zero_of_written

IGNORED = -100
"""Label of a token that nothing is learned from, as transformers has it."""

TOKEN_NLL, TOKENS, CORRECT_TOKENS = "token_nll", "tokens", "correct_tokens"


def predicted(labels: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch token-1"]:
    """Whether the token behind each one is labelled. Nothing predicts the first token of a text: its label says nothing."""
    return labels[:, 1:] != IGNORED


def targets_of(batch: Batch) -> Int[Tensor, " batch"] | None:
    """How many tokens of each example are to be predicted; None where the labels of a batch are classes, or there are none."""
    labels = batch.get("labels")
    return None if labels is None or labels.ndim != 2 else predicted(labels).sum(1)


def of_answers(written: bool = False) -> Statistics:
    """The sums of predicted answers.

    `token_nll` sums -log p of every labelled token given what stands before it, nat; `tokens` counts them, `correct_tokens` those of them
    that are the most likely ones, `examples` the texts. Those of `core.written` are of answers that were generated.

    Args:
        written: with these.
    """
    zero = {
        TOKEN_NLL: torch.zeros((), dtype=torch.float64),
        TOKENS: torch.zeros((), dtype=torch.int64),
        CORRECT_TOKENS: torch.zeros((), dtype=torch.int64),
        EXAMPLES: torch.zeros((), dtype=torch.int64),
        **(zero_of_written() if written else {}),
    }
    return Statistics(zero, lambda totals: (int(totals[EXAMPLES]),), _impossible, lambda place: "any kind", "nll")


def _impossible(totals: Totals) -> str | None:
    nll, tokens, correct, examples = float(totals[TOKEN_NLL]), *(int(totals[name]) for name in (TOKENS, CORRECT_TOKENS, EXAMPLES))
    if nll < 0:
        return f"{TOKEN_NLL} is {nll}, expected at least 0"
    if GENERATED in totals:
        generated = int(totals[GENERATED])
        if generated > examples:
            return f"{GENERATED} is {generated}, expected at most {examples}, the number of examples"
        for name in (EXACT, STOPPED):
            if int(totals[name]) > generated:
                return f"{name} is {int(totals[name])}, expected at most {generated}, the number of generated answers"
        if not 0 <= float(totals[ROUGE_L]) <= generated:
            return f"{ROUGE_L} is {float(totals[ROUGE_L])}, expected 0 to {generated}, the number of generated answers"
    if correct > tokens:
        return f"{CORRECT_TOKENS} is {correct}, expected at most {tokens}, the number of labelled tokens"
    return f"{TOKENS} is {tokens}, expected at least {examples}, the number of examples" if tokens < examples else None
