"""`fibecfed check`: what a configuration would train, send, store and take, before anything is started. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text
from torch import Tensor

from .activation_plan import planned_bytes
from .adapters.options import called
from .answers_shown import answers_sections
from .build import Prepared, most_workers, prepare
from .config import Config, flat
from .config.text import show as show_value
from .core.options import Options
from .core.process import resident_memory, return_memory, threads
from .core.trees import num_values
from .core.types import Params, Round
from .core.units import duration
from .core.wire import encode, field_kinds
from .effort import Effort, plan_effort
from .engine.advice import advice
from .engine.shared_fields import num_shared
from .engine.traffic import Span, Traffic, by_phase, plan
from .engine.workers import PAYS_AFTER_S, PAYS_FROM_S
from .estimate import Pace, measure
from .inspection import Section, as_table, clients_table, data_section, examples_by_client, show, warnings_section
from .methods.presets import in_force
from .models.options import ModelOptions
from .models.quantised import frozen_size
from .privacy.example_plan import ExamplePlan
from .privacy.example_statement import example_plan_lines, example_title
from .privacy.plan import PrivacyPlan
from .privacy.statement import cohort_lines, plan_lines
from .rehearsal import rehearse
from .tracking.sinks import reject_missing


def report(config: Config, console: Console) -> None:
    """Prints everything about the run of a configuration.

    Raises:
        UserError: a mistake that only shows when model and data are read.
    """
    reject_missing(config.tracking)
    with threads(config.resources.threads):
        began = time.process_time()
        prepared = prepare(config, trial=True)
        show(_sections(prepared, time.process_time() - began), console)
    console.print(Text("The configuration is valid. Nothing was trained or written."))


def _sections(prepared: Prepared, set_up: float) -> Iterator[Section]:
    params = prepared.task.init_params(prepared.inputs.key)
    yield model_section(prepared, params)
    yield from preset_section(prepared.inputs.config)
    yield data_section(prepared)
    yield from answers_sections(prepared)
    yield f"Clients: {len(prepared.inputs.data.clients)}", clients_table(prepared)
    if (said := advice(prepared.inputs.data.partition.table().values())) is not None:
        yield "Which method", as_table(("",), [(said,)])
    yield from warnings_section(prepared)
    yield messages_section(prepared)
    yield from privacy_section(prepared)
    yield from sums_section(prepared)
    yield "Estimates for this machine", as_table(("", ""), _estimates(prepared, params, set_up))


# ---- model and data


def model_section(prepared: Prepared, params: Params) -> Section:
    """What is trained of the model."""
    task = prepared.task
    frozen, size = frozen_size(task.model)
    packed = prepared.inputs.config.model.quantization
    takes = decimal(size) + (f" ({packed})" if packed else "")
    published = prepared.inputs.source.published
    title = (
        f"Model: {published}, {frozen:,} frozen parameters in {takes}, {task.num_layers} layers; {task.device.type}, {task.precision}; "
        f"trained: {_adapter(prepared.inputs.config)}"
    )
    return title, as_table(("adapter and head", "tensors", "values", "bytes"), _by_layer(prepared, params))


def _adapter(config: Config) -> str:
    """What is trained beside the head."""
    adapter: Options | None = getattr(config.method, "adapter", None)
    if adapter is None:
        return _lora(config.model)
    values = ", ".join(f"{name} {value}" for name, value in adapter.model_dump(exclude_none=True).items())
    return f"{called(adapter)} ({values}); keys of LoRA in [model] are not used"


def _lora(model: ModelOptions) -> str:
    targets = model.target_modules
    where = "" if targets is None else f" on {targets if isinstance(targets, str) else ', '.join(targets)}"
    others = f" ({', '.join(model.rank_pattern)})" if model.rank_pattern else ""
    return f"LoRA of rank {model.rank}{others}{where}" + (", scaled by alpha / sqrt(r)" if model.rslora else "")


def preset_section(config: Config) -> Iterator[Section]:
    """What the method's preset stands for."""
    preset = in_force(flat(config))
    if preset is None:
        return
    rows = [(name, show_value(value), "") for name, value in preset["values"].items()]
    rows += [(name, show_value(value), "set beside it") for name, value in preset["beside"].items()]
    yield f"Preset: {preset['name']}", as_table(("key", "value", ""), rows)


