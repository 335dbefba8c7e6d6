"""Small adapters of every kind, and tasks in float64 whose logits differ from text to text."""

from __future__ import annotations

import functools

import torch
from texts import noisy
from torch import Tensor

from fibecfed.adapters.options import (
    BottleneckAdapter,
    GeneratedPromptAdapter,
    LatePromptAdapter,
    MixedPromptAdapter,
    PrefixAdapter,
    PromptAdapter,
)
from fibecfed.core.options import Options
from fibecfed.models.tiny import Family, tiny_task
from fibecfed.models.transformer_task import TransformerTask

TOKENS = 3
SMALL: dict[str, Options] = {
    "bottleneck": BottleneckAdapter(size=4),
    "prompt": PromptAdapter(num_tokens=TOKENS),
    "prefix": PrefixAdapter(num_tokens=TOKENS),
    "generated prompt": GeneratedPromptAdapter(num_tokens=TOKENS, size=4),
    "mixed prompt": MixedPromptAdapter(num_tokens=TOKENS, size=4, temperature=2.0),
    "late prompt": LatePromptAdapter(num_tokens=TOKENS, size=4),
}


def adapted(family: Family, kind: str, *, layers: int = 2, num_classes: int = 3, seed: int = 0) -> TransformerTask:
    """A task in float64 with wide random matrices, so that texts and adapters show in its logits."""
    task = tiny_task(family, dtype=torch.float64, adapter=SMALL[kind], layers=layers, num_classes=num_classes, seed=seed)
    with torch.no_grad():
        for name, value in task.model.named_parameters():
            if value.ndim == 2 and not name.startswith("adapter."):
                value.mul_(5)
    return task


@functools.cache
def made(family: Family, kind: str) -> tuple[TransformerTask, dict[str, Tensor]]:
    """A task and parameters that are not its own; for tests that do not change it."""
    task = adapted(family, kind)
    return task, noisy(task)
