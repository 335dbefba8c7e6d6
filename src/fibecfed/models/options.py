"""The table [model] of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..core.options import Options


class ModelOptions(Options):
    """Which pre-trained model is fine-tuned, and through which adapter."""

    name: str = Field(default="minilm", description="Hub id, local folder, GGUF file, or a packaged model: `fibecfed list models`.")
    revision: str | None = Field(default=None, description="Commit or tag of a hub id; pin it for reproducible results.")
    rank: int = Field(default=8, ge=1, le=4096, description="r, LoRA rank.")
    alpha: float = Field(default=16.0, gt=0, description="LoRA alpha; the adapter's output is scaled by alpha / r.")
    target_modules: tuple[str, ...] | None = Field(
        default=None, description="Names of the linear layers that LoRA adapts. Default: query and value of the attention."
    )
    head: Literal["full", "last", "label-words"] = Field(
        default="full",
        description="[C] full: train the whole classification head; last: only its last linear map; label-words: train no head, and "
        "predict the class's verbaliser token with the pre-trained language-model head.",
    )
