"""A task without classes, on data without classes: a causal language model that is to predict every next token of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from fibecfed.core.rng import Key
from fibecfed.core.statistics import Statistics
from fibecfed.core.types import Batch
from fibecfed.data.federated import FederatedData
from fibecfed.data.planted import planted_federation
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.label_words import LabelWords, LanguageHead
from fibecfed.models.tiny import tiny_model


class EveryToken(nn.Module):
    """Scores of the token after each one but the last."""

    pooling = "last"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head = LanguageHead(model)

    def forward(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.head(hidden[_before_another(inputs["attention_mask"])])


@dataclass(frozen=True)
class NextTokens:
    """An objective: the loss of an example is the sum of -log p(next token) over its tokens."""

    model_class = AutoModelForCausalLM
    draws_head = False
    mask_id = None
    takes = ()

    def head(self, model: nn.Module, body: nn.Module) -> Any:
        return EveryToken(model)

    def beside(self, inputs: Batch) -> Batch:
        return {}

    def losses(self, scores: Tensor, batch: Batch) -> Tensor:
        where = _before_another(batch["attention_mask"])
        next_tokens = batch["input_ids"].roll(-1, dims=1)[where]
        rows = where.nonzero()[:, 0]
        return scores.new_zeros(len(where)).index_add(0, rows, cross_entropy(scores, next_tokens, reduction="none"))

    @property
    def statistics(self) -> Statistics:
        zero = {"nll": torch.zeros((), dtype=torch.float64), "examples": torch.zeros((), dtype=torch.int64)}
        return Statistics(zero, lambda sums: (int(sums["examples"]),), lambda sums: None, lambda place: "any kind", "loss")

    def sums(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = self.losses(scores, batch)
        return {"nll": losses.double().sum().cpu(), "examples": torch.tensor(len(losses))}

    def own_scores(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        return logits[:, :-1].flatten(0, 1)

    def some_labels(self, input_ids: Tensor) -> Tensor:
        return input_ids


def _before_another(mask: Tensor) -> Tensor:
    """Whether another token follows, (batch, token)."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return (mask * following).bool()


def next_token_task(dtype: torch.dtype = torch.float32) -> AdaptedModel:
    """A tiny LLaMA with LoRA."""
    model: Any = tiny_model("llama", words=LabelWords((8, 9), None))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # random ones are so small that nothing can be told with them
    return AdaptedModel(model.to(dtype), objective=NextTokens())


def texts(clients: int = 4, each: int = 6, **more: Any) -> FederatedData:
    """Texts of which nobody knows a class."""
    return planted_federation(clients, each, Key(7).fold("data"), **{"length": 12, "classes": False, **more})
