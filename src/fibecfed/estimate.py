"""The seconds of a run on this machine: what it computes, times what a client's part of a round takes, measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .build import Prepared, build_method
from .core.method import Phase, Received
from .core.rng import Key
from .core.types import ClientData, ClientId, Round
from .core.wire import decode, encode
from .data.text import TableExamples
from .effort import Effort, Passes, padded
from .engine.runtime import ClientRuntime, unframe
from .engine.stopwatch import Stopwatch
from .inspection import examples_by_client

_SCORED = 16
"""[C] Examples, at most, of the batch on which an evaluation is measured."""
_MEASURED = 64
"""[C] Examples, at most, of a client that is measured in a phase in which nobody trains."""


@dataclass(frozen=True)
class Line:
    """Seconds of a pass: so many for each, and so many for each token."""

    each: float
    per_token: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line:
        """Through two points (tokens, seconds), nothing below 0; where the tokens are alike, their mean for each."""
        (x, a), (y, b) = sorted(points)
        slope = max(0.0, (b - a) / (y - x)) if y > x else 0.0
        return cls(max(0.0, a - slope * x) if slope else (a + b) / 2, slope)

    def of(self, passes: Passes) -> float:
        """Seconds of passes."""
        return self.each * passes.batches + self.per_token * passes.tokens


@dataclass(frozen=True)
class PhasePace:
    """Seconds of a phase.

    Attributes:
        trains: whether clients take steps in it.
        client: of a step; where nobody trains, of a client's whole part, by the tokens of its longest example.
        example: of an example that passes through the model without a step.
        server: of an answer, on the server.
    """

    trains: bool
    client: Line
    example: Line
    server: float


@dataclass(frozen=True)
class Pace:
    """What this machine takes.

    Attributes:
        phases: by name.
        evaluation: a batch in an evaluation.
    """

    phases: Mapping[str, PhasePace]
    evaluation: Line

    def seconds(self, effort: Effort, workers: int = 1) -> tuple[float, float]:
        """Of a run's training and of its evaluations: CPU seconds where it computes on a CPU; with several workers those on the wall."""
        training = 0.0
        for name, part in effort.parts.items():
            pace = self.phases[name]
            if pace.trains:
                clients = pace.client.of(effort.step * part.steps) + pace.example.of(Passes(1.0, effort.example_tokens) * part.passes)
            else:
                clients = pace.client.of(Passes(1.0, effort.client_tokens) * part.answers)
            training += clients * part.share(workers) + pace.server * part.answers
        return training, self.evaluation.of(effort.evaluations) / workers

    def step_seconds(self, effort: Effort) -> float:
        """Of a step in the last phase in which clients train; 0 where there is none."""
        training = [pace for pace in self.phases.values() if pace.trains]
        return training[-1].client.of(effort.step) if training else 0.0


def measure(prepared: Prepared) -> Pace:
    """The pace of a method: a client's part of each phase's last round and an evaluation, on few texts, the shortest and the longest.

    What the engine does around a client's part (reading and writing messages and states) is measured with it.
    """
    inputs = prepared.inputs
    config, train = inputs.config, inputs.data.train
    brief = config.training.model_copy(update={"local_epochs": 1})
    method = build_method(replace(inputs, config=config.model_copy(update={"training": brief})))
    bench = _Bench(replace(prepared, method=method), inputs.data.clients[0], inputs.key.fold("pace"))
    sizes = examples_by_client(prepared, "train")
    phases = dict[str, PhasePace]()
    for number, phase in enumerate(method.phases):
        count = 2 * config.training.batch_size if phase.trains else min(_MEASURED, round(statistics.median(sizes)))
        phases[phase.name] = bench.phase(phase, number, list(_ends(train, max(1, count))), warm=not phases)
    scored = inputs.data.test if len(inputs.data.test) else train
    few, many = next(_ends(scored, 4)), list(_ends(scored, min(_SCORED, config.evaluation.batch_size)))[1]
    return Pace(phases, Line.through([bench.evaluation(examples) for examples in (few, many)]))


class _Bench:
    """One client in this process, and a stopwatch."""

    def __init__(self, prepared: Prepared, client: ClientId, key: Key) -> None:
        self.prepared, self.method, self.client = prepared, prepared.method, client
        self.device = prepared.task.device
        self.start = self.method.init(prepared.task, key.fold("init"))
        self.states, self.data = _Memory(), prepared.inputs.data.client(client)
        batch_size = prepared.inputs.config.evaluation.batch_size
        self.runtime = ClientRuntime(self.method, prepared.task, lambda _: self.data, self.states, key, batch_size)

    def phase(self, phase: Phase[Any, Any, Any, Any], number: int, ends: Sequence[TableExamples], *, warm: bool) -> PhasePace:
        """A client's first part of a phase, in which its examples may be scored, and two later ones; at both lengths."""
        now = Round(phase.name, phase.num_rounds - 1, phase.num_rounds, number)
        server = self.method.outlook(self.start, now)[-1]
        sent = phase.broadcast(server, now)
        self.blob, self.now = encode(sent if phase.address is None else phase.address(server, sent, self.client)), now
        points, examples, steps, reply = list[tuple[float, float]](), list[tuple[float, float]](), 0, b""
        for held in (*([ends[0]] if warm else []), *ends):
            self.data, before = ClientData(held, held.select(torch.arange(0)), held.select(torch.arange(0))), dict(self.states.blobs)
            (first, reply), (later, _), (again, _) = (self._timed(self._train) for _ in range(3))
            self.states.blobs = before
            steps, later = unframe(reply)[1].steps, (later + again) / 2
            passes = self.method.load(len(held), now, 0.0).passes
            width = float(padded(held.lengths))
            examples.append((width, max(0.0, first - later) / passes if passes else 0.0))
            points.append((self._step(len(held)) * width, later / steps) if steps else (width, later))
        answer = decode(phase.up, unframe(reply)[0])
        seconds, _ = self._timed(lambda: phase.aggregate(server, [Received(self.client, answer)], now))
        return PhasePace(steps > 0, Line.through(points[-2:]), Line.through(examples[-2:]), seconds)

    def evaluation(self, examples: TableExamples) -> tuple[float, float]:
        """Tokens and seconds of an evaluation of one batch, by the last phase's message."""
        self.data = replace(self.data, test=examples)
        seconds = min(self._timed(lambda: self.runtime.evaluate("evaluate", self.client, self.blob, self.now))[0] for _ in range(2))
        return float(len(examples) * padded(examples.lengths)), seconds

    def _step(self, size: int) -> float:
        """Examples of a step, of so many."""
        options = self.prepared.inputs.config.training
        return size / -(-size // options.batch_size) * options.gradient_accumulation

    def _train(self) -> bytes:
        return self.runtime.train(self.client, self.blob, self.now)[0]

    def _timed(self, compute: Callable[[], Any]) -> tuple[float, Any]:
        watch = Stopwatch(self.device)
        found = compute()
        return watch.seconds(), found


class _Memory:
    """A client's state between its measured parts."""

    def __init__(self) -> None:
        self.blobs: dict[ClientId, bytes] = {}

    def get(self, client: ClientId) -> bytes | None:
        return self.blobs.get(client)

    def put(self, client: ClientId, blob: bytes) -> None:
        self.blobs[client] = blob

    def begin(self, number: int) -> None:
        """Every part continues the one before."""

    before = get


def _ends(examples: TableExamples, number: int) -> Iterator[TableExamples]:
    """The shortest texts and the longest."""
    order = torch.argsort(examples.lengths, stable=True)
    yield examples.select(order[:number])
    yield examples.select(order[-number:])
