"""The table of methods: `method.kind` -> its options, and the file that makes it of them.

Adding a method adds its options and its row here, a file with a function `build` (or parts of fedavg.py), a row of the contract table in
tests/contract and a page in docs/methods. Light to import, so that a configuration can be read without torch: a method's own file is
imported when the method is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..core.options import Options
from ..local.options import CurriculumOptions, LayerOptions, NeuronOptions, TrainingOptions

if TYPE_CHECKING:
    from ..core.method import Method
    from ..core.rng import Key


class FibecFedOptions(Options):
    """FibecFed: Fisher curriculum, chosen layers shared, sparse updates of the others."""

    kind: Literal["fibecfed"] = Field(default="fibecfed", description="The method.")
    score_after: int | None = Field(
        default=None, ge=0, description="[C] Round from which on a client is scored; default ceil(0.2 rounds). 0 = [S] the published order."
    )
    closing_round: bool = Field(default=False, description="[C] A last round in which the sampled clients send every layer, for newcomers.")
    curriculum: CurriculumOptions = CurriculumOptions()
    layers: LayerOptions = LayerOptions()
    neurons: NeuronOptions = NeuronOptions()


class LoraOptions(Options):
    """FedAvg-LoRA: every trained tensor is averaged over the clients."""

    kind: Literal["lora"] = Field(default="lora", description="The method.")
    finetune: bool = Field(default=False, description="After the last round every client trains once more and keeps the result.")


class LocalOptions(Options):
    """No federation: every client trains alone, in the rounds it is sampled for."""

    kind: Literal["local"] = Field(default="local", description="The method.")


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        options: its table in a configuration.
        file: the module of this package whose `build(options, setting)` makes it.
        paper: where it comes from.
        learning_rate: centre of the rates that a comparison tries; `rate_source` says who uses it.
    """

    options: type[Options]
    file: str
    paper: str
    learning_rate: float
    rate_source: str


_LORA_RATE = "Hu et al. 2022, table of hyperparameters for RoBERTa base on GLUE: 4e-4 to 5e-4"

CATALOGUE: dict[str, Row] = {
    "fibecfed": Row(FibecFedOptions, "fibecfed", "Liu et al., EMNLP 2024", 5e-4, _LORA_RATE),
    "lora": Row(LoraOptions, "fedavg", "Hu et al., ICLR 2022; McMahan et al., AISTATS 2017", 5e-4, _LORA_RATE),
    "local": Row(LocalOptions, "fedavg", "no federation", 5e-4, _LORA_RATE),
}

METHODS: dict[str, type[Options]] = {kind: row.options for kind, row in CATALOGUE.items()}
"""`method.kind` -> its options."""


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
    """The method of a configuration.

    Raises:
        TypeError: options of no method.
    """
    row = next((row for row in CATALOGUE.values() if row.options is type(options)), None)
    if row is None:
        raise TypeError(f"no method for {type(options).__name__}")
    return import_module(f"{__package__}.{row.file}").build(options, setting)
