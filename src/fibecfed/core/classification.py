"""What a task can be asked beside where it predicts classes, and how to ask for that."""

from __future__ import annotations

from typing import Protocol, cast

from jaxtyping import Float, Int
from torch import Tensor

from .errors import UserError
from .task import Task
from .types import Batch, Examples, Params


class Classification(Task, Protocol):
    """A task whose losses are -log p(class given the text; params); with `targets` q in the batch, sum_c q_c (-log p(c))."""

    @property
    def num_classes(self) -> int: ...

    def logits(self, params: Params, batch: Batch) -> Float[Tensor, "batch classes"]:
        """Class scores, float32 or better, without a graph."""
        ...

    def predict(self, params: Params, batch: Batch) -> Int[Tensor, " batch"]:
        """The most likely class of each example, without a graph."""
        ...


def classification(task: Task, what: str, instead: str) -> Classification:
    """`task`, known to predict classes.

    Args:
        what: what needs classes, as the beginning of the sentence that rejects any other task.
        instead: what to do about it, as its end.

    Raises:
        UserError: it predicts something else.
    """
    if hasattr(task, "num_classes"):
        return cast("Classification", task)
    raise UserError(f"{what} needs a task that predicts classes, which this one does not; {instead}")


def classes_of(examples: Examples, what: str, instead: str) -> Int[Tensor, " examples"]:
    """The class of each example; arguments as for `classification`.

    Raises:
        UserError: they have none.
    """
    if examples.labels is not None:
        return examples.labels
    raise UserError(f"{what} needs examples with classes, which these do not have; {instead}")
