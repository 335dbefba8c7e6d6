"""The table of methods: name -> options -> the method. Adding one adds a row here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ..core.method import Method
from ..core.options import Options
from ..core.rng import Key
from ..local.options import CurriculumOptions, LayerOptions, NeuronOptions, TrainingOptions
from .fedavg import FedAvg
from .fibecfed import FibecFed, default_score_after


class FibecFedOptions(Options):
    """FibecFed: Fisher curriculum, chosen layers shared, sparse updates of the others."""

    kind: Literal["fibecfed"] = Field("fibecfed", description="The method.")
    score_after: int | None = Field(
        None, ge=0, description="[C] Round from which on a client is scored; default ceil(0.2 rounds). 0 = [S] the published order."
    )
    closing_round: bool = Field(False, description="[C] A last round in which the sampled clients send every layer, for newcomers.")
    curriculum: CurriculumOptions = CurriculumOptions()  # pyright: ignore[reportCallIssue]
    layers: LayerOptions = LayerOptions()  # pyright: ignore[reportCallIssue]
    neurons: NeuronOptions = NeuronOptions()  # pyright: ignore[reportCallIssue]


class LoraOptions(Options):
    """FedAvg-LoRA: every trained tensor is averaged over the clients."""

    kind: Literal["lora"] = Field("lora", description="The method.")
    finetune: bool = Field(False, description="After the last round every client trains once more and keeps the result.")


class LocalOptions(Options):
    """No federation: every client trains alone, in the rounds it is sampled for."""

    kind: Literal["local"] = Field("local", description="The method.")


METHODS: dict[str, type[Options]] = {"fibecfed": FibecFedOptions, "lora": LoraOptions, "local": LocalOptions}


@dataclass(frozen=True)
class Setting:
    """What a method gets from the rest of the configuration.

    Attributes:
        key: the method's own random stream.
    """

    training: TrainingOptions
    num_rounds: int
    num_clients: int
    key: Key


def make(options: Options, setting: Setting) -> Method[Any, Any]:
    """The method of a configuration."""
    match options:
        case FibecFedOptions():
            return FibecFed(
                training=setting.training,
                num_rounds=setting.num_rounds,
                curriculum=options.curriculum,
                layers=options.layers,
                neurons=options.neurons,
                score_after=default_score_after(setting.num_rounds) if options.score_after is None else options.score_after,
                closing_round=options.closing_round,
                key=setting.key,
            )
        case LoraOptions():
            return FedAvg(setting.training, setting.num_rounds, setting.num_clients, finetune=options.finetune)
        case LocalOptions():
            return FedAvg(setting.training, setting.num_rounds, setting.num_clients, shares="none")
        case _:
            raise TypeError(f"no method for {type(options).__name__}")
