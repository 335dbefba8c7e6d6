"""The tables [federation], [evaluation] and [resources] of a configuration."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ..core.options import Options

CLIENT_NAME = r"[\w.@-]{1,64}"
"""What the name of a client on another machine must match."""

DEFAULT_CLIENTS_PER_ROUND = 5

EXPECTED_NAME = "expected at most 64 letters, digits, `_`, `-`, `.` and `@`"


Schedule: TypeAlias = Literal["synchronous", "over-select", "buffered"]
RobustMean: TypeAlias = Literal["mean", "trimmed-mean", "median", "centred-clipping"]


class _Slowness(Options):
    """By which factor each client is slower than one of factor 1."""

    slow_share: float = Field(default=0.0, ge=0, le=1, description="Fraction of the clients that are slow, drawn from the seed.")
    slow_factor: float = Field(default=10.0, gt=0, description="How many times slower these are.")
    spread: float = Field(
        default=0.0,
        ge=0,
        description="Log-normal factor on top, drawn for each client: standard deviation of its natural logarithm; 0 = none.",
    )
    factors: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None,
        description="How many times slower each client is, in the order of their ids, instead of the draws.",
    )

    @property
    def is_drawn(self) -> bool:
        """Whether a factor is drawn at all."""
        return self.slow_share > 0 or self.spread > 0


class SpeedOptions(_Slowness):
    """How fast each client computes, in virtual time. Simulation only."""

    tokens_per_s: float = Field(
        default=50_000.0,
        gt=0,
        description="Tokens that a client of factor 1 takes through one transformer block per second, forward or backward.",
    )


class LinkOptions(_Slowness):
    """How long messages take, in virtual time. The factors are those of the bandwidths. Simulation only."""

    up_mbit: float | None = Field(
        default=None, gt=0, description="Bandwidth from a client of factor 1, in 10^6 bits per second. Default: no limit."
    )
    down_mbit: float | None = Field(default=None, gt=0, description="Bandwidth to a client of factor 1. Default: no limit.")
    latency_ms: float = Field(default=0.0, ge=0, description="Delay of one message in one direction, for every client.")


class FederationOptions(Options):
    """Clients, rounds, and what happens when a client fails."""

    clients: int = Field(default=50, ge=1, description='K, number of clients; with partition = "column" it is taken from the data.')
    client_names: tuple[str, ...] | None = Field(
        default=None,
        description='With partition = "machines": names of the clients. Default: the first K that connect.',
    )
    clients_per_round: int | None = Field(
        default=None, ge=1, description="m, clients sampled per round. Default: 5, or all clients if there are fewer."
    )
    rounds: int = Field(default=40, ge=1, description="T, number of training rounds.")
    partition: Literal["dirichlet", "iid", "shards", "column", "machines"] = Field(
        default="dirichlet",
        description='How examples are distributed over the clients; "machines": each client is a machine with its own data.',
    )
    alpha: float = Field(
        default=1.0, gt=0, description="Dirichlet concentration of each client's class distribution; small = few classes per client."
    )
    size_alpha: float = Field(default=5.0, gt=0, description="Dirichlet concentration of the clients' sizes; small = very unequal.")
    shards_per_client: int = Field(
        default=2, ge=1, description='For partition = "shards": number of shards of the label-sorted examples per client.'
    )
    on_failure: Literal["stop", "drop"] = Field(
        default="stop",
        description="If a client fails, times out or sends a rejected update: stop the run, or drop the client from the round.",
    )
    quorum: float = Field(
        default=0.0, ge=0, le=1, description="Minimum fraction of the cohort whose updates a round needs; 0 = a single update is enough."
    )
    round_attempts: int = Field(
        default=1,
        ge=1,
        description="Attempts per round, each with a newly sampled cohort, to reach the quorum; after the last one the run stops.",
    )
    round_timeout_s: float = Field(
        default=0.0,
        ge=0,
        description="Time limit for a client's answer in a round or an evaluation, in seconds; 0 = none. Across machines only.",
    )
    exclude_after: int = Field(
        default=0,
        ge=0,
        description="Exclude a client after this many consecutive rejected updates; 0 = never. "
        "The client is not notified and keeps its local state.",
    )
    max_samples: int = Field(
        default=0,
        ge=0,
        description="Reject updates and evaluations of clients that report more training, validation or test examples than this "
        '(with `training.objective` = "token" more labelled tokens of their training examples); 0 = no limit. With '
        "privacy.secure_aggregation updates are not rejected for it: clients with more training examples weigh as much as one with so "
        "many.",
    )
    max_update_norm: float = Field(
        default=0.0,
        ge=0,
        description="Reject updates whose L2 distance from the tensors the client was sent exceeds this; 0 = no limit.",
    )
    on_excess: Literal["reject", "clip"] = Field(
        default="reject",
        description="What becomes of an update that exceeds `max_update_norm`: it is rejected, or scaled down to that norm.",
    )
    aggregation: RobustMean = Field(
        default="mean",
        description="What is made of the clients' updates: their mean, weighted by examples; or, against a minority of hostile or broken "
        'clients, of each number on its own the "median" or the mean without the largest and smallest values ("trimmed-mean"), or the '
        'mean after clipping each update around the median ("centred-clipping"). The robust ones weigh all clients alike.',
    )
    trim: float = Field(
        default=0.2, gt=0, lt=0.5, description='With aggregation = "trimmed-mean": fraction of the values cut off at either end.'
    )
    schedule: Schedule = Field(
        default="synchronous",
        description='When a training round ends: "synchronous" when all of its m clients have answered; "over-select" when m of more '
        'clients have, and the others are dropped; "buffered" after every few answers, while the others go on (FedBuff).',
    )
    over_selection: float = Field(
        default=1.3, ge=1, description='With schedule = "over-select": how many times m clients are asked, rounded up.'
    )
    buffer_size: int | None = Field(
        default=None,
        ge=1,
        description='With schedule = "buffered": answers that are aggregated together, of m clients at work at a time. Default: m / 2, '
        "rounded up.",
    )
    speeds: SpeedOptions = SpeedOptions()
    links: LinkOptions = LinkOptions()

    @property
    def timeout_s(self) -> float | None:
        """Seconds that an exchange may take; None: as long as it takes."""
        return self.round_timeout_s or None

    @property
    def models_time(self) -> bool:
        """Whether a simulation has virtual time."""
        return self.schedule != "synchronous" or self.speeds != SpeedOptions() or self.links != LinkOptions()

    def needed(self, asked: int) -> int:
        """Usable answers that a round with so many clients needs: max(1, ceil(quorum asked)), for a robust mean at least 3."""
        return max(1 if self.aggregation == "mean" else 3, math.ceil(self.quorum * asked - 1e-9))

    def cohort_size(self, clients: int) -> int:
        """How many of so many clients are sampled in a round."""
        return min(DEFAULT_CLIENTS_PER_ROUND, clients) if self.clients_per_round is None else self.clients_per_round


class EvaluationOptions(Options):
    """When and how the models are scored."""

    every: int = Field(default=5, ge=1, description="Evaluate every n rounds, and always before the first and after the last.")
    clients: int | None = Field(
        default=None,
        ge=1,
        description="Clients that take part in evaluations, sampled once per run; scores then cover these alone. Default: all.",
    )
    batch_size: int = Field(default=64, ge=1, description="Examples per forward pass.")
    metric: str | None = Field(
        default=None,
        description="Primary metric, used for scores, tables, targets and the best round. Default: accuracy. Others: macro_f1, "
        "macro_precision, macro_recall, matthews, loss, calibration_error; of two classes f1, precision, recall (of the second one); "
        "of any class f1:NAME, precision:NAME, recall:NAME. For instruction: nll (default), perplexity, token_accuracy; of generated "
        "answers exact_match, rouge_l, stop_rate.",
    )
    generate: int = Field(
        default=0,
        ge=0,
        description="For instruction: test examples of each client, at most, whose answers are generated after the last round, for "
        "exact_match, rouge_l and stop_rate; 0 = none.",
    )
    max_new_tokens: int = Field(default=128, ge=1, description="For instruction: tokens of a generated answer, at most.")
    examples: int = Field(
        default=3,
        ge=0,
        description="For instruction, with `generate`, in a simulation without `privacy.unit`: test examples whose answers by the "
        "untrained, the global and the client's own model are written side by side, as texts, into answers.jsonl and the report; 0 = none.",
    )
    exact_match: Literal["whitespace", "squad", "number"] = Field(
        default="whitespace",
        description="For instruction: how answers are made alike before they are compared: whitespace: white space alone; squad: also "
        "case, punctuation and English articles; number: the last number of each.",
    )
    save: Literal["last", "best"] = Field(
        default="last",
        description="Which models a run saves at its end: those of the last round, or those of the evaluated round with the best "
        "primary metric on the clients' validation parts (the earlier of equals); that round's checkpoint is kept with the newest ones.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Early stopping: training ends after this many consecutive evaluations without a better primary metric on the clients' "
        "validation parts; phases after it, such as a last local training, are still held. Default: all rounds are.",
    )


class ResourceOptions(Options):
    """How much of the machine a run may use."""

    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads per process.")
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Processes that compute clients at the same time, each with `threads` CPU threads; the results are the same for any "
        "number. Default: one per core on Linux where the run computes on the CPU and gains by it, else 1.",
    )
    devices: tuple[str, ...] | None = Field(
        default=None,
        description='Devices that compute clients at the same time, such as ["cuda:0", "cuda:1"], each with a worker process of its own; '
        "the first also holds the global model. Default: `training.device` alone.",
    )
    client_memory_mb: int = Field(default=1024, ge=1, description="Memory for client states, in MB; what exceeds it is kept on disk.")
    activation_cache_mb: int = Field(
        default=0,
        ge=0,
        description="Memory for the outputs of the lowest blocks where these are not trained, in MB: they are computed once per example "
        "instead of in every pass, with the same results; 0 = off.",
    )
    cohort_batch: int = Field(
        default=1,
        ge=1,
        description="Clients of a round that take their optimiser steps in one forward and backward pass, each with its own tensors; "
        "results equal those of one client after the other up to rounding; 1 = off. For methods that train LoRA.",
    )
    checkpoint_every: int = Field(default=1, ge=1, description="Write a checkpoint every n rounds.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Number of checkpoints to keep; older ones are deleted.")
