"""Models by their shapes alone, on torch's meta device: how many values one has, and a task with every name and shape and no number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from ..adapters.options import MixedPromptAdapter
from ..core.errors import UserError
from ..core.options import Options
from ..core.rng import Key
from .label_words import LabelWords, is_masked
from .lora import add_lora
from .objectives import ClassHead
from .options import ModelOptions
from .own_adapters import add_adapter
from .probe import rejecting
from .transformer_task import TransformerTask


@dataclass(frozen=True)
class Shape:
    """What a model's size is made of.

    Attributes:
        values: of the whole model without a head.
        block_values: of its transformer blocks, which is what computing costs by.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    values: int
    block_values: int


class ShapedTask(TransformerTask):
    """A task whose tensors lie on the meta device: they have names, shapes and dtypes, and nothing can be computed."""

    def params(self) -> dict[str, Tensor]:
        """The trainable tensors, on the meta device."""
        own = dict(self.model.named_parameters())
        return {name: own[name].detach() for name in self.names}

    def init_params(self, key: Key) -> dict[str, Tensor]:
        """As `params`: nothing is drawn."""
        return self.params()

    def _try_out(self, tolerance: float) -> None:
        """There is nothing to compute with."""


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape of a model with this configuration; no weights are made.

    Raises:
        UserError: transformers has no classifier of its family, or the configuration contradicts itself.
    """
    model = _on_meta(config, ClassHead.model_class)
    text = config.get_text_config()
    body = dict(getattr(model, model.base_model_prefix).named_parameters())
    tables = {id(value) for name, value in body.items() if "embed" in name or name.startswith(("wte", "wpe"))}
    return Shape(
        config.model_type,
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


def shaped_task(
    config: PretrainedConfig, options: ModelOptions, *, num_classes: int, adapter: Options | None = None, drawn: Sequence[str] = ()
) -> ShapedTask:
    """The task that a run with a model of this configuration has, by its shapes.

    Args:
        config: the model's own; its number of classes is set.
        adapter: one of `adapters.options`; None: LoRA as `options` say.
        drawn: modules that the model's file has no weights for, as `load_model` returns them.

    Raises:
        UserError: a model that cannot be trained this way.
    """
    key, objective = Key(0), ClassHead(num_classes)
    config.num_labels = num_classes
    with rejecting(config.model_type, config.model_type, "the shape"):
        if options.head == "label-words":  # which words does not matter here
            objective = LabelWords(tuple(range(num_classes)), 0 if is_masked(config) else None)
        model = _on_meta(config, objective.model_class)
        if adapter is None:
            return ShapedTask(add_lora(model, options, drawn=drawn, dropout=0.0, key=key), device="meta", objective=objective)
        sources = None
        if isinstance(adapter, MixedPromptAdapter):  # they are not sent, so that any number of them will do
            sources = torch.ones(1, adapter.num_tokens, config.get_text_config().hidden_size)
        add_adapter(model, adapter, head="last" if options.head == "last" else "full", drawn=drawn, key=key, sources=sources)
        return ShapedTask(model, device="meta", objective=objective)


def _on_meta(config: PretrainedConfig, kind: Any) -> Any:
    with rejecting(config.model_type, config.model_type, "the shape"), torch.device("meta"):
        return kind.from_config(config)
