"""An adapted model that predicts classes: implements `core.classification.Classification`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core.types import Batch, Params
from .adapted_model import AdaptedModel
from .objectives import ClassHead, ClassObjective


class TransformerTask(AdaptedModel):
    """An adapted model that predicts classes: a Hugging Face sequence classifier, or with `LabelWords` as its objective a language model.

    Args:
        objective: None: the model's own classification head.
        precision, device, dropout: as for `AdaptedModel`.
    """

    _objective: ClassObjective

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: ClassObjective | None = None,
        precision: str = "float32",
        device: str | torch.device = "cpu",
        dropout: float = 0.0,
    ) -> None:
        whole: Any = model
        found = ClassHead(whole.config.num_labels) if objective is None else objective
        super().__init__(model, objective=found, precision=precision, device=device, dropout=dropout)

    @property
    def num_classes(self) -> int:
        """Classes of the head, or words."""
        return self._objective.num_classes

    def logits(self, params: Params, batch: Batch) -> Float[Tensor, "batch classes"]:
        """Class scores, float32 or better, without a graph."""
        return self._objective.of_classes(self.scores(params, batch))

    def predict(self, params: Params, batch: Batch) -> Int[Tensor, " batch"]:
        """The most likely class of each example, without a graph."""
        return self.logits(params, batch).argmax(-1)
