"""The table [model] of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ..core.options import Options, entries_of

Pattern = Annotated[tuple[str, ...], BeforeValidator(entries_of)]
"""Names of linear maps, or regular expressions for them, each with a number: a table, or its entries as strings "name = number"."""


class ModelOptions(Options):
    """Which pre-trained model is fine-tuned, and through which adapter."""

    name: str = Field(default="minilm", description="Hub id, local folder, GGUF file, or a packaged model: `fibecfed list models`.")
    revision: str | None = Field(default=None, description="Commit or tag of a hub id; pin it for reproducible results.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="In which the frozen weights are loaded; bfloat16 takes half the memory. What is trained, norms and the output layer "
        "stay in float32.",
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        default=None,
        description="Keep the frozen weights of linear maps in 4 bit (QLoRA's NF4, with double quantisation) or 8 bit; needs the extra "
        "qlora.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Keep only the input of each block for the backward pass, and compute the block once more there."
    )
    rank: int = Field(default=8, ge=1, le=4096, description="r, LoRA rank.")
    alpha: float = Field(default=16.0, gt=0, description="LoRA alpha; the adapter's output is scaled by alpha / r.")
    rslora: bool = Field(default=False, description="Scale the adapter's output by alpha / sqrt(r) instead (rank-stabilised LoRA).")
    target_modules: tuple[str, ...] | Literal["all-linear"] | None = Field(
        default=None,
        description="Names of the linear layers that LoRA adapts, or all-linear: every one of the transformer blocks, so not the output "
        "layer. Default: query and value of the attention.",
    )
    layers_to_transform: tuple[int, ...] | None = Field(
        default=None, description="The transformer blocks, from 0, in which LoRA adapts them. Default: all."
    )
    rank_pattern: Pattern = Field(
        default=(),
        description="Ranks that differ from `rank`, as PEFT's rank_pattern: { q_proj = 16 }, by the end of a layer's path or a regular "
        "expression for it; the first that matches counts.",
    )
    alpha_pattern: Pattern = Field(default=(), description="Values that differ from `alpha`, likewise.")
    head: Literal["full", "last", "label-words"] = Field(
        default="full",
        description="[C] full: train the whole classification head; last: only its last linear map; label-words: train no head, and "
        "predict the class's verbaliser token with the pre-trained language-model head.",
    )


def numbers_of(pattern: tuple[str, ...]) -> dict[str, float]:
    """Name or regular expression -> number, of a `Pattern` whose entries are right, in their order."""
    parts = ((name.strip(), number) for name, _, number in (entry.rpartition("=") for entry in pattern))
    return {name: float(number) for name, number in parts}
