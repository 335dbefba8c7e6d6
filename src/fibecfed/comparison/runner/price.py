"""What a comparison would send, compute and take, before it is started.

Bytes, and parameters of adapter and head, are exact: each method makes its messages for the model itself, on torch's meta device, where
tensors have shapes and no values. Batches and their tokens are counted from the data. Seconds are measured on this machine, a client's part
of a round and an evaluation for each method; a model that is not here, or a file that names `resources.teraflops`, is priced by operations
[C]: 4 per token and parameter of the blocks for forward and backward (frozen weights need no gradient of their own), 2 for forward alone.
Memory: weights in 2 bytes; activations as in Korthikanti et al. 2023, "Reducing Activation Recomputation in Large Transformer Models",
equation 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from ...build import Prepared, build_method, prepare
from ...check import plan_traffic
from ...core.errors import UserError
from ...core.metrics import primary
from ...core.process import kept_memory, threads
from ...core.rng import Key
from ...core.statistics import of_classes
from ...core.terminal import escaped
from ...core.trees import num_values
from ...core.units import count, duration
from ...effort import Effort, plan_effort
from ...estimate import measure
from ...models.base_models import PretrainedConfig, find, load_config, load_model
from ...models.kept import KeptWeights
from ...models.objectives import ClassHead
from ...models.shapes import Shape, config_of, shape_of, shaped_task
from ...reading import max_length
from ...rehearsal import peak_memory, rehearse
from .conduct import workers
from .left import Counts, Left, left
from .options import ComparisonOptions
from .plan import job
from .sizes import Sizes

_NOWHERE = Path()
_MOST_VALUES = 10**9
"""[C] Parameters of the largest model that is loaded to measure it."""
_ELSEWHERE = 100.0
"""[C] 10^12 operations per second where nothing is measured or given: a third of an A100's."""


@dataclass(frozen=True)
class Model:
    """One that a comparison is priced with.

    Attributes:
        config: makes its configuration; anew each time, since the number of classes is written into it.
        drawn: modules that its file has no weights for.
        weights: where its weights are kept; None for one that is not measured here.
    """

    name: str
    config: Callable[[], PretrainedConfig]
    shape: Shape
    drawn: tuple[str, ...] = ()
    weights: KeptWeights | None = None


@dataclass(frozen=True)
class Price:
    """What the runs of one method come to.

    Attributes:
        values: of adapter and head, of one client, which may train a part of them.
        bytes_down, bytes_up: of a client and round of the last phase; at most, where that is only known once it runs.
        bytes, steps, operations: of all runs, those that are done included.
        seconds: of one run, by task; CPU seconds of this machine where it was measured and computes on its CPU.
    """

    values: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    bytes: int = 0
    steps: int = 0
    operations: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])

    def of(self, method: str, runs: Counts) -> float:
        """Seconds of so many runs of it."""
        mean = sum(self.seconds.values()) / max(1, len(self.seconds))  # of a task that rates are tuned on alone
        return sum(self.seconds.get(task, mean) * number for (task, name), number in runs.items() if name == method)


@dataclass(frozen=True)
class Total:
    """Seconds of what is to be made, one after the other."""

    runs: float
    trials: float
    more_trials: float

    @property
    def seconds(self) -> float:
        """At least: without the trials beyond the best rates."""
        return self.runs + self.trials


