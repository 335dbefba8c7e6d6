"""The gradient that one batch gives a training, and how batches of several trainings get theirs from one forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..core.rng import Key
from ..core.task import Tape, Task, TracedLinear
from ..core.types import Batch, Params


@dataclass(frozen=True)
class Wanted:
    """What a training needs of one batch.

    Attributes:
        params: all tensors of the task; those that are trained require a gradient.
        leaves: those.
        batch: of examples.
        objective: from the loss of each example what is minimised.
        traced: of which trained linear maps the gradients at their outputs are needed as well; None: of none.
        stream: where dropout draws from in a pass that may be joined; None where there is none.
        apart: take those of the mean loss, in a backward pass of their own, since the objective does not tell an example's own gradient.
    """

    params: Params
    leaves: Sequence[Tensor]
    batch: Batch
    objective: Callable[[Tensor], Tensor]
    traced: Callable[[TracedLinear], bool] | None = None
    apart: bool = False
    stream: object = None


@dataclass(frozen=True)
class Gradients:
    """What a batch gives.

    Attributes:
        losses: of each example, without a graph.
        of_leaves: the objective's gradient at the leaves, zero where it does not depend on one.
        tape: the linear maps that were asked for, with their inputs and outputs.
        at_outputs: the gradient at the output of each; None where no loss depends on it.
    """

    losses: Tensor
    of_leaves: list[Tensor]
    tape: Tape
    at_outputs: tuple[Tensor | None, ...]


class Shared(Protocol):
    """A task as a training has it whose passes may be those of others as well."""

    def gradients(self, wanted: Wanted) -> Gradients:
        """As the function `gradients`."""
        ...


class Together(Protocol):
    """Passes over the batches of several trainings, each with its own tensors. Kept while these trainings last.

    A task that can do so makes one in its method `together()`.
    """

    def groups(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """Which of them go through the model in one pass, as their places; one that cannot be joined with another is alone."""
        ...

    def losses(self, wanted: Sequence[Wanted]) -> tuple[Tensor, Tape]:
        """As `Task.losses`, or `Task.traced` where any of them asks for linear maps, of all their examples, one batch after the other."""
        ...

    def stream(self, key: Key) -> object:
        """Where the dropout of a training draws from; None where there is none."""
        ...

    def drawing(self, stream: object) -> AbstractContextManager[None]:
        """Inside, dropout is on, and draws on from where a stream stands; with None there is none."""
        ...


def gradients(task: Task, wanted: Wanted) -> Gradients:
    """The gradient of one batch: in a pass of its own, or as a `Shared` task does it."""
    shared = getattr(task, "gradients", None)
    return alone(task, wanted) if shared is None else shared(wanted)


def alone(task: Task, wanted: Wanted) -> Gradients:
    """In a pass of its own."""
    if wanted.traced is None:
        losses, tape = task.losses(wanted.params, wanted.batch), Tape(())
    else:
        losses, tape = task.traced(wanted.params, wanted.batch)
        tape = _needed(tape, wanted)
    at_leaves, at_outputs = _backward([wanted], [losses], tape)
    return Gradients(losses.detach(), at_leaves, tape, at_outputs)


def joined(together: Together, wanted: Sequence[Wanted]) -> list[Gradients]:
    """Those of several batches in one pass, in their order: each as `alone` gives it, to rounding."""
    losses, tape = together.losses(wanted)
    sizes = [len(one.batch["attention_mask"]) for one in wanted]
    parts = losses.split(sizes)
    tape = Tape(tuple(linear for linear in tape.linears if any(one.traced is not None and one.traced(linear) for one in wanted)))
    of_leaves, at_outputs = _backward(wanted, parts, tape)
    found, row, leaf = list[Gradients](), 0, 0
    for one, part in zip(wanted, parts, strict=True):
        rows, own = slice(row, row + len(part)), of_leaves[leaf : leaf + len(one.leaves)]
        kept = [place for place, linear in enumerate(tape.linears) if one.traced is not None and one.traced(linear)]
        linears = tuple(_rows(tape.linears[place], rows) for place in kept)
        at = tuple(None if (whole := at_outputs[place]) is None else whole[rows] for place in kept)
        found.append(Gradients(part.detach(), own, Tape(linears), at))
        row, leaf = rows.stop, leaf + len(one.leaves)
    return found


def _needed(tape: Tape, wanted: Wanted) -> Tape:
    assert wanted.traced is not None
    return Tape(tuple(linear for linear in tape.linears if wanted.traced(linear)))


def _rows(linear: TracedLinear, rows: slice) -> TracedLinear:
    return replace(linear, input=linear.input[rows], output=linear.output[rows])


def _backward(wanted: Sequence[Wanted], losses: Sequence[Tensor], tape: Tape) -> tuple[list[Tensor], tuple[Tensor | None, ...]]:
    """The gradients at all leaves, one training after the other, zero where there is none, and those at the outputs.

    The trainings' objectives are added: each depends on its own leaves and its own rows of the outputs alone. One backward pass gives both
    where no training wants them `apart`: what an objective adds to the losses, such as a penalty, does not depend on outputs.
    """
    objectives = [one.objective(part) for one, part in zip(wanted, losses, strict=True)]
    objective = objectives[0] if len(objectives) == 1 else torch.stack(objectives).sum()
    leaves, outputs = [leaf for one in wanted for leaf in one.leaves], [linear.output for linear in tape.linears]
    if not outputs or not any(one.apart for one in wanted):
        found = torch.autograd.grad(objective, [*leaves, *outputs], allow_unused=True)
        at_leaves, at_outputs = found[: len(leaves)], found[len(leaves) :]
    else:
        means = [part.mean() for part in losses]
        mean = means[0] if len(means) == 1 else torch.stack(means).sum()
        at_outputs = torch.autograd.grad(mean, outputs, retain_graph=True, allow_unused=True)
        at_leaves = torch.autograd.grad(objective, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, at_leaves, strict=True)], at_outputs
