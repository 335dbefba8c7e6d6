"""Options of what a client computes: the table [training] and the parts of [method]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.options import Options

Pace = Literal["linear", "sqrt", "quadratic", "exp", "log", "step", "none"]
LayerRule = Literal["share", "count", "coverage", "layer_gap", "plateau", "last", "first", "random", "all", "agreement"]
NeuronRule = Literal["share", "coverage", "random", "all"]


class TrainingOptions(Options):
    """The table [training]: one client's local training, the same for every method."""

    local_epochs: int = Field(default=2, ge=1, description="Epochs of local training per round.")
    batch_size: int = Field(default=8, ge=1, description="Examples per optimiser step.")
    group_by_length: bool = Field(default=True, description="Batch texts of similar length together, which saves padding.")
    gradient_accumulation: int = Field(
        default=1, ge=1, description="Batches accumulated per optimiser step; the step equals that of one large batch."
    )
    objective: Literal["token", "example"] = Field(
        default="token",
        description="[C] Of answers: the mean loss of a step's labelled tokens, or of its examples; clients then weigh in aggregations by "
        "their labelled tokens, or by their examples. Examples with a class have one token each.",
    )
    max_steps: int = Field(default=0, ge=0, description="Maximum number of optimiser steps per local training; 0 = no limit.")
    learning_rate: float = Field(
        default=2e-3,
        gt=0,
        le=1e37,
        description="Peak learning rate; see schedule and warmup. A configuration that does not give it has that of its method, which "
        "`fibecfed list methods` shows: 0.002 for FibecFed and most that train LoRA.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="Learning-rate schedule over the rounds: constant, or linear or cosine decay to near 0. A last training of each "
        "client (`method.finetune`) is at the mean rate of the rounds.",
    )
    warmup: float = Field(default=0.0, ge=0, lt=1, description="Fraction of the rounds with linear warm-up of the learning rate.")
    weight_decay: float = Field(default=0.01, ge=0, description="Decoupled weight decay, with every optimiser.")
    optimizer: Literal["adadelta", "adagrad", "adam", "adamax", "adamw", "nadam", "radam", "rmsprop", "sgd"] = Field(
        default="adamw", description="An optimiser of torch.optim; its state is reset each time a client trains."
    )
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum of sgd and rmsprop.")
    max_grad_norm: float = Field(default=0.0, ge=0, description="Clip the gradient norm of each step to this; 0 = off.")
    class_weights: tuple[float, ...] | Literal["balanced"] | None = Field(
        default=None,
        description="Weight of each class in the training loss, in the order of the classes; balanced = inversely proportional to the "
        "class frequency in the client's training examples.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="[C] Dropout of base model and adapter during training.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="auto = bf16 where the hardware supports it, else float32."
    )
    device: str = Field(default="auto", description="auto = the first of cuda, mps and cpu that is available.")


class CurriculumOptions(Options):
    """`method.curriculum`: which examples a client trains on in a round, and in which order."""

    order: Literal["fisher", "nll", "ira", "length", "rarity", "random"] = Field(
        default="fisher",
        description="[S] fisher: easy to hard by Fisher information. The others are controls with the same pacing function; [C] nll: loss "
        "per labelled token; ira: instruction-response alignment, by how much the prompt lowers the loss of the answer (FedDQC).",
    )
    normalise: Literal["token", "none", "mean", "length-bins"] = Field(
        default="token",
        description="[C] By what the Fisher information of an answer of n labelled tokens is divided, for examples and neurons: token: n; "
        "none: nothing; mean: n^2; length-bins: n, and examples are ranked among answers of like length.",
    )
    pace: Pace = Field(
        default="linear",
        description="[C] Pacing function: how the fraction of data grows with the rounds; none = all data in random order in every round.",
    )
    beta: float = Field(default=0.6, gt=0, le=1, description="[C] Fraction of the data used in round 0.")
    alpha: float = Field(default=0.8, gt=0, le=1, description="[C] Fraction of the rounds after which all data are used.")
    order_within_round: Literal["shuffled", "easy_to_hard"] = Field(
        default="shuffled", description="[C] Order of the examples within a round."
    )
    labels: Literal["true", "model"] = Field(
        default="true", description="[C] Fisher information with the true label, or expected under the model's predicted distribution."
    )
    fisher_over: Literal["all", "adapter"] = Field(
        default="all", description="[C] Sum over all trainable parameters, or over those of the adapter without the head."
    )
    scoring: Literal["pass", "training"] = Field(
        default="pass",
        description="[S] pass: the examples are scored in a separate pass. [C] training: by the backward passes of local training, "
        "from score_after on; examples not seen yet keep a random rank. Neurons are then selected from a client's second training on.",
    )
    rescore_every: int = Field(
        default=0, ge=0, description="[C] Score the examples again every n local trainings of the client; 0 = never."
    )