def price_comparison(comparison: ComparisonOptions, console: Console, out: Path = _NOWHERE / "nowhere") -> Total:
    """Prints what the comparison would take, with each model of its file.

    Args:
        out: the folder whose finished runs are not counted.

    Returns:
        What it would take with the model of its runs.

    Raises:
        UserError: a model whose shape is not known, a configuration that cannot be priced, or a metric that the data cannot give.
    """
    own = comparison.base.get("model", {}).get("name", "minilm")
    to_do, totals = left(comparison, out), dict[str, Total]()
    sizes = Sizes(comparison, own not in comparison.architecture)
    _reject_metric(comparison, sizes)
    for name in dict.fromkeys((own, *comparison.architecture)):
        model = _model(comparison, name)
        shape, runs = model.shape, len(comparison.methods) * len(comparison.tasks) * len(comparison.seeds)
        _print(console, f"{name}: {shape.family}, {shape.layers} layers, {shape.values / 1e6:,.0f} M values; {count(runs, 'run')}", "bold")
        unit = "CPU time" if model.weights is not None else "time"
        header = ("method", "adapter and head", "down, each", "up, each", "all runs", "steps", "10^15 operations", unit)
        table = Table(*(Column(name, overflow="fold") for name in header), box=None, pad_edge=False)
        prices = {}
        for method in comparison.methods:
            try:
                prices[method] = one = price(comparison, method, model, sizes)
            except UserError as error:
                table.add_row(Text(escaped(method)), Text(escaped(f"not priced: {error}")))
                continue
            cells = (f"{one.values:,}", decimal(one.bytes_down), decimal(one.bytes_up), decimal(one.bytes), f"{one.steps:,}")
            seconds = duration(one.of(method, to_do.runs))
            table.add_row(*map(Text, (escaped(method), *cells, f"{one.operations / 1e15:,.1f}", seconds)))
        console.print(table)
        totals[name] = _total(comparison, prices, to_do)
        for line in _notes(comparison, model, prices, _time(totals[name], to_do, workers(comparison), out)):
            _print(console, f"- {line}")
        for line in dict.fromkeys(sizes.notes.values()):
            _print(console, f"- {line}")
        _print(console, "")
    _print(console, "The comparison is valid. Nothing was trained or written.")
    return totals[own]


def _reject_metric(comparison: ComparisonOptions, sizes: Sizes) -> None:
    """All runs have one metric: what a task's classes cannot give, its runs would be rejected for.

    Raises:
        UserError: there is such a task.
    """
    tuned = comparison.tuning.tasks if comparison.tuning.trials else ()
    for task in dict.fromkeys((*comparison.tasks, *tuned)):
        try:
            inputs = sizes.inputs(task, comparison.methods[0])
        except UserError:
            continue  # said when its methods are priced
        if not (names := sizes.classes(task, inputs)):
            continue
        sums = of_classes(len(names))
        try:
            primary(inputs.config.evaluation.metric, sums.zero, sums.metric, names)
        except UserError as error:
            raise UserError(f"in the runs on {task}: {error}") from None


def price(comparison: ComparisonOptions, method: str, model: Model, sizes: Sizes) -> Price:
    """What the runs of a method come to.

    Raises:
        UserError: a run of it would be rejected.
    """
    adapter, efforts = None, dict[str, Effort]()
    sent, largest = 0, (0, 0, 0)
    for task in comparison.tasks:
        inputs = sizes.inputs(task, method)
        adapter, classes = getattr(inputs.config.method, "adapter", None), len(inputs.data.label_names or ())
        shaped = shaped_task(model.config(), inputs.config.model, num_classes=classes, adapter=adapter, drawn=model.drawn)
        prepared = Prepared(inputs, shaped, build_method(inputs))
        traffic, efforts[task] = plan_traffic(prepared), plan_effort(prepared)
        sent += sum(phase.total.most for phase in traffic)
        largest = max(largest, (num_values(shaped.params().values()), traffic[-1].down.most, traffic[-1].up.most))
    seeds, block = len(comparison.seeds), model.shape.block_values
    operations = {task: block * (4.0 * one.trained_tokens + 2.0 * one.evaluations.tokens) for task, one in efforts.items()}
    if model.weights is None:
        speed = 1e12 * (comparison.resources.teraflops or _ELSEWHERE)
        seconds = {task: number / speed for task, number in operations.items()}
    else:
        seconds = _measured(sizes, method, efforts, model.weights)
    steps = sum(one.steps for one in efforts.values())
    return Price(*largest, seeds * sent, seeds * steps, seeds * sum(operations.values()), seconds)


def _measured(sizes: Sizes, method: str, efforts: Mapping[str, Effort], weights: KeptWeights) -> dict[str, float]:
    """Seconds of a run on each task, by a pace measured on the task with the longest texts; what that takes is in `peak_memory`."""
    longest = max(efforts, key=lambda task: efforts[task].step.tokens)
    inputs = sizes.inputs(longest, method)
    with threads(inputs.config.resources.threads), kept_memory():
        began = time.process_time()
        prepared = prepare(inputs.config, weights, lambda *_: inputs.data, trial=True)
        set_up = time.process_time() - began
        pace = measure(prepared)
        rehearse(prepared)
    return {task: sum(pace.seconds(one)) + set_up + sizes.seconds.get(task, 0.0) for task, one in efforts.items()}


