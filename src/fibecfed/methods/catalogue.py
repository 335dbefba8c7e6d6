"""From the options of a method to the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.method import Method
from ..core.options import Options
from ..core.rng import Key
from ..local.options import TrainingOptions
from .fedavg import FedAvg
from .fibecfed import FibecFed, default_score_after
from .options import FibecFedOptions, LocalOptions, LoraOptions


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