def _is_norm(name: str) -> bool:
    return "norm" in name.lower() or ".ln_" in name


def _by_layer(prepared: Prepared, params: Params) -> list[tuple[str, ...]]:
    task, method = prepared.task, getattr(prepared.method, "inner", prepared.method)  # without the local training at the end
    depth = getattr(method, "depth", None)
    trained = () if depth is None else depth.at_start(task.num_layers)
    left = set(range(task.num_layers)) - set(trained) if trained else set[int]()
    titles = [f"layer {layer}{', not trained' if layer in left else ''}" for layer in range(task.num_layers)]
    parts: dict[str, list[Tensor]] = {title: [] for title in titles}
    for name, value in params.items():
        layer = task.layer_of(name)
        outside = "adapter" if name.startswith("adapter.") else "norms outside the layers" if _is_norm(name) else "head"
        parts.setdefault(outside if layer is None else titles[layer], []).append(value)
    parts["together"] = list(params.values())
    if left:
        parts["of these trained"] = [value for name, value in params.items() if task.layer_of(name) not in left]
    return [
        (title, str(len(tensors)), f"{num_values(tensors):,}", decimal(sum(tensor.nbytes for tensor in tensors)))
        for title, tensors in parts.items()
    ]


# ---- messages


def messages_section(prepared: Prepared) -> Section:
    """What is sent."""
    header = ("phase", "rounds", "clients per round", "down, each", "up, each", "together")
    return "Messages", as_table(header, _messages(plan_traffic(prepared)))


def plan_traffic(prepared: Prepared) -> list[Traffic]:
    """What each phase would send."""
    inputs = prepared.inputs
    clients = inputs.data.clients
    num_samples = dict(zip(clients, examples_by_client(prepared, "train"), strict=True))
    per_round = inputs.config.federation.cohort_size(len(clients))
    private, key = isinstance(prepared.privacy, PrivacyPlan), inputs.key.fold("run")
    if private:
        num_samples = dict.fromkeys(clients, 1)  # which no client tells
    return by_phase(plan(prepared.method, prepared.task, num_samples, per_round, key, inputs.config.federation, private, prepared.adding))


def _messages(traffic: list[Traffic]) -> list[tuple[str, ...]]:
    rows = [(t.phase, str(t.num_rounds), str(t.cohort), _span(t.down), _span(t.up), _span(t.total)) for t in traffic]
    total = sum((t.total for t in traffic), Span())
    return [*rows, ("together", str(sum(t.num_rounds for t in traffic)), "", "", "", _span(total))]


def _span(sizes: Span) -> str:
    least, most = decimal(sizes.least), decimal(sizes.most)
    return least if least == most else f"{least} to {most}"


# ---- privacy


def privacy_section(prepared: Prepared) -> Iterator[Section]:
    """What the run would guarantee, and whether it can learn anything; nothing where nothing is protected."""
    plan = prepared.privacy
    if plan is None:
        return
    if isinstance(plan, ExamplePlan):
        yield example_title(plan), as_table(("", ""), example_plan_lines(plan, num_trained(prepared)))
        return
    method = prepared.method
    server = method.init(prepared.task, prepared.inputs.key)
    sizes = [num_shared(phase, phase.broadcast(server, Round(phase.name, 0, phase.num_rounds, 0))) for phase in method.phases]
    title = (
        f"Privacy: all that a client holds, from everybody but the server; noise {plan.noise_multiplier:.4g}, clip {plan.clip_norm:g}, "
        f"delta {plan.delta:g}"
    )
    yield title, as_table(("", ""), plan_lines(plan, max(sizes)))


