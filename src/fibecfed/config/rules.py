"""What single keys cannot say: which values do not go together. Each rule gives a sentence that begins with the key to change."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..core.metrics import mistake_in as mistake_in_metric
from ..data.options import DataOptions
from ..data.prompt import mistake_in
from ..data.tasks import TASKS
from ..engine.options import (
    CLIENT_NAME,
    EXPECTED_NAME,
    FederationOptions,
    LinkOptions,
    SpeedOptions,
)
from ..local.options import LayerOptions, TrainingOptions
from ..methods.means import means_of
from ..methods.options import FedExLoraOptions, LocalOptions, LoraFinetuneOptions, LoraParts, MethodOptions
from ..methods.server_options import ServerOptions
from ..models.options import ModelOptions
from ..tracking.sinks import SINKS
from .adapting import adapting
from .computing import who_computes
from .kinds import Tables, needing_classes, of_kind
from .private import private
from .selection import selection
from .text import nearest
from .validating import by_validation


def contradictions(config: Tables) -> list[str]:
    """Every contradiction in a configuration, as sentences. Other keys that a sentence rests on stand in it in backticks."""
    return [
        *_not_finite(config.model_dump()),
        *_tracking(config.tracking),
        *_named(config.model),
        *adapting(config),
        *_data(config.data),
        *of_kind(config),
        *_label_words(config),
        *_federation(config.federation, config.data),
        *_metric(config.evaluation.metric),
        *by_validation(config),
        *_training(config.training),
        *_score_after(getattr(config.method, "score_after", None), config.federation),
        *selection(config),
        *_parts(config.method, config.model),
        *_finetune(config),
        *_tail_average(config),
        *_depth(config.method, config),
        *_importance_under_way(config),
        *(needing_classes(config) if config.data.kind == "instruction" else ()),
        *private(config),
        *who_computes(config.federation, config.resources, config.method, config.training.device),
    ]


def _metric(name: str | None) -> Iterator[str]:
    if name is not None and (mistake := mistake_in_metric(name)) is not None:
        yield mistake


def _depth(method: MethodOptions, config: Tables) -> Iterator[str]:
    depth, rule = getattr(method, "depth", None), getattr(method, "depth_rule", "fisher")
    if depth == 0:
        if config.data.kind == "instruction" or config.model.head == "label-words":
            why = 'data.kind` = "instruction' if config.data.kind == "instruction" else 'model.head` = "label-words'
            yield f'method.depth: got 0 with `{why}", which trains no head, so that nothing would be trained; set 1 or more'
        if isinstance(getattr(method, "layers", None), LayerOptions):
            yield f'method.depth: got 0 with `method.kind` = "{method.kind}", which chooses among trained blocks; set 1 or more, or lora'
        elif getattr(method, "head", None) == "personal":
            yield 'method.depth: got 0 with `method.head` = "personal", so that nothing is shared; set 1 or more, or `head` shared'
    if depth is None and rule != "fisher":
        yield f'method.depth_rule: got "{rule}" without `method.depth`, so that every block is trained; set it, or remove the rule'
    if rule == "coverage" and isinstance(depth, int):
        yield f'method.depth: got {depth} with `method.depth_rule` = "coverage", expected a fraction of the Fisher information, such as 0.8'


def _not_finite(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _not_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value) and prefix + name != "method.layers.norm":
            yield f"{prefix}{name}: got {value}, expected a finite number; fix it"


def _tracking(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if name not in SINKS:
            near = nearest(name, SINKS)
            yield f'tracking: got "{name}", expected names among {", ".join(SINKS)}; ' + (f'did you mean "{near}"?' if near else "fix it")
    if len(set(names)) < len(names):
        yield f"tracking: got {list(names)}, expected each name once; fix it"


def _named(model: ModelOptions) -> Iterator[str]:
    if not model.name.strip():
        yield "model.name: got empty text, expected a hub id, a folder, a GGUF file or a packaged model; name one"


def _data(data: DataOptions) -> Iterator[str]:
    if data.kind == "classification":
        yield from _of_classes(data)
    if data.revision is not None and data.task is None:
        yield f"data.revision: got {data.revision!r} without `data.task`, whose data set it is of; remove it"
    if data.test_path is not None and data.test_path == data.path:
        yield "data.test_path: got the file of `data.path`; name another file, or leave it out to cut a test set from `data.path`"


def _of_classes(data: DataOptions) -> Iterator[str]:
    if data.task is not None and data.task not in TASKS:
        near = nearest(data.task, TASKS)
        yield f"data.task: got {data.task!r}, expected one of {', '.join(TASKS)}; " + (
            f"did you mean {near!r}?" if near else "for a file of your own set `data.path`"
        )
    if data.task is not None and data.path is None:
        for name in ("text_column", "pair_column", "label_column", "labels", "test_fraction", "skip_empty"):
            value = getattr(data, name)
            if value != DataOptions.model_fields[name].default:
                own = "its own columns, classes and test set"
                yield f"data.{name}: got {value!r} with `data.task`, which has {own}; remove it, or set `data.path`"
    columns: dict[str, str] = {}
    for name in ("text_column", "pair_column", "label_column", "client_column"):
        column = getattr(data, name)
        if column is not None and not column:
            yield f"data.{name}: got empty text, expected the name of a column; write it"
        elif column in columns:
            yield f"data.{name}: got {column!r}, which is `data.{columns[column]}` already; name another column"
        elif column is not None:
            columns[column] = name
    if data.labels is not None and (len(set(data.labels)) < len(data.labels) or len(data.labels) < 2):
        yield f"data.labels: got {list(data.labels)}, expected at least two classes, each once; fix the list or leave it out"


def _label_words(config: Tables) -> Iterator[str]:
    data, model = config.data, config.model
    task = TASKS.get(data.task or "")
    given = {"template": data.template, "label_words": data.label_words}
    if model.head != "label-words":
        for name, value in given.items():
            if value is not None:
                yield f'data.{name}: got {value!r} with `model.head` = "{model.head}"; set `model.head` = "label-words", or remove it'
        return
    if getattr(config.method, "adapter", None) is not None:
        kind = config.method.model_dump()["kind"]
        yield f'model.head: got "label-words" with `method.kind` = "{kind}", whose adapter is trained with a head; set "full" or "last"'
    for name, value in given.items():
        if value is None and data.task is None:
            example = '"{a} ? <mask> , {b}"' if data.pair_column is not None else '"{x} . It was <mask> ."'
            shape = f"a template such as {example}" if name == "template" else "one word for each class, in the order of the classes"
            yield f'data.{name}: got none with `model.head` = "label-words" and a file of your own, expected {shape}; write it'
    if data.template is not None:
        mistake = mistake_in(data.template, data.pair_column is not None if task is None else task.pair)
        if mistake:
            yield f"data.template: {mistake}; fix it"
    words = data.label_words
    if words is None:
        return
    if len(set(words)) < len(words) or len(words) < 2 or not all(word and word == word.strip() for word in words):
        yield f"data.label_words: got {list(words)}, expected a different word for each class, without spaces around it; fix the list"
    classes = data.labels if task is None else task.labels
    if classes is not None and len(words) != len(classes):
        yield f"data.label_words: got {len(words)}, expected {len(classes)}, one for each of {list(classes)} in this order; fix the list"


def _federation(federation: FederationOptions, data: DataOptions) -> Iterator[str]:
    by_column = federation.partition == "column"
    if (federation.clients_per_round or 0) > federation.clients and not by_column:
        yield (
            f"federation.clients_per_round: got {federation.clients_per_round}, expected at most `federation.clients` "
            f"= {federation.clients}; lower it, or raise `federation.clients`"
        )
    if federation.on_excess == "clip" and not federation.max_update_norm:
        yield 'federation.on_excess: got "clip" without `federation.max_update_norm`, so that nothing exceeds it; set it, or remove this'
    if federation.aggregation != "mean" and federation.schedule == "buffered":
        yield (
            f'federation.aggregation: got "{federation.aggregation}" with `federation.schedule` = "buffered", which aggregates few '
            'answers at a time, so that nobody is outvoted; set "mean", or another schedule'
        )
    if federation.aggregation != "trimmed-mean" and federation.trim != FederationOptions.model_fields["trim"].default:
        yield f'federation.trim: got {federation.trim} with `federation.aggregation` = "{federation.aggregation}"; set "trimmed-mean"'
    if federation.partition == "machines":
        yield from _machines(federation, data)
    else:
        if data.task is None and data.path is None:
            yield "data: set exactly one of `data.task` and `data.path`"
        if federation.client_names is not None:
            yield (
                f"federation.client_names: got {list(federation.client_names)} with `federation.partition` = "
                f'"{federation.partition}", which names its clients itself; remove it'
            )
    if by_column and data.client_column is None:
        yield 'federation.partition: got "column" without `data.client_column`; set it to the column that names the client'
    if data.client_column is not None and not by_column:
        yield (
            f'data.client_column: got {data.client_column!r} with `federation.partition` = "{federation.partition}"; '
            'set `federation.partition` = "column", or remove it'
        )
    yield from _schedule(federation)
    if federation.on_failure == "stop":
        for name, off in (("quorum", 0), ("round_attempts", 1), ("exclude_after", 0)):
            if (value := getattr(federation, name)) != off:
                yield (
                    f'federation.{name}: got {value} with `federation.on_failure` = "stop", which ends the run at the first client '
                    'that fails; set `federation.on_failure` = "drop", or remove it'
                )


def _schedule(federation: FederationOptions) -> Iterator[str]:
    schedule, per_round = federation.schedule, federation.cohort_size(federation.clients)
    for name, off, needs in (("over_selection", 1.3, "over-select"), ("buffer_size", None, "buffered")):
        if (value := getattr(federation, name)) != off and schedule != needs:
            yield (
                f'federation.{name}: got {value} with `federation.schedule` = "{schedule}"; set `federation.schedule` = "{needs}", '
                "or remove it"
            )
    if (federation.buffer_size or 0) > per_round and federation.partition != "column":
        yield (
            f"federation.buffer_size: got {federation.buffer_size}, expected at most {per_round}, the clients that are at work at a time "
            "(`federation.clients_per_round`); lower it"
        )
    if schedule == "buffered":
        for name, off in (("quorum", 0), ("round_attempts", 1)):
            if (value := getattr(federation, name)) != off:
                yield (
                    f'federation.{name}: got {value} with `federation.schedule` = "buffered", whose rounds end with any few answers and '
                    "are never repeated; remove it"
                )
    for name in ("speeds", "links"):
        options = getattr(federation, name)
        if options.factors is not None and options.is_drawn:
            yield f"federation.{name}.factors: got factors beside `federation.{name}.slow_share` or `.spread`, which draw them; remove one"
    links = federation.links
    if (links.is_drawn or links.factors is not None) and links.up_mbit is None and links.down_mbit is None:
        yield "federation.links: got factors of bandwidths and no bandwidth; set `federation.links.up_mbit` or `federation.links.down_mbit`"


def _machines(federation: FederationOptions, data: DataOptions) -> Iterator[str]:
    if data.labels is None and data.kind == "classification":
        yield (
            'data.labels: not set, but with `federation.partition` = "machines" a client may lack some classes; list all of them in order, '
            'e.g. labels = ["negative", "positive"]'
        )
    if data.task is not None:
        yield 'data.task: got a task with `federation.partition` = "machines", where each client has a file of its own; remove it'
    if data.label_noise:
        yield 'data.label_noise: got noise with `federation.partition` = "machines"; it is for experiments on one machine; remove it'
    for name, unset in (("speeds", SpeedOptions()), ("links", LinkOptions())):
        if getattr(federation, name) != unset:
            yield f'federation.{name}: got values with `federation.partition` = "machines", which are as fast as they are; remove the table'
    names = federation.client_names
    if names is None:
        return
    if len(set(names)) < len(names) or not all(re.fullmatch(CLIENT_NAME, name) for name in names):
        yield (f"federation.client_names: got {list(names)}, {EXPECTED_NAME} in each, and no two alike; fix the list")
    if len(names) != federation.clients:
        yield f"federation.client_names: got {len(names)} names, expected `federation.clients` = {federation.clients}; fix one of them"


def _training(training: TrainingOptions) -> Iterator[str]:
    if training.momentum > 0 and training.optimizer not in ("sgd", "rmsprop"):
        yield f'training.momentum: got {training.momentum} with `training.optimizer` = "{training.optimizer}", which has none; set it to 0'
    weights = training.class_weights
    if isinstance(weights, tuple) and (len(weights) < 2 or not all(math.isfinite(weight) and weight > 0 for weight in weights)):
        yield f'training.class_weights: got {list(weights)}, expected a positive number for each class, or "balanced"; fix it'
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", training.device):
        yield f'training.device: got {training.device!r}, expected "auto", "cpu", "mps", "cuda" or "cuda:<number>"; fix it'


def _score_after(score_after: int | None, federation: FederationOptions) -> Iterator[str]:
    if score_after is not None and score_after >= federation.rounds:
        yield (
            f"method.score_after: got {score_after}, expected less than `federation.rounds` = {federation.rounds}, "
            "or no client is ever scored; lower it, or leave it out"
        )


def _importance_under_way(config: Tables) -> Iterator[str]:
    layers = getattr(config.method, "layers", None)
    if isinstance(layers, LayerOptions) and layers.importance_round == "first" and config.federation.schedule == "buffered":
        yield (
            'method.layers.importance_round: got "first" with `federation.schedule` = "buffered", where some clients answer the first '
            'tuning round later; set it to "separate"'
        )


def _parts(method: MethodOptions, model: ModelOptions) -> Iterator[str]:
    if isinstance(method, LoraFinetuneOptions) and not method.finetune:
        yield 'method.finetune: got false with method.kind = "lora-finetune", which is `lora` then; set `method.kind` = "lora"'
    if model.head == "label-words" and (kept := getattr(method, "head", "shared")) != "shared":
        yield f'method.head: got "{kept}" with `model.head` = "label-words", which trains no head; remove it'
    layers = getattr(method, "layers", None)
    rule = getattr(layers, "rule", "agreement")
    if layers is not None and getattr(method, "aggregation", "mean") == "exact" and rule != "all" and means_of(layers, 1).every:
        yield (
            'method.aggregation: got "exact" with a mean of the layers that clients keep (`method.layers.mean_every`), which is one of the '
            'factors; set `method.layers.mean_every` = 0, or this to "mean"'
        )
    if getattr(method, "head", None) == "agreement" and rule != "agreement":
        yield f'method.head: got "agreement" with `method.layers.rule` = "{rule}"; set both, or this to "shared"'
    if not isinstance(method, LoraParts) or method.aggregation.startswith("fed"):
        return
    if changed := [name for name in ServerOptions.model_fields if getattr(method.server, name) != getattr(ServerOptions(), name)]:
        got, name = getattr(method.server, changed[0]), method.aggregation
        yield (
            f'method.server.{changed[0]}: got {got} with `method.aggregation` = "{name}", which has no server optimiser; '
            'set "fedavgm", "fedadam" or "fedyogi", or remove it'
        )


def _finetune(config: Tables) -> Iterator[str]:
    if getattr(config.method, "finetune", False) == "validated" and config.data.validation_fraction == 0:
        yield (
            'method.finetune: got "validated" with `data.validation_fraction` = 0, so that clients have nothing to choose by; '
            "set `data.validation_fraction` above 0, or this to true or false"
        )


def _tail_average(config: Tables) -> Iterator[str]:
    method, share = config.method, getattr(config.method, "tail_average", 0.0)
    if not share:
        return
    got = f"method.tail_average: got {share}"
    if isinstance(method, FedExLoraOptions) or getattr(method, "aggregation", "mean") == "exact":
        yield (
            f"{got} with the exact aggregation of products, of which the mean of the factors is another model; set it to 0, "
            'or `method.aggregation` = "mean"'
        )
    if isinstance(method, LocalOptions):
        yield f'{got} with `method.kind` = "local", where clients train alone and nothing is averaged; remove it'
    if config.evaluation.patience is not None:
        yield f"{got} with `evaluation.patience`, which ends a phase before the rounds that are averaged; remove one of them"
