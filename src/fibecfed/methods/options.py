"""The table [method] of a configuration: one class a kind. Light to import, so that a configuration can be read without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.options import Options
from ..local.options import CurriculumOptions, LayerOptions, NeuronOptions


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


METHODS: dict[str, type[Options]] = {"fibecfed": FibecFedOptions, "lora": LoraOptions, "local": LocalOptions}
"""`method.kind` -> its options. Adding a method adds a row here and a case in catalogue.py."""
