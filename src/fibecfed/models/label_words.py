"""Classes told apart by words of the vocabulary: the pre-trained language-model head in place of a new classification head."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..core.trees import moved
from ..core.types import Batch
from .heads import PooledHead, UnsupportedModel
from .objectives import SumsByClass


@dataclass(frozen=True)
class LabelWords(SumsByClass):
    """Classes told apart by the word that a language model, masked or causal, puts in the place of the mask, or after the last token; an
    `objectives.ClassObjective`.

    There is no head to train. A loss is -log p(word of the class) over the whole vocabulary, while the class scores, from which the
    class is predicted, are those of the classes' words. The head sees that one position only.

    Attributes:
        token_ids: one per class, in the order of the classes, all different.
        mask_id: the token in whose place a masked model predicts the word; None for a causal model, which predicts it after the last.
    """

    token_ids: tuple[int, ...]
    mask_id: int | None

    draws_head = False

    @property
    def num_classes(self) -> int:
        """One a word."""
        return len(self.token_ids)

    @property
    def model_class(self) -> Any:
        """Of a masked or of a causal language model."""
        return AutoModelForCausalLM if self.mask_id is None else AutoModelForMaskedLM

    def head(self, model: nn.Module, body: nn.Module) -> PooledHead:
        """The model's own, at the word's position."""
        pooling = "last" if self.mask_id is None else "mask"
        return PooledHead(LanguageHead(model), pooling, _PLACES)

    def beside(self, inputs: Batch) -> Batch:
        """Where the word is predicted.

        Raises:
            ValueError: as `word_positions`.
        """
        return {_PLACES: word_positions(inputs["input_ids"], inputs["attention_mask"], self)}

    def losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """Cross entropy over the vocabulary."""
        ids = _on(scores.device, self.token_ids)
        if "targets" in batch:
            return -(moved(batch["targets"], scores.device) * log_softmax(scores, dim=-1)[:, ids]).sum(-1)
        return cross_entropy(scores, ids[moved(batch["labels"], scores.device)], reduction="none")

    def of_classes(self, scores: Tensor) -> Tensor:
        """Those of their words."""
        return scores[:, _on(scores.device, self.token_ids)]

    def own_scores(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        """A language model's own call scores every position."""
        return logits[:, -1] if self.mask_id is None else logits[input_ids == self.mask_id]


_PLACES = "label-words.places"


@functools.lru_cache(maxsize=8)
def _on(device: torch.device, token_ids: tuple[int, ...]) -> Tensor:
    return torch.tensor(token_ids, device=device)


def is_masked(config: PretrainedConfig) -> bool:
    """Whether the family's language model fills in masks (a family that does both, such as BERT, does); else it continues the text.

    Raises:
        UnsupportedModel: a family without a language model of either kind.
    """
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return True
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    raise UnsupportedModel(f"a {config.model_type} model has neither a masked nor a causal language model")


_HEADS = (
    ("lm_head",),  # decoders; RoBERTa and its like, MPNet
    ("cls",),  # BERT and its like
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),  # DistilBERT
    ("generator_predictions", "generator_lm_head"),  # ELECTRA
    ("head", "decoder"),  # ModernBERT
)


def language_head(model: nn.Module) -> list[nn.Module]:
    """The modules that make scores of the vocabulary of a hidden vector, one after the other.

    Raises:
        UnsupportedModel: a language model whose head is not known here.
    """
    for names in _HEADS:
        parts = [getattr(model, name, None) for name in names]
        if all(isinstance(part, nn.Module) for part in parts):
            return parts  # pyright: ignore[reportReturnType]
    raise UnsupportedModel(f"{type(model).__name__} is not supported: got the parts {[name for name, _ in model.named_children()]}, "
                           f"expected a head among {', '.join('/'.join(names) for names in _HEADS)}")  # fmt: skip


class LanguageHead(nn.Module):
    """Calls the model's own language-model head, without owning it, in the precision its weights are stored in.

    Under autocast its scores would be rounded to bf16: to a quarter of a nat at 32 and above, so that words tie.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        whole: Any = model
        self._model = [whole]
        self._cap: float | None = getattr(whole.config, "final_logit_softcapping", None)  # Gemma 2
        language_head(model)

    def forward(self, vector: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, vocabulary)."""
        parts = language_head(self._model[0])
        with torch.autocast(vector.device.type, enabled=False):
            vector = vector.to(next(parts[-1].parameters()).dtype)
            for part in parts:
                vector = part(vector)
            return vector if self._cap is None else self._cap * torch.tanh(vector / self._cap)


def word_positions(input_ids: Tensor, mask: Tensor, words: LabelWords) -> Tensor:
    """Where the word is predicted, as 0 and 1, shape (batch, token): at the mask; for a causal model anywhere up to the last token.

    Raises:
        ValueError: an example that has not exactly one mask.
    """
    if words.mask_id is None:
        return mask
    found = (input_ids == words.mask_id) * mask
    wrong = (found.sum(1) != 1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"expected one mask (token {words.mask_id}) in each example; got {found.sum(1)[wrong].tolist()} in {wrong[:5]}")
    return found


def head_is_missing(missing: Sequence[str], body: str) -> bool:
    """Whether a file lacks only weights outside the body: those of the language-model head."""
    return bool(missing) and not any(name.startswith(body) for name in missing)
