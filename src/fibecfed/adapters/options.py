"""Which adapter a method trains. Light to import, so that a configuration can be read without torch.

A method whose options have a field `adapter` brings its own; every other one trains LoRA as `[model]` says.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.options import Options


class BottleneckAdapter(Options):
    """Bottleneck layers after each sub-layer (Houlsby et al. 2019)."""

    size: int = Field(default=64, ge=1, description="[S] Bottleneck size; the paper's default.")


class PromptAdapter(Options):
    """Soft tokens before the input (Lester et al. 2021)."""

    num_tokens: int = Field(default=20, ge=1, description="[C] Number of soft tokens.")
    start: Literal["vocabulary", "random"] = Field(
        default="vocabulary", description="Initialisation: embeddings of randomly drawn words, or random vectors."
    )


class PrefixAdapter(Options):
    """Trainable keys and values before those of the text, in every layer (Liu et al. 2022, P-tuning v2)."""

    num_tokens: int = Field(default=20, ge=1, description="[C] Prefix length in each layer.")


class GeneratedPromptAdapter(Options):
    """Soft tokens generated for each example from the frozen model's sentence vector (Wu et al. 2022, IDPG)."""

    num_tokens: int = Field(default=5, ge=1, description="[S] Number of soft tokens.")
    size: int = Field(default=64, ge=1, description="[C] Bottleneck size of the prompt generator.")


class MixedPromptAdapter(Options):
    """A prompt mixed for each example from frozen source prompts and a trained one (Asai et al. 2022, ATTEMPT)."""

    num_tokens: int = Field(default=20, ge=1, description="[C] Number of soft tokens per prompt.")
    size: int = Field(default=100, ge=1, description="[S] Bottleneck size of the attention network, as in the published code.")
    temperature: float | None = Field(
        default=None, gt=0, description="[S] Temperature of the attention's softmax; default: hidden size x e."
    )
    start: Literal["source", "vocabulary"] = Field(
        default="source",
        description="Initialisation of the target prompt: the first source prompt [S: published code], or embeddings of words.",
    )


class LatePromptAdapter(Options):
    """A prompt generated from the hidden state at the middle layer and inserted there (Liu et al. 2022, LPT)."""

    num_tokens: int = Field(default=5, ge=1, description="[S] Number of soft tokens, as in the published scripts.")
    size: int = Field(default=128, ge=1, description="[S] Bottleneck size of the prompt generator, as in the published scripts.")


ADAPTERS: dict[str, type[Options]] = {
    "bottleneck": BottleneckAdapter,
    "prompt": PromptAdapter,
    "prefix": PrefixAdapter,
    "generated prompt": GeneratedPromptAdapter,
    "mixed prompt": MixedPromptAdapter,
    "late prompt": LatePromptAdapter,
}
"""What an adapter is called in files and messages -> its options."""


ANSWERING = ("bottleneck", "prompt", "prefix")
"""Adapters that answers can be trained with: the others make their prompt from the whole text, the answer in it."""


def called(adapter: Options) -> str:
    """The name of an adapter's kind."""
    return next(name for name, kind in ADAPTERS.items() if kind is type(adapter))


def positions_used(adapter: Options | None) -> int:
    """How many of a model's positions an adapter takes from the text, where they come from a table."""
    return adapter.num_tokens if isinstance(adapter, PromptAdapter | GeneratedPromptAdapter | MixedPromptAdapter) else 0