def _model(comparison: ComparisonOptions, name: str) -> Model:
    config = partial(_model_config, comparison, name)
    shape = shape_of(config())
    if name in comparison.architecture or comparison.resources.teraflops is not None or shape.values > _MOST_VALUES:
        return Model(name, config, shape)
    options, weights = job(comparison, _NOWHERE, comparison.tasks[0], comparison.methods[0], 0).config.model, KeptWeights()
    if options.head == "label-words":  # whose head is never drawn
        return Model(name, config, shape, (), weights)
    _, drawn = load_model(find(options), objective=ClassHead(2), pad_token_id=0, dropout=0.0, key=Key(0), weights=weights)
    return Model(name, config, shape, drawn, weights)


def _model_config(comparison: ComparisonOptions, name: str) -> PretrainedConfig:
    if name in comparison.architecture:
        return config_of(name, comparison.architecture[name])
    try:
        return load_config(find(job(comparison, _NOWHERE, comparison.tasks[0], comparison.methods[0], 0).config.model))
    except UserError as error:
        raise UserError(f'{str(error).rstrip(".")}. To price it without its files, write its shapes into [architecture."{name}"]') from None


def _notes(comparison: ComparisonOptions, model: Model, prices: Mapping[str, Price], time_taken: str) -> Iterator[str]:
    yield _memory(comparison, model, prices) if model.weights is None else _measured_memory(workers(comparison))
    yield f"all methods: {decimal(sum(one.bytes for one in prices.values()))}"
    yield time_taken
    if model.weights is not None:
        yield "time: measured on this machine as it is now, a client's part of a round and an evaluation for each method"
    else:
        yield f"time: operations at {comparison.resources.teraflops or _ELSEWHERE:g} x 10^12 per second (resources.teraflops)"
    yield "bytes and parameters of adapter and head are exact; all else is estimated (docs/comparison.md)"


def _measured_memory(at_once: int) -> str:
    each = "each process" if at_once > 1 else "its process"
    return f"memory: about {decimal(peak_memory())} in {each}, the most that measuring took here, with Python and torch"


def _memory(comparison: ComparisonOptions, model: Model, prices: Mapping[str, Price]) -> str:
    shape = model.shape
    configs = [job(comparison, _NOWHERE, task, comparison.methods[0], 0).config for task in comparison.tasks]
    longest = max(max_length(config) for config in configs)
    batch = configs[0].training.batch_size
    per_layer = longest * batch * shape.hidden * (34 + 5 * shape.heads * longest / shape.hidden)
    most = max((one.values for one in prices.values()), default=0)
    needed = 2 * shape.values + 16 * most + shape.layers * per_layer
    return (
        f"memory for tensors while training, beside what Python and torch take: about {decimal(round(needed))} = "
        f"weights {decimal(2 * shape.values)} in bf16, "
        f"activations {decimal(round(shape.layers * per_layer))} for {batch} x {longest} tokens, "
        f"parameters of adapter and head with gradient and two moments at most {decimal(16 * most)}"
    )


def _total(comparison: ComparisonOptions, prices: Mapping[str, Price], to_do: Left) -> Total:
    kinds = {comparison.kind(method): one for method, one in prices.items()}
    of_each = ((to_do.runs, prices), (to_do.trials, kinds), (to_do.more_trials, kinds))
    return Total(*(sum(one.of(name, counts) for name, one in table.items()) for counts, table in of_each))


def _time(total: Total, to_do: Left, at_once: int, out: Path) -> str:
    """What is to be made, and how long it takes."""
    done = f" ({to_do.done} in {out} are done)" if to_do.done else ""
    text = f"to be made: {count(to_do.runs.total(), 'run')}{done}, {duration(total.runs)}"
    least, most = to_do.trials.total(), to_do.trials.total() + to_do.more_trials.total()
    if most:
        number = str(least) if least == most else f"{least} to {most}"
        text += f"; before them {number} trials of rates, {duration(total.trials)} to {duration(total.trials + total.more_trials)}"
    spread = [f"{duration(one / at_once)}" for one in dict.fromkeys((total.seconds, total.seconds + total.more_trials))]
    return f"{text}; together {' to '.join(spread)} with {at_once} {'run' if at_once == 1 else 'runs'} at a time (resources.workers)"


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(escaped(text), style=style), soft_wrap=True)
