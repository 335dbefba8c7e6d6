"""What a comparison would send, compute and take, from its models' shapes alone: for plans that the machine at hand cannot run.

Bytes, and parameters of adapter and head, are exact: each method makes its messages for the model itself, on torch's meta device, where
tensors have shapes and no values. Steps come from each run's own schedule. Time and memory are estimates [C]: 4 operations per token and
parameter of the blocks for forward and backward (frozen weights need no gradient of their own), 2 for forward alone; every text as long as
it may be; weights in 2 bytes; activations as in Korthikanti et al. 2023, "Reducing Activation Recomputation in Large Transformer Models",
equation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ...build import Inputs, Prepared, build_method, max_length
from ...check import plan_effort, plan_traffic
from ...config import Config
from ...core.clock import Network
from ...core.errors import UserError
from ...core.rng import Key
from ...core.terminal import escaped
from ...core.trees import num_values
from ...core.units import count, duration
from ...data.federated import FederatedData
from ...data.partition import Partition, client_ids
from ...data.tasks import TASKS
from ...data.text import token_table
from ...engine.traffic import Traffic
from ...models.base_models import PretrainedConfig, find, load_config
from ...models.shapes import Shape, ShapedTask, config_of, shape_of, shaped_task
from .conduct import workers
from .options import ComparisonOptions
from .plan import UNKNOWN_EXAMPLES, job

_NOWHERE = Path()
_TOKENS = 8  # of the made texts; what is sent does not depend on it


@dataclass(frozen=True)
class Price:
    """What all runs of one method come to.

    Attributes:
        values: of adapter and head, of one client, which may train a part of them.
        bytes_down, bytes_up: of a client and round of the last phase; at most, where that is only known once it runs.
        bytes: of all runs, both ways, all clients.
        steps: optimiser steps of all runs.
        operations: of all runs.
        seconds: of all runs, one after the other, clients of a round in parallel, with the default network.
    """

    values: int
    bytes_down: int
    bytes_up: int
    bytes: int
    steps: int
    operations: float
    seconds: float


def price_comparison(comparison: ComparisonOptions, console: Console) -> None:
    """Prints what the comparison would take, with each model of its file.

    Raises:
        UserError: a model whose shape is not known, or a configuration that cannot be priced.
    """
    own = comparison.base.get("model", {}).get("name", "minilm")
    for name in dict.fromkeys((own, *comparison.architecture)):
        model = partial(_model_config, comparison, name)
        shape = shape_of(model())
        runs = len(comparison.methods) * len(comparison.tasks) * len(comparison.seeds)
        _print(console, f"{name}: {shape.family}, {shape.layers} layers, {shape.values / 1e6:,.0f} M values; {count(runs, 'run')}", "bold")
        header = ("method", "adapter and head", "down, each", "up, each", "all runs", "steps", "10^15 operations", "time")
        table = Table(*header, box=None, pad_edge=False)
        prices = {}
        for method in comparison.methods:
            try:
                prices[method] = one = price(comparison, method, model, shape)
            except UserError as error:
                table.add_row(Text(escaped(method)), Text(escaped(f"not priced: {error}")))
                continue
            cells = (f"{one.values:,}", decimal(one.bytes_down), decimal(one.bytes_up), decimal(one.bytes), f"{one.steps:,}")
            table.add_row(*map(Text, (escaped(method), *cells, f"{one.operations / 1e15:,.1f}", duration(one.seconds))))
        console.print(table)
        for line in _notes(comparison, shape, prices):
            _print(console, f"- {line}")
        _print(console, "")
    _print(console, "The comparison is valid. Nothing was trained or written.")


def price(comparison: ComparisonOptions, method: str, model: Callable[[], PretrainedConfig], shape: Shape) -> Price:
    """What all runs of a method come to, with a model of this configuration.

    Raises:
        UserError: it cannot be priced by shape.
    """
    runs, largest = list[tuple[float, float, float, float]](), (0, 0, 0)
    for name in comparison.tasks:
        config, classes = job(comparison, _NOWHERE, name, method, 0).config, _num_classes(name)
        adapter = getattr(config.method, "adapter", None)
        prepared = _prepared(config, shaped_task(model(), config.model, num_classes=classes, adapter=adapter), classes)
        traffic = plan_traffic(prepared)
        runs.append(_of_run(prepared, traffic, shape, 1e12 * comparison.resources.teraflops))
        largest = max(largest, (num_values(prepared.task.params().values()), traffic[-1].down.most, traffic[-1].up.most))
    sent, steps, operations, seconds = (len(comparison.seeds) * sum(column) for column in zip(*runs, strict=True))
    return Price(*largest, round(sent), round(steps), operations, seconds)


def _of_run(prepared: Prepared, traffic: Sequence[Traffic], shape: Shape, speed: float) -> tuple[float, float, float, float]:
    """Bytes, steps, operations, and seconds at `speed` operations per second, of one run."""
    config, network = prepared.inputs.config, Network()
    effort, length = plan_effort(prepared), max_length(prepared.inputs.config)
    trained = 4.0 * shape.block_values * length * (effort.steps * config.training.batch_size + effort.passes)
    scored = 2.0 * shape.block_values * length * effort.predicted
    seconds = trained / config.federation.cohort_size(config.federation.clients) / speed
    for phase in traffic:
        on_the_way = 8e-6 * (phase.down.most / network.down_mbit + phase.up.most / network.up_mbit) + 2e-3 * network.latency_ms
        seconds += phase.num_rounds * on_the_way
    return sum(phase.total.most for phase in traffic), effort.steps, trained + scored, seconds


def _prepared(config: Config, task: ShapedTask, classes: int) -> Prepared:
    """A model and synthetic data of the run's size, put together as a run would."""
    nothing: Any = None  # a price looks at neither tokenizer nor files
    inputs = Inputs(config, nothing, nothing, nothing, _made(config, classes), Key(0))
    return Prepared(inputs, task, build_method(inputs))


