"""What a report takes from the files in a folder of runs, as models: what a file lacks, or has wrong, is reported by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ...core.errors import UserError
from ...core.json_text import from_json
from ...methods.catalogue import CATALOGUE

RUNS, TRIALS, ASIDE = "runs", "tuning", "damaged"
"""Folders of a comparison: its runs, the trials of learning rates, and finished runs that were damaged and have been made again."""


class _Part(BaseModel):
    """A table of a file; it may hold more than is taken from it."""

    model_config = ConfigDict(frozen=True, extra="allow")


class _Kind(_Part):
    kind: str


class _Model(_Part):
    name: str | None = None
    head: str | None = None


class _Data(_Part):
    max_length: int | None
    task: str | None = None
    path: str | None = None
    max_train: int | None = None
    max_test: int | None = None


class _Federation(_Part):
    clients: int | None
    clients_per_round: int | None
    rounds: int
    partition: str | None = None
    alpha: float | None = None
    schedule: str = "synchronous"
    speeds: dict[str, Any] = {}
    links: dict[str, Any] = {}


class _Training(_Part):
    local_epochs: int
    batch_size: int
    optimizer: str
    schedule: str = "constant"
    learning_rate: float


class Configuration(_Part):
    """A run's configuration, as far as a report looks at single keys of it."""

    seed: int
    method: _Kind
    data: _Data
    federation: _Federation
    model: _Model
    training: _Training


class Header(_Part):
    """The first line of records.jsonl."""

    configuration: Configuration
    partition: dict[str, dict[str, list[int]]]
    trainable: int
    metric: str
    higher_is_better: bool
    usual_metric: str | None = None
    labels: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    precision: str | None = None
    commit: str | None = None
    machine: dict[str, Any] = {}
    versions: dict[str, str] = {}
    model: dict[str, Any] = {}


class _Scores(_Part):
    rounds: int | None = None
    worst_decile: float | None = None


class _Seconds(_Part):
    seconds: float


class _Source(_Seconds):
    examples: int


class Summary(_Part):
    """summary.json."""

    scores: _Scores
    seconds: float
    evaluation: _Seconds
    rounds: int | None = None
    rising: dict[str, Any] | None = None
    selected: dict[str, Any] | None = None
    sources: tuple[_Source, ...] = ()


class WrittenExample(_Part):
    """A line of answers.jsonl: a test example with what three models answer."""

    client: str
    prompt: str
    expected: str
    untrained: str
    global_: str = Field(alias="global")
    personalised: str


class RecordedTrial(_Part):
    """A learning rate that was tried, with what goes with it; a score is None where training diverged."""

    rate: float
    score: float | None
    step: int | None = None
    rates: dict[str, float] = {}
    scores: dict[str, float | None] = {}


class TuningRow(_Part):
    """What was tried for a method and chosen, a row of tuning.json."""

    chosen: float | None
    source: str | None = None
    tried: tuple[RecordedTrial, ...]
    step: int | None = None
    rates: dict[str, float] = {}


class Place(_Part):
    """Where a run stands in a comparison, as far as that is known.

    Attributes:
        task, method, seed: as its folder is called.
        kind: `method.kind` of its method's runs.
        file: name of the file with the task's examples, of a task of the user's own.
    """

    task: str | None = None
    method: str | None = None
    seed: int | None = None
    kind: str | None = None
    file: str | None = None

    def misfits(self, configuration: Configuration) -> str:
        """What a run's configuration says otherwise, as in "data.task: got rte, expected sst2"; "" where nothing is."""
        data = configuration.data
        pairs = [("method.kind", configuration.method.kind, self.kind), ("seed", configuration.seed, self.seed)]
        if data.task is not None:
            pairs.insert(0, ("data.task", data.task, self.task))
        elif data.path is not None:
            pairs.insert(0, ("data.path", Path(data.path).name, self.file))
        wrong = [f"{name}: got {got}, expected {due}" for name, got, due in pairs if due is not None and got != due]
        return ", ".join(wrong)


NOWHERE = Place()
"""Of a run that is in no comparison."""


class _OwnKind(_Part):
    kind: str | None = None


class _OwnData(_Part):
    path: str | None = None


class _Own(_Part):
    method: _OwnKind = _OwnKind()
    data: _OwnData = _OwnData()


class Plan(_Part):
    """What comparison.toml asks for."""

    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    base: _Own = _Own()
    task: dict[str, _Own] = {}
    method: dict[str, _Own] = {}

    def place(self, task: str, method: str, seed: int) -> Place:
        """Of a run, with its method's kind and its task's file where the plan or the catalogue knows them."""
        kind = self.method.get(method, _Own()).method.kind or (method if method in CATALOGUE else None)
        path = self.task.get(task, _Own()).data.path or self.base.data.path
        return Place(task=task, method=method, seed=seed, kind=kind, file=path and Path(path).name)


NO_PLAN = Plan.model_construct(methods=(), tasks=(), seeds=())
"""Of a folder that says nothing of what was asked for."""


class Damaged(UserError):
    """A finished run's folder that cannot be used.

    Attributes:
        what: what is wrong, without what to do about it.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what


def told(error: ValidationError, what: str) -> str:
    """A sentence: what is missing, and what has another value than it may have.

    >>> try: RecordedTrial.model_validate({"score": "x"})
    ... except ValidationError as error: print(told(error, "a trial"))
    got a trial without rate, score: got "x", expected a valid number
    """
    errors = error.errors(include_url=False)
    missing = [".".join(map(str, one["loc"])) for one in errors if one["type"] == "missing"]
    parts = [f"got {what} without {', '.join(missing)}"] if missing else []
    for one in errors:
        if one["type"] != "missing":
            kind = one["msg"].removeprefix("Input should be ").partition(", ")[0]
            expected = "a table" if one["type"] in ("model_type", "dict_type") else kind
            parts.append(f"{'.'.join(map(str, one['loc'])) or what}: got {short(one['input'])}, expected {expected}")
    return ", ".join(parts)


def short(value: Any) -> str:
    """A value as JSON, a long one cut."""
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_json(path: Path, kind: Any) -> Any:
    """A JSON file as a model, or another type that pydantic knows.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, a ValidationError where it is not of the kind.
    """
    return TypeAdapter(kind).validate_python(from_json(path.read_bytes()))


def line_of(error: ValueError) -> str:
    """As in ", line 3", where a text is not JSON from there on; "" for any other error."""
    return f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
