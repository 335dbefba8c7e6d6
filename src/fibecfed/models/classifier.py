"""Body, adapter and head of a Hugging Face model as one module: from tokens to class scores, whatever they are padded with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..adapters.body import Adapter, Body
from .heads import Pooling, UnsupportedModel, classifier_head, pool
from .label_words import LabelWords, LanguageHead, word_positions

ADAPTER = "adapter."
"""Names of the tensors of an adapter of ours begin with it."""


class Classifier(nn.Module):
    """Body, with an adapter of ours where the model has one; pooling by the attention mask; head."""

    def __init__(self, model: nn.Module, words: LabelWords | None) -> None:
        super().__init__()
        whole: Any = model
        base: Any = whole.get_base_model() if hasattr(model, "get_base_model") else model
        self.model = model
        self.kind = type(base).__name__
        self.config: Any = base.config
        self.body: Any = getattr(base, base.base_model_prefix)
        number = getattr(self.config, "num_hidden_layers", 0)
        blocks = _find_blocks(model, number)
        if blocks is None:
            raise UnsupportedModel(f"{self.kind} is not supported: got no list of {number} transformer blocks, each with its own weights")
        self.blocks_name, self.blocks = blocks
        self.pooling: Pooling
        self._words = words
        if words is None:
            self.head, self.pooling = classifier_head(base, self.body)
        else:
            self.head, self.pooling = LanguageHead(base), "last" if words.mask_id is None else "mask"
        self._takes = frozenset(inspect.signature(self.body.forward).parameters)
        # RoBERTa and its like count positions from behind the padding index
        table: Any = getattr(getattr(self.body, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        self._first_position: int = 0 if padding is None else padding + 1
        self.adapter: Adapter | None = getattr(base, "adapter", None)
        vector = functools.partial(pool, pooling=self.pooling)
        self._frozen = Body(self.body, tuple(self.blocks), self._takes, self._first_position, self.pooling == "last", vector)
        if self.adapter is not None:
            self.adapter.check(self._frozen)

    @property
    def num_positions(self) -> int:
        """Positions before the text's, in every hidden state."""
        return 0 if self.adapter is None else self.adapter.num_positions

    def forward(self, inputs: Mapping[str, Tensor], embeddings: Tensor | None, adapted: bool = True) -> Tensor:
        mask = inputs["attention_mask"]
        keywords: dict[str, Any] = {name: value for name, value in inputs.items() if name in self._takes}
        if "position_ids" in self._takes and "position_ids" not in keywords:
            keywords["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + self._first_position
        if "use_cache" in self._takes:
            keywords["use_cache"] = False
        if embeddings is not None:
            del keywords["input_ids"]
            keywords["inputs_embeds"] = embeddings
        if self.adapter is None or not adapted:
            hidden = self.body(**keywords).last_hidden_state
        else:
            hidden = self.adapter.run(self._frozen, keywords)[:, self.num_positions :]
        where = mask if self._words is None else word_positions(inputs["input_ids"], mask, self._words)
        return self.head(pool(hidden, where, self.pooling))


def _find_blocks(model: nn.Module, number: int) -> tuple[str, nn.ModuleList] | None:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and number and len(module) == number and not name.startswith(ADAPTER) and "lora" not in name:
            return name, module
    return None
