"""The contract between a model and everything that trains or examines it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .rng import Key
from .statistics import Statistics
from .types import Batch, Params


@dataclass(frozen=True)
class TracedLinear:
    """One use of a trained linear map on a batch: y = x W^T (+ bias).

    Attributes:
        weight: name of W among the trainable parameters; W is (d_out, d_in).
        bias: name of the bias, or None if there is none or it is not trained.
        input: x, shape (batch, token, d_in), or (batch, d_in) for a head on one vector per example.
        output: y, part of the graph of the losses, shape (batch, token, d_out) or (batch, d_out).
    """

    weight: str
    bias: str | None
    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Tape:
    """The uses of the trained linear maps in one forward pass; a map that is used twice occurs twice.

    The gradient of the *summed* losses at each `output` holds every example's own gradient in its row, since no
    example's loss depends on another's row. `local.fisher` turns both into per-example gradients.
    """

    linears: tuple[TracedLinear, ...]


DELTA = ".delta"
"""Suffix to the name of an adapted weight: what is added to it, (d_out, d_in), however the module stores the weight."""


@dataclass(frozen=True)
class LowRank:
    """LoRA of one frozen weight W (d_out, d_in): W + scaling B A.

    Attributes:
        weight: name of W, among `adapted_weights` unless it is quantised.
        a, b: names of A (r, d_in) and B (d_out, r) among the trainable tensors.
        scaling: alpha / r.
    """

    weight: str
    a: str
    b: str
    scaling: float


Use: TypeAlias = Literal["per-example gradients", "layer importance", "hidden states", "curvature", "joined passes"]
"""What a method may need of a task besides losses and their gradients, see `Method.uses`; joined passes are what `resources.cohort_batch`
asks for."""


class Task(Protocol):
    """A frozen base model with an adapter and a head, as functions of the trainable parameters, whatever it predicts. For what only a
    classification task has, see `core.classification`.

    The module behind it is never left modified, so that no information leaks between clients, and is used by one call at a time: other
    threads wait. Every method with an argument `params` accepts exactly the task's own names, optionally with names of `adapted_weights`,
    which then replace the frozen weights, and with these names plus `DELTA`, which are then added to the frozen weights.
    Losses are in nat, one per example: the caller decides whether to sum or to average.
    """

    @property
    def num_layers(self) -> int:
        """L, number of transformer blocks of the base model."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the computation. Inputs on other devices are moved there."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable parameters, sorted."""
        ...

    def init_params(self, key: Key) -> dict[str, Tensor]:
        """Initial parameters P, drawn from `key`; float32, on the CPU."""
        ...

    def layer_of(self, name: str) -> int | None:
        """The 0-based transformer block of a trainable parameter; None for the head."""
        ...

    def losses(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> Float[Tensor, " batch"]:
        """-log p(what is to be predicted given the text; params) of each example, float32 or better. `embeddings` replace those of
        `input_ids`."""
        ...

    @property
    def statistics(self) -> Statistics:
        """The sums that `sums` gives."""
        ...

    def sums(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        """Sums over the examples of a batch, without a graph, on the CPU: what every metric is computed from."""
        ...

    def embed(self, batch: Batch) -> Float[Tensor, "batch token hidden"]:
        """Input embeddings of the tokens, before anything is added to them."""
        ...

    def hidden_states(
        self, params: Params, batch: Batch, embeddings: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch token hidden"], ...]:
        """The output of each of the L blocks."""
        ...

    def traced(self, params: Params, batch: Batch) -> tuple[Float[Tensor, " batch"], Tape]:
        """Losses, and the trained linear maps that led to them, one entry per use. Every trainable tensor belongs to at least one.

        Raises:
            ValueError: the task trains something that is not a linear map (its per-example gradients cannot be computed this way).
        """
        ...

    def training(self, key: Key) -> AbstractContextManager[None]:
        """Context in which dropout is on and draws from `key`; outside, and at rate 0, there is none."""
        ...

    def adapted_weights(self) -> Mapping[str, Tensor]:
        """The frozen weights that the adapter updates, by name; none that are quantised."""
        ...

    def low_rank(self) -> tuple[LowRank, ...]:
        """The low-rank maps of the adapter, in order of their weights; empty if it is not LoRA."""
        ...

    def exact(self) -> Task:
        """The same function in float32 with kernels that have second derivatives: a copy, for curvature only."""
        ...
