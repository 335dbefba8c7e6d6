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
    """One trained linear map as it ran on a batch: y = x W^T (+ bias).

    Attributes:
        weight: name of W among the trainable tensors; W is (d_out, d_in).
        bias: name of the bias, or None where there is none or it is not trained.
        input: x, shape (batch, token, d_in), or (batch, d_in) for a head on one vector per example.
        output: y, part of the graph of the losses, shape (batch, token, d_out) or (batch, d_out).
    """

    weight: str
    bias: str | None
    input: Tensor
    output: Tensor


@dataclass(frozen=True)
class Tape:
    """The uses of the trained linear maps in one forward pass; a map that is used twice is here twice.

    The gradient of the *summed* losses at each `output` holds every example's own gradient in its row, since no
    example's loss depends on another's row. `local.fisher` turns both into per-example gradients.
    """

    linears: tuple[TracedLinear, ...]


DELTA = ".delta"
"""Behind the name of an adapted weight: what is added to it, (d_out, d_in), whichever way the module stores the weight."""


@dataclass(frozen=True)
class LowRank:
    """LoRA beside one frozen weight W (d_out, d_in): W + scaling B A.

    Attributes:
        weight: name of W among `adapted_weights`.
        a, b: names of A (r, d_in) and B (d_out, r) among the trainable tensors.
        scaling: alpha / r.
    """

    weight: str
    a: str
    b: str
    scaling: float


Use: TypeAlias = Literal["per-example gradients", "layer importance", "hidden states", "curvature"]
"""What a method may ask of a task beside losses and their gradients; see `Method.uses`."""


class Task(Protocol):
    """A frozen base model with an adapter and a head, as functions of the trainable tensors, whatever it predicts. For what only a task of
    classes can answer, see `core.classification`.

    The module behind it is never left written, so that clients cannot leak into each other, and is used by one call at a time: other
    threads wait. Every method that takes
    `params` rejects names other than the task's own, plus any of `adapted_weights`, which then replace the frozen ones, and plus any of
    them with `DELTA` behind, which are then added to the frozen ones.
    Losses are in nat, one per example: whether they are summed or averaged is the caller's visible choice.
    """

    @property
    def num_layers(self) -> int:
        """L, transformer blocks of the base model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes. Tensors that come in from elsewhere are moved there."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable tensors, sorted."""
        ...

    def init_params(self, key: Key) -> dict[str, Tensor]:
        """P at the start, drawn from `key`; float32, on the CPU."""
        ...

    def layer_of(self, name: str) -> int | None:
        """The 0-based transformer block that a trainable tensor sits in; None: the head."""
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
            ValueError: the task trains something that is not a linear map (its gradients cannot be told apart so).
        """
        ...

    def training(self, key: Key) -> AbstractContextManager[None]:
        """Inside, dropout is on and draws from `key`; outside, and with a rate of 0, there is none."""
        ...

    def adapted_weights(self) -> Mapping[str, Tensor]:
        """The frozen weights that the adapter stands beside, by name."""
        ...

    def low_rank(self) -> tuple[LowRank, ...]:
        """The low-rank maps of the adapter, in order of their weights; none where it is no LoRA."""
        ...

    def exact(self) -> Task:
        """The same function in float32 with kernels that have second derivatives: a copy, for curvature only."""
        ...