def sums_section(prepared: Prepared) -> Iterator[Section]:
    """What the server would get instead of updates; nothing without secure aggregation."""
    if prepared.cohorts is not None:
        yield "Secure aggregation: the server gets sums alone", as_table(("", ""), cohort_lines(prepared.cohorts, prepared.adding))


def num_trained(prepared: Prepared) -> int:
    """Numbers that a client's step moves, at the start."""
    method, key = prepared.method, prepared.inputs.key
    params, asked = prepared.task.init_params(key), getattr(method, "trains", None)
    names = prepared.task.names if asked is None else asked(prepared.task, method.init(prepared.task, key))
    return num_values([params[name] for name in names])


# ---- memory, disk and time


def _estimates(prepared: Prepared, params: Params, set_up: float) -> list[tuple[str, ...]]:
    config, data = prepared.inputs.config, prepared.inputs.data
    effort, pace = plan_effort(prepared), measure(prepared)
    training, evaluating = pace.seconds(effort)
    whole = f"about {duration(training + evaluating + set_up)}{' of CPU time' if prepared.task.device.type == 'cpu' else ''}"
    workers = _workers(prepared, effort, pace)
    by_itself = " by default (resources.workers)" if config.resources.workers is None else ""
    together = f"; about {duration(sum(pace.seconds(effort, workers)) + set_up)} together" if workers > 1 else ""
    clients = len(data.clients)
    size = sum(value.nbytes for value in params.values())
    states = clients * state_bytes(prepared, size)
    in_memory = min(states, config.resources.client_memory_mb * 2**20)
    cached = planned_bytes(prepared)
    return_memory()
    before = resident_memory()
    once = rehearse(prepared)
    peak = once + (workers - 1) * max(0, once - before) + in_memory + cached  # what a client's computing takes is each worker's own
    return [
        *prepared.beforehand.lines,
        ("optimiser steps", f"about {effort.steps:,}"),
        ("time", f"{whole}, of which evaluation {duration(evaluating)}; a step takes {1000 * pace.step_seconds(effort):.0f} ms here"),
        ("workers", f"{workers}{by_itself}{together}"),
        ("memory", f"about {decimal(peak)} at the peak, of which {decimal(in_memory)} clients' states{_cache(prepared, cached)}"),
        ("checkpoints", f"about {decimal(states + config.resources.keep_checkpoints * size)} on disk, more while they are rewritten"),
        ("adapters", f"up to {clients + 1:,} of {decimal(size)}, {decimal((clients + 1) * size)} together"),
    ]


def _workers(prepared: Prepared, effort: Effort, pace: Pace) -> int:
    """How many processes will compute clients; by itself a run starts none that would not pay."""
    most = most_workers(prepared)
    if prepared.inputs.config.resources.workers is not None or most == 1:
        return most
    seconds, answers = pace.seconds(effort)[0], sum(part.answers for part in effort.parts.values())
    return most if seconds > PAYS_AFTER_S and seconds > PAYS_FROM_S * answers else 1


def _cache(prepared: Prepared, cached: int) -> str:
    """What is said of the activation cache, behind the clients' states."""
    if not prepared.inputs.config.resources.activation_cache_mb:
        return ""
    if cached:
        return f" and {decimal(cached)} the activation cache"
    if prepared.activation is not None:
        why = "every block is trained"
    else:
        why = "dropout" if prepared.inputs.config.training.dropout else "this model's blocks hand on more than their output"
    return f"; the activation cache is not used: {why}"


def state_bytes(prepared: Prepared, size: int) -> int:
    """What a client keeps: its state at the start, or the whole model where it ends up with one of its own."""
    method, client = prepared.method, prepared.inputs.data.clients[0]
    state = len(encode(method.init_client(prepared.task, client, prepared.inputs.key)))
    return max(state, size) if "tuned" in field_kinds(method.client_state) else state
