"""Body, adapter and head of a Hugging Face model as one module: from tokens to scores, whatever they are padded with."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.body import Adapter, Body
from .heads import UnsupportedModel, pool
from .objectives import Objective

ADAPTER = "adapter."
"""Names of the tensors of an adapter of ours begin with it."""


class AdaptedNetwork(nn.Module):
    """Body, with an adapter of ours where the model has one; then the objective's head."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        whole: Any = model
        base: Any = whole.get_base_model() if hasattr(model, "get_base_model") else model
        self.model = model
        self.kind = type(base).__name__
        self.config: Any = base.config
        self.body: Any = getattr(base, base.base_model_prefix)
        number = getattr(self.config, "num_hidden_layers", 0)
        if not number:
            raise UnsupportedModel(
                f"{self.kind} is not supported: its configuration names no number of transformer blocks, as where a model has several parts"
            )
        blocks = find_blocks(model, number)
        if blocks is None:
            raise UnsupportedModel(f"{self.kind} is not supported: got no list of {number} transformer blocks, each with its own weights")
        self.blocks_name, self.blocks = blocks
        self.head = objective.head(base, self.body)
        self.pooling = self.head.pooling
        self._takes = frozenset(inspect.signature(self.body.forward).parameters)
        self._first_position = _first_position(getattr(self.body, "embeddings", None))
        self.adapter: Adapter | None = getattr(base, "adapter", None)
        vector = functools.partial(pool, pooling=self.pooling)
        self._frozen = Body(self.body, tuple(self.blocks), self._takes, self._first_position, self.pooling == "last", vector)
        if self.adapter is not None:
            self.adapter.check(self._frozen)

    @property
    def num_positions(self) -> int:
        """Positions before the text's, in every hidden state."""
        return 0 if self.adapter is None else self.adapter.num_positions

    def placed(self, inputs: Mapping[str, Tensor], positions: Tensor) -> dict[str, Any]:
        """What of the inputs the body takes, with the position of each token, counted from 0, where it takes positions."""
        keywords = {name: value for name, value in inputs.items() if name in self._takes}
        if "position_ids" in self._takes and "position_ids" not in keywords:
            keywords["position_ids"] = positions + self._first_position
        return keywords

    def read_on(self, keywords: Mapping[str, Any], *, begun: bool) -> tuple[Tensor, Any]:
        """The last hidden states of tokens, and the cache with their keys and values.

        Args:
            keywords: as `placed` has them, with the cache of what was read before.
            begun: whether something was.
        """
        if self.adapter is None:
            out = self.body(**keywords)
            return out.last_hidden_state, out.past_key_values
        read = self.adapter.go_on if begun else self.adapter.run
        return read(self._frozen, keywords), keywords["past_key_values"]

    def few_tokens(self, masked: int | None, device: torch.device) -> Tensor:
        """One example of four tokens, with the token `masked` among them where there is one."""
        pad, number = self.config.pad_token_id or 0, self.body.get_input_embeddings().num_embeddings
        tokens = [token for token in range(min(16, number)) if token not in (pad, masked)]
        ids = torch.tensor([tokens[-4:]], device=device)
        if masked is not None:
            ids[0, 1] = masked
        return ids

    def forward(self, inputs: Mapping[str, Tensor], embeddings: Tensor | None, adapted: bool = True) -> Tensor:
        keywords = self.placed(inputs, (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0))
        if "use_cache" in self._takes:
            keywords["use_cache"] = False
        if embeddings is not None:
            del keywords["input_ids"]
            keywords["inputs_embeds"] = embeddings
        if self.adapter is None or not adapted:
            hidden = self.body(**keywords).last_hidden_state
        else:
            hidden = self.adapter.run(self._frozen, keywords)[:, self.num_positions :]
        return self.head(hidden, inputs)


def find_blocks(model: nn.Module, number: int) -> tuple[str, nn.ModuleList] | None:
    """Path and list of the transformer blocks, of which there are `number`; None where there is no such list."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number and not name.startswith(ADAPTER) and "lora" not in name:
            return name, module
    return None


def _first_position(embeddings: Any) -> int:
    """The position of a text's first token: RoBERTa and its like count from behind the padding index, Nyströmformer from 2."""
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    if padding is not None:
        return padding + 1
    own = getattr(embeddings, "position_ids", None)
    return int(own.flatten()[0]) if isinstance(own, Tensor) and own.numel() and not own.is_meta else 0
