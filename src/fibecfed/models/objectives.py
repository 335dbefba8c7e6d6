"""What a task predicts, apart from the body and the adapter that it predicts it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification

from ..core.statistics import Statistics, class_sums, of_classes
from ..core.trees import moved
from ..core.types import Batch
from .heads import PooledHead, Pooling, classifier_head


class Head(Protocol):
    """A module that makes scores of the body's last hidden states (batch, token, hidden) and the inputs that led to them.

    Scores are (row, score): one or several rows for each example, none for padding, in the order of the examples.

    Attributes:
        pooling: which hidden vector stands for an example, to an adapter that needs one.
    """

    pooling: Pooling

    def __call__(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor: ...


class Objective(Protocol):
    """What is predicted, with which head and at what loss."""

    @property
    def model_class(self) -> Any:
        """The class of transformers that loads a model with such a head."""
        ...

    @property
    def draws_head(self) -> bool:
        """Whether the head is newly initialised, so that a model's file need not have it."""
        ...

    @property
    def mask_id(self) -> int | None:
        """The token that every text must hold once; None where there is none."""
        ...

    @property
    def takes(self) -> tuple[str, ...]:
        """What of a batch's labels the head must see, by name: where it is to predict something."""
        ...

    def head(self, model: nn.Module, body: nn.Module) -> Head:
        """The head of a model that `model_class` loads.

        Raises:
            UnsupportedModel: of a kind that is not known here.
        """
        ...

    def beside(self, inputs: Batch) -> Batch:
        """What the head takes of a text besides, by names of its own, found before the inputs are on the device: whoever reads a tensor
        there waits for all that is computed before it."""
        ...

    def losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """The loss of each example, nat, shape (batch,), from the head's scores."""
        ...

    @property
    def statistics(self) -> Statistics:
        """Which sums an evaluation is answered with."""
        ...

    def sums(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Those sums over the examples of a batch, from the head's scores, on the CPU."""
        ...

    def own_scores(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        """What the head must give for texts without padding, from what the model's own call gives."""
        ...

    def some_labels(self, input_ids: Tensor) -> Tensor:
        """Labels for synthetic texts."""
        ...


class ClassObjective(Objective, Protocol):
    """One class of several; a loss is -log p(class given the text), or with `targets` q in the batch sum_c q_c (-log p(c))."""

    @property
    def num_classes(self) -> int: ...

    def of_classes(self, scores: Tensor) -> Tensor:
        """The scores of the classes, (batch, classes), from the head's."""
        ...


class SumsByClass:
    """What is the same in every `ClassObjective`."""

    takes = ()

    @property
    def statistics(self: ClassObjective) -> Statistics:
        """Those of its classes."""
        return of_classes(self.num_classes)

    def sums(self: ClassObjective, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Confusion matrix, loss and calibration, from the scores of the classes."""
        return class_sums(self.of_classes(scores), batch["labels"])

    def some_labels(self: ClassObjective, input_ids: Tensor) -> Tensor:
        """The first class, the last, and so on downwards."""
        return -torch.arange(len(input_ids)) % self.num_classes


@dataclass(frozen=True)
class ClassHead(SumsByClass):
    """Classes told apart by a classification head on one vector of the text, newly initialised and trained; a `ClassObjective`."""

    num_classes: int

    model_class = AutoModelForSequenceClassification
    draws_head = True
    mask_id = None

    def beside(self, inputs: Batch) -> Batch:
        """Nothing."""
        return {}

    def head(self, model: nn.Module, body: nn.Module) -> PooledHead:
        """The classifier's own."""
        return PooledHead(*classifier_head(model, body))

    def losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """Cross entropy over the classes."""
        return cross_entropy(scores, moved(batch.get("targets", batch["labels"]), scores.device), reduction="none")

    def of_classes(self, scores: Tensor) -> Tensor:
        """They are."""
        return scores

    def own_scores(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        """The classifier's own."""
        return logits
