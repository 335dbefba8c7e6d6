"""What a run computes: steps, batches and tokens, counted from its data and the clients that it will ask."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .build import Prepared
from .core.rng import Key
from .core.types import ClientId
from .data.text import padded_length
from .engine.evaluation import sample
from .engine.loop import planned
from .inspection import examples_by_client
from .local.batches import PASS_BATCH, grouped_by_length, length_batches
from .local.options import TrainingOptions

_CLIENTS = 50
"""[C] Clients whose batches are counted; they stand for all."""


@dataclass(frozen=True)
class Passes:
    """Batches that go through the model, and their tokens, padding included."""

    batches: float = 0.0
    tokens: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.batches + other.batches, self.tokens + other.tokens)

    def __mul__(self, times: float) -> Passes:
        return Passes(times * self.batches, times * self.tokens)


@dataclass(frozen=True)
class Part:
    """What the clients of one phase compute, over all its rounds.

    Attributes:
        answers: clients' parts of a round.
        steps: optimiser steps.
        passes: examples that pass through the model without a step: to score examples or layers.
        rounds: in which anybody is asked.
    """

    answers: float = 0.0
    steps: float = 0.0
    passes: float = 0.0
    rounds: float = 0.0

    def __add__(self, other: Part) -> Part:
        return Part(self.answers + other.answers, self.steps + other.steps, self.passes + other.passes, self.rounds + other.rounds)

    def share(self, workers: int) -> float:
        """Of the time that clients take one after the other, what they take on so many processes: clients of one size, in turns."""
        each = self.answers / max(1.0, self.rounds)
        return math.ceil(each / workers) / each if each else 1.0


@dataclass(frozen=True)
class Effort:
    """What a run computes.

    Attributes:
        parts: by phase.
        step: a training step.
        example_tokens: of a training example.
        client_tokens: of the longest training example of a client, to which a batch of its texts may be padded.
        evaluations: all of them together, with what clients predict to choose a model of their own.
        predicted: examples that are predicted in them.
    """

    parts: Mapping[str, Part]
    step: Passes
    example_tokens: float
    client_tokens: float
    evaluations: Passes
    predicted: int

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return round(sum(part.steps for part in self.parts.values()))

    @property
    def passes(self) -> int:
        """Examples that pass through the model without a step."""
        return round(sum(part.passes for part in self.parts.values()))

    @property
    def trained_tokens(self) -> float:
        """Tokens that go forward and backward."""
        return self.steps * self.step.tokens + self.passes * self.example_tokens


def plan_effort(prepared: Prepared) -> Effort:
    """What the run of a configuration computes, from the clients that it will ask and the lengths of their texts."""
    config, method, data = prepared.inputs.config, prepared.method, prepared.inputs.data
    sizes = dict(zip(data.clients, examples_by_client(prepared, "train"), strict=True))
    key, per_round = prepared.inputs.key.fold("run"), config.federation.cohort_size(len(sizes))
    parts, evaluations = {phase.name: Part() for phase in method.phases}, 0
    validates, checked, compared = getattr(method, "validation_passes", None), Passes(), 0
    trains_others = getattr(method, "trains_others", None)
    before: Sequence[ClientId] = ()
    for phase, now, asked in planned(method, data.clients, per_round, key, config.federation, prepared.privacy is not None):
        rest = before if trains_others is not None and trains_others(now) else ()
        loads = [method.load(sizes[client], now, min(1.0, per_round / len(sizes))) for client in asked if client not in rest]
        before = asked
        if validates is not None and (times := validates(now)):
            own = [data.client(client).validation.lengths for client in asked]
            checked += sum(map(_passed, own), Passes()) * times
            compared += times * sum(map(len, own))
        parts[now.phase] += Part(len(asked), sum(load.steps for load in loads), sum(load.passes for load in loads), bool(asked))
        evaluations += phase.trains and ((now.index + 1) % config.evaluation.every == 0 or now.index + 1 == now.num_rounds)
    batch_size = config.evaluation.batch_size
    asked = sample(data.clients, config.evaluation.clients, key)
    some = _some(asked)
    everybody = sum((_scored(data.client(c).test, batch_size) + _scored(data.client(c).validation, batch_size) for c in some), Passes())
    everybody *= len(asked) / max(1, len(some))
    held = [data.held_by(asked, part) for part in ("test", "validation")]
    whole = sum((_scored(part, batch_size) for part in held), Passes())
    together = whole + (everybody + whole * method.is_personal) * evaluations + checked  # one of the model at the start
    predicted = (1 + (2 if method.is_personal else 1) * evaluations) * sum(map(len, held)) + compared
    trained = [data.client(client).train.lengths for client in _some(data.clients)]
    example = statistics.mean(float(lengths.double().mean()) for lengths in trained if len(lengths))
    longest = statistics.mean(padded(lengths) for lengths in trained if len(lengths))
    return Effort(parts, _step(prepared), example, longest, together, predicted)


def _step(prepared: Prepared) -> Passes:
    """The mean step of local training: `gradient_accumulation` batches, padded to the longest text of each."""
    data, options = prepared.inputs.data, prepared.inputs.config.training
    counted = [one for client in _some(data.clients) for one in _trained(data.client(client).train, options)]
    mean = statistics.mean(counted) if counted else 0.0
    return Passes(1.0, mean) * options.gradient_accumulation


def _trained(examples: Any, options: TrainingOptions) -> list[int]:
    """Tokens of each batch of an epoch."""
    order = Key(0).permutation(len(examples))
    if options.group_by_length:
        order = grouped_by_length(examples, order, options.batch_size, Key(0))
    return [len(chunk) * padded(examples.lengths[chunk]) for chunk in order.split(options.batch_size) if len(chunk)]


class _Widths:
    """Examples as far as batching goes: a batch is the number of its tokens."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths

    def batch(self, positions: Sequence[int]) -> int:
        return len(positions) * padded(self.lengths[list(positions)])


def _scored(examples: Any, batch_size: int) -> Passes:
    tokens: Any = list(length_batches(_Widths(examples.lengths), batch_size))  # pyright: ignore[reportArgumentType]
    return Passes(len(tokens), sum(tokens))


def _passed(lengths: Tensor) -> Passes:
    """A pass over all of a client's texts, as `local.difficulty` makes it."""
    chunks = [chunk for chunk in lengths.sort().values.split(PASS_BATCH) if len(chunk)]
    return Passes(len(chunks), sum(len(chunk) * padded(chunk) for chunk in chunks))


def padded(lengths: Tensor) -> int:
    """Tokens of each row of a batch of texts of these lengths."""
    return padded_length(int(lengths.max()))


def _some(clients: Sequence[ClientId]) -> Sequence[ClientId]:
    return clients[:: max(1, len(clients) // _CLIENTS)]
