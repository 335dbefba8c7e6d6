"""What the backward passes that train tell besides: Fisher information, and how reliable a client's gradients are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.task import Tape, TracedLinear
from ..core.types import Batch
from .agreement import GradientHalves
from .fisher import Neurons, NeuronSums, squares
from .tokens import Normalise, information_scale


@dataclass(frozen=True)
class Collect:
    """What training takes from its own backward passes, in the first epoch. Fisher information is of the examples' own losses, each
    counting once: neither `weights` nor a penalty has a part in it.

    Attributes:
        neurons: tensors whose neurons' information is averaged over the examples, masked or not; None: all that are trained.
        every: of every so many batches, from the first on.
        traces: whether the trace of every example is kept.
        trace_over: tensors whose squares add up to it; None: all that are trained.
        halves: whether the gradients of the steps are summed in two halves; see `local.agreement`.
        normalise: what the information of an answer of several tokens is divided by; see `information_scale`.
    """

    neurons: Collection[str] | None = None
    every: int = 1
    traces: bool = False
    trace_over: Collection[str] | None = None
    halves: bool = False
    normalise: Normalise = "token"


class Collected:
    """What `Collect` asks for, of the batches of the first epoch so far.

    Args:
        optimizer: name of the one that takes the steps.
    """

    def __init__(self, asked: Collect | None, optimizer: str = "adamw") -> None:
        self._asked = asked
        self._batches = 0
        self._sums = NeuronSums()
        self._traces: list[Tensor] = []
        self._halves = GradientHalves(optimizer != "sgd") if asked is not None and asked.halves else None

    def needed(self) -> Callable[[TracedLinear], bool] | None:
        """Of which linear maps the gradients at their outputs are needed for the next batch; None where nothing is asked of it."""
        asked = self._asked
        if asked is None or not (asked.traces or self._of_neurons):
            return None
        # one whose output requires no gradient lies below all that is trained
        return lambda linear: linear.output.requires_grad and (asked.traces or _among(linear, asked.neurons))

    def add(self, tape: Tape, gradients: Sequence[Tensor | None], scale: float, batch: Batch) -> None:
        """Count that batch: gradients at the outputs that, times `scale`, are those of the summed losses."""
        if self._asked is not None and tape.linears:
            rows_of, trace_over = self._asked.neurons if self._of_neurons else (), self._asked.trace_over if self._asked.traces else ()
            each = information_scale(batch, self._asked.normalise)
            found = squares(tape, gradients, scale=scale, each=each, trace_over=trace_over, rows_of=rows_of)
            if self._of_neurons:
                self._sums.add(found)
            if self._asked.traces:
                self._traces.append(found.trace)
        self._batches += 1

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Count an optimiser step: the gradients of its objective at the trained tensors."""
        if self._halves is not None:
            self._halves.add(gradients)

    @property
    def _of_neurons(self) -> bool:
        """Whether the neurons' information of the next batch is asked for."""
        asked = self._asked
        return asked is not None and (asked.neurons is None or bool(asked.neurons)) and self._batches % asked.every == 0

    def neurons(self) -> Neurons | None:
        return self._sums.mean() if self._sums.num_examples else None

    def traces(self) -> Tensor | None:
        return torch.cat(self._traces).to("cpu", torch.float32) if self._traces else None

    def halves(self, names: Sequence[str]) -> dict[str, Tensor] | None:
        """`GradientHalves.products`, the trained tensors being `names`; None where it was not asked for."""
        return None if self._halves is None else self._halves.products(names)


def _among(linear: TracedLinear, names: Collection[str] | None) -> bool:
    return names is None or linear.weight in names or linear.bias in names
