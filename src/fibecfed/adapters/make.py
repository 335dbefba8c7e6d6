"""From an adapter's options to the adapter, beside a classifier whose every other tensor is frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.options import Options
from ..core.rng import Key
from .bottleneck import Bottlenecks
from .generated_prompt import GeneratedPrompt
from .late_prompt import LatePrompt
from .mixed_prompt import MixedPrompt
from .options import (
    BottleneckAdapter,
    GeneratedPromptAdapter,
    LatePromptAdapter,
    MixedPromptAdapter,
    PrefixAdapter,
    PromptAdapter,
)
from .prefix import Prefix
from .soft_prompt import SoftPrompt


def attach(model: Any, options: Options, *, key: Key, sources: Tensor | None = None) -> None:
    """Freeze a Hugging Face classifier and give it the module `adapter`, drawn from `key`.

    Args:
        sources: frozen source prompts of a mixed prompt, (sources, tokens, hidden).

    Raises:
        UserError: sources are missing or of another shape.
        TypeError: options of no adapter.
    """
    model.requires_grad_(False)
    vocabulary = model.get_input_embeddings().weight
    adapter: Any = _make(options, model.config.get_text_config(), vocabulary.shape[1], sources)
    adapter.to(vocabulary.device, vocabulary.dtype)
    with torch.no_grad():
        for name, value in adapter.named_parameters() if vocabulary.device.type != "meta" else ():  # a shape has no numbers
            value.copy_(adapter.draw(name, value, key.fold(name).generator(), vocabulary))
    adapter.options = options
    model.adapter = adapter
    if adapter.trains_norms:
        for name in norms(model.base_model):
            model.base_model.get_parameter(name).requires_grad_(True)


def norms(model: nn.Module) -> list[str]:
    """Names of the parameters of normalisation layers."""
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if "Norm" in type(module).__name__
        for name, _ in module.named_parameters(recurse=False)
    ]


def _make(options: Options, config: Any, hidden: int, sources: Tensor | None) -> nn.Module:
    layers: int = config.num_hidden_layers
    if hidden != config.hidden_size and not isinstance(options, PrefixAdapter | BottleneckAdapter):
        raise UserError(
            f"method.kind: a prompt cannot be used with this model: its embeddings have {hidden} dimensions and its hidden states "
            f"{config.hidden_size}; choose a model where both are the same"
        )
    hidden = config.hidden_size
    if isinstance(options, BottleneckAdapter):
        return Bottlenecks(options.size, layers, hidden)
    if isinstance(options, PromptAdapter):
        return SoftPrompt(options.num_tokens, hidden, options.start)
    if isinstance(options, PrefixAdapter):
        heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return Prefix(options.num_tokens, layers, heads, dim, getattr(config, "initializer_range", 0.02))
    if isinstance(options, GeneratedPromptAdapter):
        return GeneratedPrompt(options.num_tokens, options.size, hidden)
    if isinstance(options, LatePromptAdapter):
        return LatePrompt(options.num_tokens, options.size, hidden)
    if isinstance(options, MixedPromptAdapter):
        if sources is None or sources.shape[1:] != (options.num_tokens, hidden):
            got = "none" if sources is None else f"shape {tuple(sources.shape)}"
            raise UserError(f"method.sources: got {got}, expected source prompts of shape (sources, {options.num_tokens}, {hidden})")
        return MixedPrompt(sources, options.size, options.temperature, options.start)
    raise TypeError(f"no adapter for {type(options).__name__}")
