"""How the classifiers of each model family turn one hidden vector into class scores, and which of their modules are the head."""

from __future__ import annotations

from torch import Tensor, nn

DECODER_POOLING = "score"
"""Decoder classifiers call their head so, and pool the last token; encoders pool the first."""


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules of a classifier that are new and not part of the pre-trained body.

    Raises:
        ValueError: a classifier of a kind that is not known here.
    """
    names = [name for name in (DECODER_POOLING, "classifier", "pre_classifier") if isinstance(getattr(model, name, None), nn.Module)]
    if not names or ("head" in dict(model.named_children()) and names == ["classifier"]):
        raise ValueError(
            f"{type(model).__name__}: got a classifier with the parts {[n for n, _ in model.named_children()]}, expected a `score` map on "
            "the last token or a `classifier` on the first; this family is not supported"
        )
    return names


def last_linear(model: nn.Module) -> str:
    """Path, inside the classifier, of the last linear map of its head."""
    name = DECODER_POOLING if hasattr(model, DECODER_POOLING) else "classifier"
    return f"{name}.out_proj" if hasattr(getattr(model, name), "out_proj") else name


class _Head(nn.Module):
    """Calls modules that belong to the classifier, without owning them: they must not appear twice among its parameters."""

    def __init__(self, model: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self._model = [model]
        self._body = [body]

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, classes)."""
        model, body = self._model[0], self._body[0]
        if hasattr(model, DECODER_POOLING):
            return model.score(pooled)
        if hasattr(model, "pre_classifier"):
            return model.classifier(model.dropout(model.pre_classifier(pooled).relu()))
        if hasattr(_inner(model.classifier), "out_proj"):
            return model.classifier(pooled.unsqueeze(1))
        pooler = getattr(body, "pooler", None)
        vector = pooler(pooled.unsqueeze(1)) if pooler is not None else pooled
        return model.classifier(model.dropout(vector) if hasattr(model, "dropout") else vector)


def _inner(module: nn.Module) -> nn.Module:
    """The module behind PEFT's wrapper for modules that are saved with the adapter."""
    return getattr(module, "original_module", module)


def classifier_head(model: nn.Module, body: nn.Module) -> tuple[nn.Module, bool]:
    """The head as a function of one hidden vector an example, and whether that vector is the last token's."""
    head_modules(model)
    return _Head(model, body), hasattr(model, DECODER_POOLING)
