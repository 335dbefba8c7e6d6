"""`Config`, the whole of a run's configuration, and what is computed from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from ..core.options import Options
from ..data.options import DataOptions
from ..engine.options import EvaluationOptions, FederationOptions, ResourceOptions
from ..local.options import TrainingOptions
from ..methods.catalogue import CATALOGUE, METHODS, discover
from ..methods.defaults import RATE
from ..methods.options import CustomOptions
from ..models.options import ModelOptions
from ..privacy.options import PrivacyOptions
from ..tracking.sinks import SINKS
from .rules import contradictions
from .text import ConfigKey, commented_toml, keys_of

DEFAULT_KIND = "fibecfed"

discover()
OPTIONS = {**METHODS, "custom": CustomOptions}
"""`method.kind` -> its options, of every method that a run's configuration may name."""

if TYPE_CHECKING:
    from ..methods.options import MethodOptions
else:
    MethodOptions = Annotated[reduce(or_, OPTIONS.values()), Field(discriminator="kind")]


class Config(Options):
    """The configuration of a run. Without a method it is FibecFed with its defaults."""

    seed: int = Field(default=0, ge=0, description="Seed of all random draws of the run.")
    tracking: tuple[str, ...] = Field(
        default=(),
        description=f"Also write the run's values for {', '.join(SINKS)}: a list of these names. Each writes in the run's folder and sends "
        "nothing; docs/watching.md.",
    )
    tracking_by_client: bool = Field(default=False, description="Also track the values of each client.")
    model: ModelOptions = ModelOptions()
    data: DataOptions
    federation: FederationOptions = FederationOptions()
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    resources: ResourceOptions = ResourceOptions()
    privacy: PrivacyOptions = PrivacyOptions()
    method: MethodOptions = Field(default_factory=lambda: METHODS[DEFAULT_KIND]())

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        self._take_the_rate_of_the_method()
        found = contradictions(self)
        if found:
            raise ValueError("\n".join(found))
        return self

    def _take_the_rate_of_the_method(self) -> None:
        """One made in Python has the learning rate of its method too, where it gives none; one that is read gives it."""
        row = CATALOGUE.get(self.method.kind)
        if row is not None and "learning_rate" not in self.training.model_fields_set:
            training = self.training.model_copy(update={"learning_rate": row.learning_rate})
            object.__setattr__(self, "training", training)  # frozen for everybody else


def to_toml(config: Config) -> str:
    """The resolved configuration: every key with its description, in a stable order. Read back, it gives an equal `Config`."""
    values = flat(config)
    return commented_toml("A resolved configuration of fibecfed: every key, given or default.", keys(values["method.kind"]), values)


