"""What a comparison would send, compute and take, from its models' shapes alone: for plans that the machine at hand cannot run.

Bytes, and parameters of adapter and head, are found out, not looked up: each method's messages are made and encoded with six small random
models of the same family (hidden sizes 64, 256 and 512, 2 and 4 layers). They are linear in the number of layers and quadratic in the
hidden size, which six points determine; the digits in the messages' headers are not, which leaves less than 1 % of doubt. Steps come from
each run's own schedule. Time and memory are estimates [C]: 4 operations per token and parameter of the blocks for forward and
backward (frozen weights need no gradient of their own), 2 for forward alone; every text as long as it may be; weights in 2 bytes;
activations as in Korthikanti et al. 2023, "Reducing Activation Recomputation in Large Transformer Models", equation 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from ...core.units import count, duration
from ...data.federated import FederatedData
from ...data.partition import Partition, client_ids
from ...data.tasks import TASKS
from ...data.text import token_table
from ...models.backbones import find, load_config
from ...models.shapes import Shape, UnknownFamily, config_of, shape_of, small_task
from ...models.transformer_task import TransformerTask
from .conduct import workers
from .options import Comparison
from .plan import UNKNOWN_EXAMPLES, job

_HIDDEN, _LAYERS = (64, 256, 512), (2, 4)
_NOWHERE = Path()
_TOKENS = 8  # of the made texts; messages do not depend on it


@dataclass(frozen=True)
class Price:
    """What all runs of one method come to.

    Attributes:
        values: of adapter and head, of one client, which may train a part of them.
        bytes_down, bytes_up: of a client and round of the last phase.
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


def price_comparison(comparison: Comparison, console: Console) -> None:
    """Prints what the comparison would take, with each model of its file.

    Raises:
        UserError: a model whose shape is not known, or a configuration that cannot be priced.
    """
    own = comparison.base.get("model", {}).get("name", "minilm")
    for name in dict.fromkeys((own, *comparison.architecture)):
        shape = _shape(comparison, name)
        runs = len(comparison.methods) * len(comparison.tasks) * len(comparison.seeds)
        _print(console, f"{name}: {shape.family}, {shape.layers} layers, {shape.values / 1e6:,.0f} M values; {count(runs, 'run')}", "bold")
        header = ("method", "adapter and head", "down, each", "up, each", "all runs", "steps", "10^15 operations", "time")
        table = Table(*header, box=None, pad_edge=False)
        prices = {}
        for method in comparison.methods:
            try:
                prices[method] = one = price(comparison, method, shape)
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


def price(comparison: Comparison, method: str, shape: Shape) -> Price:
    """What all runs of a method come to, with a model of this shape.

    Raises:
        UserError: it cannot be priced by shape.
    """
    configs = [job(comparison, _NOWHERE, task, method, 0).config for task in comparison.tasks]
    if configs[0].model.head == "label-words":
        raise UserError('model.head = "label-words" needs the model itself')
    widest = max(range(len(configs)), key=lambda n: _num_classes(comparison.tasks[n]))
    classes = _num_classes(comparison.tasks[widest])
    sized = _extrapolated(configs[widest], shape, classes)
    task = _small(configs[0], shape, _LAYERS[0], _HIDDEN[0], classes)
    runs = [_of_run(_prepared(config, task, classes), sized, shape, 1e12 * comparison.resources.teraflops) for config in configs]
    sent, steps, operations, seconds = (len(comparison.seeds) * sum(column) for column in zip(*runs, strict=True))
    down, up = sized.sizes[-1]
    return Price(round(sized.values), round(down), round(up), round(sent), round(steps), operations, seconds)


def _of_run(prepared: Prepared, sized: _Sized, shape: Shape, speed: float) -> tuple[float, float, float, float]:
    """Bytes, steps, operations, and seconds at `speed` operations per second, of one run."""
    config, network = prepared.inputs.config, Network()
    effort, length = plan_effort(prepared), max_length(prepared.inputs.config)
    trained = 4.0 * shape.block_values * length * (effort.steps * config.training.batch_size + effort.passes)
    scored = 2.0 * shape.block_values * length * effort.predicted
    sampled = config.federation.cohort_size(config.federation.clients)
    sent, seconds = 0.0, trained / sampled / speed
    for phase, (down, up) in zip(prepared.method.phases, sized.sizes, strict=True):
        cohort = sampled if phase.cohort == "sampled" else min(phase.cohort, config.federation.clients)
        sent += phase.num_rounds * cohort * (down + up)
        on_the_way = 8e-6 * (down / network.down_mbit + up / network.up_mbit) + 2e-3 * network.latency_ms
        seconds += phase.num_rounds * on_the_way
    return sent, effort.steps, trained + scored, seconds


@dataclass(frozen=True)
class _Sized:
    """Parameters of adapter and head, and bytes down and up by phase."""

    values: float
    sizes: list[tuple[float, float]]


def _extrapolated(config: Config, shape: Shape, classes: int) -> _Sized:
    points = [(layers, hidden) for layers in _LAYERS for hidden in _HIDDEN]
    rows = []
    for layers, hidden in points:
        prepared = _prepared(config, _small(config, shape, layers, hidden, classes), classes)
        values = sum(value.numel() for value in prepared.task.params().values())
        # where the number of shared layers is only found out in the run, the most that it may be
        rows.append([values, *(size for phase in plan_traffic(prepared) for size in (phase.down[1], phase.up[1]))])
    solved = np.linalg.solve(np.array([_basis(*point) for point in points]), np.array(rows, dtype=np.float64))
    values, *sizes = (_basis(shape.layers, shape.hidden) @ solved).tolist()
    return _Sized(values, list(zip(sizes[::2], sizes[1::2], strict=True)))


def _basis(layers: int, hidden: int) -> np.ndarray:
    return np.array([power * layers**n for n in (0, 1) for power in (1.0, hidden, hidden**2)], dtype=np.float64)


def _small(config: Config, shape: Shape, layers: int, hidden: int, classes: int) -> TransformerTask:
    adapter = getattr(config.method, "adapter", None)
    return small_task(shape.family, layers=layers, hidden=hidden, options=config.model, adapter=adapter, num_classes=classes)


def _prepared(config: Config, task: TransformerTask, classes: int) -> Prepared:
    """A small model and made data of the run's size, put together as a run would."""
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


def _shape(comparison: Comparison, name: str) -> Shape:
    try:
        return shape_of(_model_config(comparison, name))
    except UnknownFamily as error:
        way_out = f'write its sizes into [architecture."{name}"] with the model_type among them that is nearest'
        raise UserError(
            f"{error}; to price it like one of them, {way_out}. The comparison itself can be made: the price is an estimate"
        ) from None


def _model_config(comparison: Comparison, name: str) -> Any:
    if name in comparison.architecture:
        return config_of(name, comparison.architecture[name])
    try:
        return load_config(find(job(comparison, _NOWHERE, comparison.tasks[0], comparison.methods[0], 0).config.model))
    except UserError as error:
        raise UserError(f'{str(error).rstrip(".")}. To price it without its files, write its shapes into [architecture."{name}"]') from None


def _notes(comparison: Comparison, shape: Shape, prices: Mapping[str, Price]) -> Iterator[str]:
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
    yield "measured on small models of the family: bytes, parameters of adapter and head; all else is estimated (docs/comparison.md)"


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(escaped(text), style=style), soft_wrap=True)