class LayerOptions(Options):
    """`method.layers`: which layers are aggregated globally (GAL)."""

    rule: LayerRule = Field(default="share", description="[C] Selects the layers and their number: see docs/methods/fibecfed.md.")
    value: float | None = Field(
        default=None,
        gt=0,
        description="[C] Depends on `rule`. share: fraction of the layers, default 0.5. count, last, first, random: number of layers, "
        "or, except for count, a fraction of them; default L/2. coverage: fraction of the total importance, default 0.6.",
    )
    importance: Literal["output", "increment"] = Field(
        default="output",
        description="[S] output: relative change of the block's output; [C] increment: its increase over the previous block.",
    )
    importance_round: Literal["separate", "first"] = Field(
        default="separate",
        description="[S] separate: importance is measured in a separate round before tuning. [C] first: in the first tuning round, by "
        "its clients instead of `importance_clients`, before they train; they update every neuron in it.",
    )
    first_layers: Literal["all", "last"] = Field(
        default="all",
        description='[C] Layers aggregated in the first tuning round with `importance_round` = "first": all, or the last ones, as many as '
        "`rule` selects (coverage: L/2).",
    )
    noise_scale: float = Field(default=0.1, gt=0, description="[C] Norm of the noise relative to the norm of the example's embeddings.")
    norm: float = Field(default=2.0, gt=1, description="[C] p of the L_p ball that the noise is taken from; inf = sign of the gradient.")
    importance_examples: int = Field(default=64, ge=1, description="[C] Maximum number of examples per client for measuring importance.")
    importance_clients: int = Field(default=10, ge=1, description="[C] Number of clients that measure importance, sampled by the seed.")
    spectrum_clients: int = Field(
        default=4, ge=1, description="[C] Number of clients that compute the curvature for layer_gap and plateau."
    )
    mu: float = Field(default=1.0, gt=0, description="[C] Factor on the number of layers that layer_gap or plateau finds.")
    after: int | None = Field(
        default=None,
        ge=1,
        description="[C] With the rule agreement, rounds of training before a layer may stop being shared; default ceil(0.2 rounds).",
    )
    momentum: float = Field(default=0.8, ge=0, lt=1, description="[C] Weight of earlier rounds in what the rule agreement measures.")
    mean_every: int | None = Field(
        default=None,
        ge=0,
        description="[C] Clients send every layer in every n-th round and in the last one, so that the server has a mean of those that "
        "are not shared; it is sent down from then on, for new clients and for `pull`. Default: 5 with the rule agreement, else 0 = never.",
    )
    pull: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="[C] How far a client moves its own copy of a layer that is not shared towards the mean of all, before it trains or "
        "predicts: 0 = not at all, 1 = it begins with the mean. Needs `mean_every`.",
    )


class NeuronOptions(Options):
    """`method.neurons`: which neurons a client updates in the layers that are not aggregated."""

    rule: NeuronRule = Field(
        default="share",
        description="[C] share, random: ceil(value x neurons) of each tensor; coverage: the fewest with that fraction of the information.",
    )
    value: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="[C] rho, fraction of the neurons or of their information. Default: 0.5 for share and random, 0.8 for coverage.",
    )
    every: int = Field(default=1, ge=1, description="[C] Measure the Fisher information of the neurons on every n-th batch.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[C] gamma: weight of the Fisher information of earlier rounds.")