def _made(config: Config, classes: int) -> FederatedData:
    """Texts of a few tokens, as many as the run's, spread evenly."""
    train = config.data.max_train or UNKNOWN_EXAMPLES
    fraction = config.data.validation_fraction
    counts = {"train": train, "validation": round(train * fraction / (1 - fraction)), "test": config.data.max_test or train // 4}
    clients = client_ids(config.federation.clients)
    parts, indices = {}, {}
    for name, size in counts.items():
        labels = torch.arange(size) % classes
        parts[name] = token_table(torch.full((size, _TOKENS), 7), labels).view()
        indices[name] = dict(zip(clients, torch.arange(size).tensor_split(len(clients)), strict=True))
    nobody = {name: np.zeros((len(clients), classes), dtype=np.int64) for name in counts}
    spread = Partition("iid", clients, indices, nobody)
    labels = tuple(map(str, range(classes)))
    return FederatedData(parts["train"], parts["validation"], parts["test"], labels, None, spread, torch.zeros(train, dtype=torch.bool))


def _num_classes(task: str) -> int:
    return len(TASKS[task].labels) if task in TASKS else 2


def _model_config(comparison: ComparisonOptions, name: str) -> PretrainedConfig:
    if name in comparison.architecture:
        return config_of(name, comparison.architecture[name])
    try:
        return load_config(find(job(comparison, _NOWHERE, comparison.tasks[0], comparison.methods[0], 0).config.model))
    except UserError as error:
        raise UserError(f'{str(error).rstrip(".")}. To price it without its files, write its shapes into [architecture."{name}"]') from None


def _notes(comparison: ComparisonOptions, shape: Shape, prices: Mapping[str, Price]) -> Iterator[str]:
    configs = [job(comparison, _NOWHERE, task, comparison.methods[0], 0).config for task in comparison.tasks]
    longest = max(max_length(config) for config in configs)
    batch = configs[0].training.batch_size
    per_layer = longest * batch * shape.hidden * (34 + 5 * shape.heads * longest / shape.hidden)
    most = max((one.values for one in prices.values()), default=0)
    needed = 2 * shape.values + 16 * most + shape.layers * per_layer
    yield (
        f"memory while training: about {decimal(round(needed))} = weights {decimal(2 * shape.values)} in bf16, "
        f"activations {decimal(round(shape.layers * per_layer))} for {batch} x {longest} tokens, "
        f"parameters of adapter and head with gradient and two moments at most {decimal(16 * most)}"
    )
    operations, sent = sum(one.operations for one in prices.values()), sum(one.bytes for one in prices.values())
    at_once, speed = workers(comparison), comparison.resources.teraflops
    least = comparison.tuning.trials * len(comparison.tuning.tasks) * len(comparison.methods)
    yield (
        f"all methods: {decimal(sent)}, and {duration(operations / (1e12 * speed) / at_once)} of computing at {speed:g} x 10^12 operations "
        f"per second (resources.teraflops), {at_once} {'run' if at_once == 1 else 'runs'} at a time"
    )
    if least:
        most_trials = least + comparison.tuning.extend * len(comparison.tuning.tasks) * len(comparison.methods)
        yield f"tuning comes on top: {least} to {most_trials} runs"
    network = Network().describe().rsplit(",", 1)[0]
    yield f"time: all runs one after the other, clients of a round in parallel, each at that speed, {network}"
    if any(config.data.max_train is None for config in configs):
        yield f"a task without data.max_train counts {UNKNOWN_EXAMPLES:,} training examples; what it has is only known when it is read"
    yield "bytes and parameters of adapter and head are exact; all else is estimated (docs/comparison.md)"


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(escaped(text), style=style), soft_wrap=True)
