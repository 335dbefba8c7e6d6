"""Options of what a client computes: the table [training] and the parts of [method]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.options import Options


class TrainingOptions(Options):
    """The table [training]: one client's local training, the same for every method."""

    local_epochs: int = Field(default=2, ge=1, description="Passes over the round's examples.")
    batch_size: int = Field(default=8, ge=1, description="Examples per optimiser step.")
    group_by_length: bool = Field(default=True, description="Shuffle so that a batch holds texts of similar length, which saves padding.")
    gradient_accumulation: int = Field(default=1, ge=1, description="Batches per optimiser step, which is that of one large batch.")
    max_steps: int = Field(default=0, ge=0, description="Optimiser steps of one local training at most; 0 = no limit.")
    learning_rate: float = Field(default=2e-3, gt=0, le=1e37, description="At its highest, see schedule and warmup.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="How the learning rate falls over the rounds: not at all, linearly, or along half a cosine, to near 0.",
    )
    warmup: float = Field(default=0.0, ge=0, lt=1, description="Share of the rounds over which the learning rate rises linearly first.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay, with every optimizer.")
    optimizer: Literal["adadelta", "adagrad", "adam", "adamax", "adamw", "nadam", "radam", "rmsprop", "sgd"] = Field(
        default="adamw", description="An optimiser of torch.optim. Its state starts anew each time a client trains."
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Of sgd and rmsprop.")
    max_grad_norm: float = Field(default=0.0, ge=0, description="Clip the norm of each step's gradient to this; 0 = off.")
    class_weights: tuple[float, ...] | Literal["balanced"] | None = Field(
        default=None,
        description="Weight of each class in the training loss, in the order of the classes; balanced = the rarer among the client's "
        "training examples, the heavier.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="[C] Dropout of backbone and adapter while training.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="auto = bf16 where the hardware supports it, else float32."
    )
    device: str = Field(default="auto", description="auto = the first of cuda, mps and cpu that is available.")


class CurriculumOptions(Options):
    """`method.curriculum`: which examples a client trains on in a round, and in which order."""

    order: Literal["fisher", "length", "rarity", "random"] = Field(
        default="fisher", description="[S] fisher: easy to hard by Fisher information. The others are controls with the same pace."
    )
    pace: Literal["linear", "sqrt", "quadratic", "exp", "log", "step", "none"] = Field(
        default="linear",
        description="[C] Pacing function: how the fraction of data grows with the rounds; none = all data in random order in every round.",
    )
    beta: float = Field(default=0.6, gt=0, le=1, description="[C] Fraction of the data used in round 0.")
    alpha: float = Field(default=0.8, gt=0, le=1, description="[C] Fraction of the rounds after which all data are used.")
    order_within_round: Literal["shuffled", "easy_to_hard"] = Field(default="shuffled", description="[C] Order of a round's examples.")
    labels: Literal["true", "model"] = Field(
        default="true", description="[C] Fisher information of the true label, or expected under the model's own."
    )
    fisher_over: Literal["all", "adapter"] = Field(default="all", description="[C] Sum over all trainable tensors, or without the head.")
    rescore_every: int = Field(
        default=0, ge=0, description="[C] Score the examples again after this many local trainings of the client; 0 = never."
    )


class LayerOptions(Options):
    """`method.layers`: which layers are aggregated globally (GAL)."""

    rule: Literal["share", "count", "coverage", "layer_gap", "plateau", "last", "first", "random", "all"] = Field(
        default="share", description="[C] How many and which layers: see docs/methods/fibecfed.md."
    )
    value: float | None = Field(
        default=None,
        gt=0,
        description="[C] Depends on `rule`. share: fraction of the layers, default 0.5. count, last, first, random: number of layers, "
        "default L/2. coverage: fraction of the total importance, default 0.6.",
    )
    importance: Literal["output", "increment"] = Field(
        default="output", description="[S] output: relative change of the block's output; [C] increment over the block before."
    )
    noise_scale: float = Field(default=0.1, gt=0, description="[C] Norm of the noise relative to the norm of the example's embeddings.")
    norm: float = Field(default=2.0, gt=1, description="[C] p of the ball the noise is taken from; inf = signs.")
    importance_examples: int = Field(default=64, ge=1, description="[C] Maximum number of examples per client to measure importance on.")
    importance_clients: int = Field(default=10, ge=1, description="[C] Number of clients that measure importance, drawn from the seed.")
    spectrum_clients: int = Field(
        default=4, ge=1, description="[C] Number of clients that compute the curvature for layer_gap and plateau."
    )
    mu: float = Field(default=1.0, gt=0, description="[C] Factor on the number of layers that layer_gap or plateau finds.")


class NeuronOptions(Options):
    """`method.neurons`: which neurons a client updates in the layers that stay with it."""

    rule: Literal["share", "coverage", "random", "all"] = Field(
        default="share",
        description="[C] share, random: ceil(value x neurons) of each tensor; coverage: fewest that hold that share of the information.",
    )
    value: float | None = Field(default=None, gt=0, le=1, description="[C] rho. share, random: 0.5; coverage: 0.8.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[C] gamma: weight of the Fisher information of earlier rounds.")
