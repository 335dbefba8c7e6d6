"""An objective of text: the answers in a conversation, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM

from ..core.answers import CORRECT_TOKENS, IGNORED, TOKEN_NLL, TOKENS, of_answers, predicted
from ..core.statistics import EXAMPLES, Statistics
from ..core.trees import moved
from ..core.types import Batch
from ..core.written import Match, zero_of_written
from .heads import Pooling
from .label_words import LanguageHead
from .token_loss import token_losses


class AnswerHead(nn.Module):
    """The model's own language-model head at the positions before labelled tokens, and nowhere else."""

    pooling: Pooling = "last"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head = LanguageHead(model)

    def forward(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """(batch, token, hidden) -> a row of `token_losses` for each labelled token, in the order of the texts.

        Without labels among the inputs every token but a text's first is one.
        """
        rows, places = inputs[_ROWS], inputs[_PLACES]
        return token_losses(self.head, hidden[rows, places], inputs[_TARGETS])


_ROWS, _PLACES, _TARGETS = "answers.rows", "answers.places", "answers.targets"
"""Of each token that is to be predicted: its text, the position before it, and the token."""


def _every_token(ids: Tensor, mask: Tensor) -> Tensor:
    """Every token of a text but its first as a label."""
    before = pad(mask[:, :-1], (1, 0))
    return ids.masked_fill(mask * before == 0, IGNORED)


@dataclass(frozen=True)
class Writing:
    """How answers are generated to be scored.

    Attributes:
        decode: tokens -> text, without special tokens.
        stop_ids: tokens at which an answer ends.
        max_new_tokens: tokens of an answer, at most.
        number: test examples of a client that are answered, at most.
        match: how texts are made alike before they are compared.
    """

    decode: Callable[[Sequence[int]], str]
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    number: int
    match: Match


@dataclass(frozen=True)
class Answers:
    """The labelled tokens of texts, each given all that stands before it; an `objectives.Objective`.

    The loss of an example is the sum of -log p over its labelled tokens, which is -log p(answer given its prompt): what Fisher information
    is made of. What a step minimises, a mean over tokens or over examples, is decided where steps are taken (`local.tokens`).

    `labels` (batch, token) of a batch are the tokens themselves where they are to be predicted, and -100 elsewhere.
    """

    writing: Writing | None = None

    model_class = AutoModelForCausalLM
    draws_head = False
    mask_id = None
    takes = ("labels",)

    def head(self, model: nn.Module, body: nn.Module) -> AnswerHead:
        """The model's own."""
        return AnswerHead(model)

    def beside(self, inputs: Batch) -> Batch:
        """Which tokens are to be predicted, and where."""
        labels = inputs["labels"] if "labels" in inputs else _every_token(inputs["input_ids"], inputs["attention_mask"])
        where = predicted(labels)
        rows, places = where.nonzero(as_tuple=True)
        return {_ROWS: rows, _PLACES: places, _TARGETS: labels[:, 1:][where]}

    def losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """Sums over the labelled tokens of each example."""
        where = moved(predicted(batch["labels"]), scores.device)
        return scores.new_zeros(where.shape).masked_scatter(where, scores[:, 0]).sum(1)

    @property
    def statistics(self) -> Statistics:
        """Those of answers."""
        return of_answers(self.writing is not None)

    def sums(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Loss, tokens and how many of them are the most likely ones."""
        return {
            TOKEN_NLL: scores[:, 0].double().sum().cpu(),
            TOKENS: torch.tensor(len(scores)),
            CORRECT_TOKENS: (scores[:, 1] <= 0).sum().cpu(),
            EXAMPLES: torch.tensor(len(batch["labels"])),
            **({} if self.writing is None else zero_of_written()),
        }

    def own_scores(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        """As `token_losses` of every token but the first."""
        targets = input_ids[:, 1:].flatten()
        return token_losses(lambda vectors: vectors, logits[:, :-1].flatten(0, 1), targets)

    def some_labels(self, input_ids: Tensor) -> Tensor:
        """The second token of each text."""
        labels = torch.full_like(input_ids, IGNORED)
        labels[:, 1] = input_ids[:, 1]
        return labels