def config_hash(config: Config) -> str:
    """SHA-256 of the configuration as canonical JSON: the same for equal configurations, whatever text they were read from."""
    return hashlib.sha256(json.dumps(config.model_dump(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(a: Config, b: Config) -> list[str]:
    """Dotted keys whose values differ, sorted. A key that only one of them has differs."""
    left, right = flat(a), flat(b)
    absent = object()
    return sorted(name for name in left.keys() | right.keys() if left.get(name, absent) != right.get(name, absent))


def flat(config: Config) -> dict[str, Any]:
    """Dotted key -> value."""
    return dict(leaves(config.model_dump()))


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a table that is not itself a table."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@cache
def keys(kind: str) -> tuple[ConfigKey, ...]:
    """Every key of a configuration whose method is `kind`, in the order `to_toml` writes them.

    Raises:
        KeyError: there is no such method.
    """
    rate = CATALOGUE[kind].learning_rate if kind in CATALOGUE else None
    common = tuple(
        replace(key, default=rate) if rate is not None and key.name == RATE else key
        for key in keys_of(Config)
        if not key.name.startswith("method")
    )
    return common + tuple(keys_of(OPTIONS[kind], "method.", kind))


_FOR_OWN_DATA = (
    "seed", "tracking", "model.name", "model.rank", "model.alpha", "data.path", "data.text_column", "data.pair_column", "data.label_column",
    "data.client_column", "data.labels", "data.test_path", "data.test_fraction", "data.max_length", "federation.clients",
    "federation.clients_per_round", "federation.rounds", "federation.partition", "federation.alpha", "training.local_epochs",
    "training.batch_size", "training.learning_rate", "evaluation.every", "evaluation.save", "evaluation.patience", "method.kind",
    "method.preset",
)  # fmt: skip


_FOR_ANSWERS = (
    "seed", "tracking", "model.name", "model.rank", "model.alpha", "data.kind", "data.path", "data.shape", "data.prompt_column",
    "data.completion_column", "data.messages_column", "data.system_column", "data.system", "data.loss_on", "data.chat_template",
    "data.client_column", "data.test_path", "data.test_fraction", "data.max_length", "federation.clients", "federation.clients_per_round",
    "federation.rounds", "federation.partition", "training.local_epochs", "training.batch_size", "training.objective",
    "training.learning_rate", "evaluation.every", "evaluation.save", "evaluation.patience", "method.kind", "method.preset",
    "method.curriculum.order", "method.curriculum.normalise",
)  # fmt: skip


_FOR_MACHINES = (
    "seed", "model.name", "model.rank", "model.alpha", "data.labels", "data.test_fraction", "data.validation_fraction", "data.max_length",
    "federation.clients", "federation.client_names", "federation.clients_per_round", "federation.rounds", "federation.partition",
    "federation.on_failure", "federation.quorum", "federation.round_attempts", "federation.round_timeout_s", "federation.exclude_after",
    "federation.max_samples", "federation.max_update_norm", "training.local_epochs", "training.batch_size", "training.learning_rate",
    "evaluation.every", "evaluation.patience", "method.kind", "method.preset",
)  # fmt: skip


_FOR_MACHINES_ANSWERS = ("data.kind", "data.system", "data.loss_on", "data.chat_template", "training.objective")


def federation_toml(kind: str = "classification") -> str:
    """A commented configuration for a federation across machines.

    Args:
        kind: of the data, as `data.kind`.
    """
    answers = kind == "instruction"
    names = {*_FOR_MACHINES, *_FOR_MACHINES_ANSWERS} - {"data.labels"} if answers else _FOR_MACHINES
    chosen = [key for key in keys(DEFAULT_KIND) if key.name in names]
    own = {"data.kind": kind, "model.name": "smollm2-135m", "training.learning_rate": 1e-3}
    values = (
        {key.name: key.default for key in chosen}
        | (own if answers else {"data.labels": ("negative", "positive")})
        | {
            "federation.clients": 3,
            "federation.clients_per_round": 3,
            "federation.partition": "machines",
            "federation.on_failure": "drop",
            "federation.round_timeout_s": 600.0,  # what Flower loses would else be waited for a day
            "federation.max_samples": 10_000_000 if answers else 100_000,
            "federation.max_update_norm": 1000.0,
        }
    )
    title = (
        "A configuration of fibecfed for a federation across machines: the same file on the server and on every client.\n"
        "The location of a client's data is given to `fibecfed client`; it is not part of this file."
    )
    return commented_toml(title, chosen, values, off="{key} =")


_FIRST = (
    "data.path", "data.text_column", "data.label_column", "data.client_column", "model.name", "federation.clients", "federation.rounds",
    "training.learning_rate",
)  # fmt: skip
_FIRST_FOR_ANSWERS = (
    "data.kind", "data.path", "data.prompt_column", "data.completion_column", "data.client_column", "model.name", "federation.rounds",
    "training.learning_rate",
)  # fmt: skip
"""What one sets first."""


def own_data_toml(kind: str = "classification", *, few: bool = False) -> str:
    """A commented configuration for the user's own data: the keys one is likely to change, at their defaults.

    Args:
        kind: of the data, as `data.kind`.
        few: only those that one sets first.
    """
    answers = kind == "instruction"
    names = (_FIRST_FOR_ANSWERS if answers else _FIRST) if few else _FOR_ANSWERS if answers else _FOR_OWN_DATA
    chosen = [key for key in keys(DEFAULT_KIND) if key.name in names]
    values = {key.name: key.default for key in chosen} | {"data.path": "my-data.csv"}
    values |= {} if few else {"federation.partition": None}
    if answers:
        values |= {"data.kind": kind, "data.path": "my-chats.jsonl", "model.name": "smollm2-135m", "training.learning_rate": 1e-3}
    title = (
        "A configuration of fibecfed for your own data. Set data.path and the columns; then\n"
        "  fibecfed check FILE    shows what would be trained and sent, and every mistake in the file\n"
        "  fibecfed run FILE      trains\n"
        "Paths are taken from the folder in which fibecfed is called. Lines that begin with # have no effect; remove the # to set a key.\n"
        "Keys that are not set have their defaults; a run writes every key and value to config.toml in its folder."
    )
    if few:
        title += "\n`fibecfed init --all` writes a file with more keys, docs/configuration.md describes every one."
    return commented_toml(title, chosen, values, off="{key} =")
