"""-log p of single tokens under a language model's head, a few rows at a time: the scores of a whole vocabulary are never there at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

Head: TypeAlias = Callable[[Tensor], Tensor]
"""Hidden vectors (token, hidden) -> scores of the vocabulary (token, vocabulary), with weights that are not trained."""

CHUNK = 2**22
"""Scores that are computed at once, at most [C]: 16 MB in float32. With the scores of all tokens of a batch, and the gradient at them, 8
texts of 256 tokens and 49,152 words would take 806 MB."""


def token_losses(head: Head, vectors: Float[Tensor, "token hidden"], targets: Int[Tensor, " token"]) -> Float[Tensor, "token 2"]:
    """Of each token -log p(token), and by how much less likely it is than the most likely one, log p(most likely) - log p(token).

    Both in nat, float32 or better; the second is 0 where the token is the most likely one, and has no gradient. A backward pass through the
    first costs no second forward one: the gradient at the vectors is taken at once, as the head's weights have none.
    """
    return _TokenLosses.apply(vectors, targets, head)  # pyright: ignore[reportReturnType]


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, targets: Tensor, head: Head) -> Tensor:
        found, gradients = [], []
        rows = max(1, CHUNK // _vocabulary(head, vectors))
        for some, tokens in zip(vectors.split(rows), targets.split(rows), strict=True):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                leaf = some.detach().requires_grad_(ctx.needs_input_grad[0])
                both = _both(head(leaf), tokens)
                if ctx.needs_input_grad[0]:
                    gradients += torch.autograd.grad(both[:, 0].sum(), leaf)
            found.append(both.detach())
        ctx.head = head
        ctx.save_for_backward(vectors, targets, *([torch.cat(gradients)] if gradients else []))
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None]:
        vectors, targets, *gradient = ctx.saved_tensors
        weights = outer[0][:, 0]
        if not gradient:
            return None, None, None
        if not torch.is_grad_enabled():
            return gradient[0] * weights[:, None].to(gradient[0].dtype), None, None
        with torch.enable_grad():  # asked for a gradient that has one itself: curvature, on a few examples
            (found,) = torch.autograd.grad(_both(ctx.head(vectors), targets)[:, 0], vectors, weights, create_graph=True)
        return found, None, None


def _both(scores: Tensor, targets: Tensor) -> Tensor:
    scores = scores if scores.dtype == torch.float64 else scores.float()
    losses = cross_entropy(scores, targets, reduction="none")
    with torch.no_grad():
        behind = scores.amax(-1) - scores.gather(1, targets[:, None])[:, 0]
    return torch.stack([losses, behind], dim=1)


def _vocabulary(head: Head, vectors: Tensor) -> int:
    """Words that the head scores."""
    with torch.no_grad():
        return head(vectors[:1]).shape[-1] if len(vectors) else 1
