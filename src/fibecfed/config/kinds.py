"""Which keys go with examples that have classes, and which with answers. Each rule gives a sentence that begins with the key to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from ..core.metrics import OF_WRITTEN
from ..data.instruction_sets import INSTRUCTION_SETS
from ..data.options import NO_TEMPLATE, DataOptions
from ..engine.options import EvaluationOptions, FederationOptions, ResourceOptions
from ..local.options import CurriculumOptions, TrainingOptions
from ..methods.options import MethodOptions
from ..models.options import ModelOptions
from ..privacy.options import PrivacyOptions
from .text import nearest

_OF_ANSWERS = (
    "shape", "prompt_column", "completion_column", "messages_column", "system_column", "system", "loss_on", "chat_template",
)  # fmt: skip
_OF_CLASSES = ("pair_column", "label_column", "labels", "template", "label_words")
_OF_FILES = (
    "shape",
    "prompt_column",
    "completion_column",
    "messages_column",
    "text_column",
    "system_column",
    "test_fraction",
    "skip_empty",
)


class Tables(Protocol):
    """What the rules look at of a `Config`."""

    @property
    def tracking(self) -> tuple[str, ...]: ...

    @property
    def tracking_by_client(self) -> bool: ...

    @property
    def privacy(self) -> PrivacyOptions: ...

    @property
    def model(self) -> ModelOptions: ...

    @property
    def data(self) -> DataOptions: ...

    @property
    def federation(self) -> FederationOptions: ...

    @property
    def training(self) -> TrainingOptions: ...

    @property
    def evaluation(self) -> EvaluationOptions: ...

    @property
    def resources(self) -> ResourceOptions: ...

    @property
    def method(self) -> MethodOptions: ...

    def model_dump(self) -> dict[str, Any]: ...


def of_kind(config: Tables) -> Iterator[str]:
    """Contradictions with the kind of the data, as sentences."""
    data, curriculum = config.data, getattr(config.method, "curriculum", None)
    ordered = curriculum.order if isinstance(curriculum, CurriculumOptions) else None
    if data.kind == "classification":
        for name in _changed(data, _OF_ANSWERS):
            got = getattr(data, name)
            yield f'data.{name}: got {got!r} with `data.kind` = "classification"; set `data.kind` = "instruction", or remove it'
        if config.evaluation.generate:
            got = config.evaluation.generate
            yield f'evaluation.generate: got {got} with `data.kind` = "classification", whose examples have no answers; remove it'
        if ordered == "ira":
            yield 'method.curriculum.order: got "ira", which is of answers, with `data.kind` = "classification"; choose another order'
        return
    for name in _changed(data, _OF_CLASSES):
        got = getattr(data, name)
        yield f'data.{name}: got {got!r} with `data.kind` = "instruction", whose examples have answers and no classes; remove it'
    if data.task is not None and data.task not in INSTRUCTION_SETS:
        near = nearest(data.task, INSTRUCTION_SETS)
        yield f"data.task: got {data.task!r}, expected one of {', '.join(INSTRUCTION_SETS)}; " + (
            f"did you mean {near!r}?" if near else "for a file of your own set `data.path`"
        )
    if data.task is not None and data.path is None:
        for name in _changed(data, _OF_FILES):
            own = "its own columns and test set"
            yield f"data.{name}: got {getattr(data, name)!r} with `data.task`, which has {own}; remove it, or set `data.path`"
    if config.evaluation.generate and data.loss_on == "all":
        got = config.evaluation.generate
        yield f'evaluation.generate: got {got} with `data.loss_on` = "all", which does not tell prompts from answers; set it to "answers"'
    yield from _of_written(config)
    if data.chat_template == NO_TEMPLATE:
        for name in _changed(data, ("system", "system_column")):
            yield f'data.{name}: got {getattr(data, name)!r} with `data.chat_template` = "none", which knows no system message; remove it'
    columns: dict[str, str] = {}
    for name in ("prompt_column", "completion_column", "messages_column", "system_column", "client_column"):
        column = getattr(data, name)
        if column is not None and not column:
            yield f"data.{name}: got empty text, expected the name of a column; write it"
        elif column in columns:
            yield f"data.{name}: got {column!r}, which is `data.{columns[column]}` already; name another column"
        elif column is not None:
            columns[column] = name
    if config.model.head != "full":
        yield f'model.head: got "{config.model.head}" with `data.kind` = "instruction", which trains no head; remove it'
    kind = config.method.model_dump()["kind"]
    if getattr(config.method, "head", None) == "personal" != type(config.method).model_fields["head"].default:
        yield 'method.head: got "personal" with `data.kind` = "instruction", which trains no head; remove it'
    if not config.method.needs_classes and not config.method.trains_on_answers():
        yield (
            f'method.kind: got "{kind}", which makes its prompt from the whole text, with `data.kind` = "instruction", where the answer is '
            'part of that; choose a LoRA method, "adapter", "prompt-tuning" or "p-tuning-v2"'
        )


def _of_written(config: Tables) -> Iterator[str]:
    """What a primary metric of generated answers needs."""
    evaluation = config.evaluation
    if (metric := evaluation.metric) not in OF_WRITTEN:
        return
    if not evaluation.generate:
        yield (
            f'evaluation.metric: got "{metric}", which is of generated answers, with `evaluation.generate` = 0; set `evaluation.generate` '
            "to the test examples of each client that are to be answered, or choose nll"
        )
    if evaluation.save == "best":
        yield (
            f'evaluation.metric: got "{metric}" with `evaluation.save` = "best", but answers are generated after the last round alone; '
            "choose nll, by which rounds can be told apart, or save the last"
        )


def needing_classes(config: Tables) -> list[str]:
    """What of a configuration needs examples with classes, as sentences that reject it for examples without."""
    return list(_needing_classes(config))


def _needing_classes(config: Tables) -> Iterator[str]:
    without, method = "for examples without classes", config.method
    if config.federation.partition in ("dirichlet", "shards"):
        yield f'federation.partition: got "{config.federation.partition}" {without}; set "column" or "iid"'
    if config.data.label_noise:
        yield f"data.label_noise: got {config.data.label_noise} {without}; remove it"
    if config.model.head == "label-words" and config.data.kind == "classification":
        yield f'model.head: got "label-words", which stand for classes, {without}; choose another head'
    if config.training.class_weights is not None:
        yield f"training.class_weights: got weights of classes {without}; remove it"
    curriculum = getattr(method, "curriculum", None)
    if isinstance(curriculum, CurriculumOptions) and curriculum.labels == "model":
        yield f'method.curriculum.labels: got "model", which goes over all classes, {without}; set "true"'
    if method.needs_classes:
        yield f'method.kind: got "{method.kind}", which needs the probabilities of classes, {without}; choose another'


def _changed(data: DataOptions, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if getattr(data, name) != DataOptions.model_fields[name].default]


def default_partition(data: dict[str, Any]) -> str | None:
    """The partition of a table [data] that names none: examples without classes are spread evenly."""
    if data.get("client_column") is not None:
        return "column"
    return "iid" if data.get("kind") == "instruction" else None
