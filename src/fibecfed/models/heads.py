"""How the classifiers of each model family turn hidden vectors into class scores, and which of their modules are the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

Pooling: TypeAlias = Literal["first", "last", "mean", "mask"]
"""Which hidden vector of an example its class is read from: that of the first or last token that is not padding, the mean of all, or that
of the mask token."""

DECODER_HEAD = "score"
"""Decoder classifiers call their head so, and pool the last token; encoders pool the first or the mean."""


class UnsupportedModel(ValueError):
    """A classifier of a kind that is not known here: trained as if it were known, it would be another function than its own."""


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules of a classifier that no pre-trained model has: they are new, and trained.

    Raises:
        UnsupportedModel: a classifier of a kind that is not known here.
    """
    names = [name for name in (DECODER_HEAD, "classifier", "pre_classifier") if isinstance(getattr(model, name, None), nn.Module)]
    if not names:
        raise UnsupportedModel(
            f"{type(model).__name__} is not supported: got the parts {[name for name, _ in model.named_children()]}, expected a `score` on "
            "the last token or a `classifier` on the first"
        )
    return names


def last_linear(model: nn.Module) -> str:
    """Path, inside the classifier, of the last linear map of its head."""
    name = DECODER_HEAD if hasattr(model, DECODER_HEAD) else "classifier"
    return f"{name}.out_proj" if hasattr(getattr(model, name), "out_proj") else name


class _Head(nn.Module):
    """Calls modules that belong to the classifier, without owning them: they must not appear twice among its parameters."""

    def __init__(self, model: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self._model: list[Any] = [model]
        self._body: list[Any] = [body]

    def forward(self, vector: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, classes)."""
        model, body = self._model[0], self._body[0]
        if hasattr(model, DECODER_HEAD):
            return model.score(vector)
        if hasattr(_inner(model.classifier), "out_proj"):  # as RoBERTa's: takes the first token itself, while LayoutLMv3's takes each
            scores = model.classifier(vector.unsqueeze(1))
            return scores[:, 0] if scores.ndim == 3 else scores
        pooler = getattr(model, "pooler", getattr(body, "pooler", None))  # DeBERTa's, or the body's own as in BERT
        if pooler is not None:
            vector = pooler(vector.unsqueeze(1))
        if hasattr(model, "pre_classifier"):  # DistilBERT
            vector = model.pre_classifier(vector).relu()
        if hasattr(model, "head"):  # ModernBERT
            vector = model.head(vector)
        dropout = getattr(model, "dropout", getattr(model, "drop", None))
        return model.classifier(vector if dropout is None else dropout(vector))


def _inner(module: nn.Module) -> nn.Module:
    """The module behind PEFT's wrapper for modules that are saved with the adapter."""
    inner = getattr(module, "original_module", module)
    return inner if isinstance(inner, nn.Module) else module


def classifier_head(model: nn.Module, body: nn.Module) -> tuple[nn.Module, Pooling]:
    """The head as a function of one hidden vector per example, and which vector that is.

    Raises:
        UnsupportedModel: a classifier of a kind that is not known here.
    """
    head_modules(model)
    if hasattr(model, DECODER_HEAD):
        return _Head(model, body), "last"
    mean = getattr(model.config, "classifier_pooling", None) == "mean"
    return _Head(model, body), "mean" if mean else "first"


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """The one vector of each example: hidden (batch, token, hidden), mask (batch, token) of 0 and 1 -> (batch, hidden).

    For the pooling "mask" the 1 in each row of `mask` is the mask token's.
    """
    if pooling == "mean":
        return (hidden * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    positions = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device) if pooling == "last" else mask
    return hidden[torch.arange(len(mask), device=hidden.device), positions.argmax(1)]


class PooledHead(nn.Module):
    """A head on one vector of each example.

    Args:
        head: (batch, hidden) -> (batch, scores).
        pooling: which vector.
        places: name of the mask for `pool` among the inputs.
    """

    def __init__(self, head: nn.Module, pooling: Pooling, places: str = "attention_mask") -> None:
        super().__init__()
        self.head = head
        self.pooling: Pooling = pooling
        self._places = places

    def forward(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """(batch, token, hidden) -> (batch, scores)."""
        return self.head(pool(hidden, inputs[self._places], self.pooling))
