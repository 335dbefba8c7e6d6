"""The few types that every part of the package shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

ClientId: TypeAlias = str
"""A stable name of a client. Replies are put in order of client ids, which sort as strings."""

Params: TypeAlias = Mapping[str, Tensor]
"""Named tensors; the canonical order is that of the sorted names. Never write into one that came in."""

Batch: TypeAlias = Mapping[str, Tensor]
"""What a tokenizer returns (`input_ids`, `attention_mask`, ...), each (batch, token), plus what is to be predicted: the examples' classes
as `labels` (batch,) where they have some, or whatever else a task takes its losses from: for answers `labels` (batch, token), the tokens
that are to be predicted and -100 elsewhere.

A method may add `targets`, class probabilities (batch, classes) that take the place of the labels in the loss, and `weights` (batch,), how
much an example counts in the mean loss of its batch.
"""


class Examples(Protocol):
    """Tokenised examples of one client, addressed by position 0 .. len - 1."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor | None:
        """The class of each example, int64, shape (examples,); None where they have no classes."""
        ...

    @property
    def units(self) -> Tensor | None:
        """Of whom each example is, int64, shape (examples,): those with one number are of one person. None: each is of another one."""
        ...

    @property
    def weight(self) -> int:
        """n_k, by how much the client that holds these as its training part counts in an aggregation: the number of examples, or where
        every labelled token counts the same in a loss (`training.objective`), that of their labelled tokens."""
        ...

    @property
    def targets(self) -> Tensor | None:
        """Labelled tokens of each example, int64, shape (examples,); None where its label is a class, or it has none."""
        ...

    @property
    def lengths(self) -> Tensor:
        """Tokens of each example after truncation, int64, shape (examples,)."""
        ...

    @property
    def rarity(self) -> Tensor:
        """Mean of -log unigram frequency of an example's tokens on this client, float64, shape (examples,)."""
        ...

    @property
    def information(self) -> Tensor:
        """Sum of -log unigram frequency of an example's tokens on this client, nat, float64, shape (examples,)."""
        ...

    def without_prompts(self) -> Examples:
        """The same answers behind empty prompts, in the same order.

        Raises:
            ValueError: they have none, or were not made for it.
        """
        ...

    def batch(self, positions: Sequence[int], max_length: int | None = None) -> Batch:
        """The examples at `positions`, padded to the longest of them, in that order; texts cut to `max_length` tokens if given."""
        ...


@dataclass(frozen=True)
class ClientData:
    """The three parts of what one client holds. Only `train` may be trained on; `test` is only ever counted on."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Round:
    """Where a run stands, as a value that nobody can write to.

    Attributes:
        phase: name of the phase.
        index: t, 0-based number of the round inside its phase.
        num_rounds: T, rounds of the phase.
        number: 0-based number of the round over all phases of the run.
        alone: whether a client trains for itself behind the last round, so that no schedule of the rounds holds for it.
    """

    phase: str
    index: int
    num_rounds: int
    number: int
    alone: bool = False


@dataclass(frozen=True)
class Failure:
    """A client that gave no reply, with the reason as a sentence.

    Attributes:
        repeats: it would fail the same way if it were asked again, as with a loss that is not finite.
    """

    reason: str
    repeats: bool = False
