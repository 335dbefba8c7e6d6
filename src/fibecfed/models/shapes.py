"""Models by their shapes alone: how many values a published one has, and small random ones of the same family to try things out on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from ..adapters.options import MixedPromptAdapter
from ..core.errors import UserError
from ..core.options import Options
from ..core.rng import Key
from .backbones import add_lora
from .options import ModelOptions
from .own_adapters import add_adapter
from .tiny import FAMILIES, Family, tiny_config
from .transformer_task import TransformerTask


@dataclass(frozen=True)
class Shape:
    """What a model's size is made of.

    Attributes:
        values: of the whole model without a head.
        block_values: of its transformer blocks, which is what computing costs by.
    """

    family: Family
    layers: int
    hidden: int
    heads: int
    values: int
    block_values: int


class UnknownFamily(UserError):
    """A model of a family that none of the small models is of."""


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape of a model with this configuration; no weights are made.

    Raises:
        UnknownFamily: a family that none of the small models is of.
    """
    known: dict[str, Family] = {name: name for name in FAMILIES}
    family = known.get(config.model_type)
    if family is None:
        raise UnknownFamily(f"model.name: got a {config.model_type} model, but only {', '.join(FAMILIES)} can be priced by their shape")
    config.num_labels = 2
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    text = config.get_text_config()
    body = dict(getattr(model, model.base_model_prefix).named_parameters())
    tables = {id(value) for name, value in body.items() if "embed" in name or name.startswith(("wte", "wpe"))}
    return Shape(
        family,
        text.num_hidden_layers,
        text.hidden_size,
        text.num_attention_heads,
        sum(value.numel() for value in body.values()),
        sum(value.numel() for value in body.values() if id(value) not in tables),
    )


def config_of(name: str, table: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' configuration of the shapes in an [architecture.<name>] table.

    Raises:
        UserError: `model_type` is not there, or is unknown.
    """
    shapes = dict(table)
    try:
        return AutoConfig.for_model(shapes.pop("model_type"), **shapes)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f'architecture."{name}": {error}; expected `model_type` and keys of its transformers configuration') from None


def small_task(
    family: Family, *, layers: int, hidden: int, options: ModelOptions, adapter: Options | None, num_classes: int
) -> TransformerTask:
    """A small random model of a family with the run's adapter, in float32 on the CPU."""
    key = Key(0)
    config = tiny_config(family, num_classes=num_classes, layers=layers, hidden=hidden, heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    if adapter is None:
        return TransformerTask(add_lora(model, options, dropout=0.0, key=key))
    # source prompts are not sent, so that any will do
    sources = torch.ones(4, adapter.num_tokens, hidden) if isinstance(adapter, MixedPromptAdapter) else None
    add_adapter(model, adapter, head="last" if options.head == "last" else "full", key=key, sources=sources)
    return TransformerTask(model)
