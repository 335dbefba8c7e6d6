"""Layer importance: how much the output of each block moves when the input embeddings carry their worst small noise.

[S] is what the abstract and the published summaries of the paper state (arXiv 2410.00131: layers are ranked by the difference between
the outputs for an input and for its noise-perturbed copy), [C] is this package's choice where they are silent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.answers import predicted
from ..core.task import Task
from ..core.trees import moved, placed
from ..core.types import Batch, Params


def worst_noise(
    gradient: Float[Tensor, "batch token hidden"],
    embeddings: Float[Tensor, "batch token hidden"],
    attention_mask: Int[Tensor, "batch token"] | Bool[Tensor, "batch token"],
    noise_scale: float,
    norm: float = 2.0,
) -> Float[Tensor, "batch token hidden"]:
    """The noise that raises the loss most, to first order, among all noise of one size. [C]

    For each example, over its non-padding positions,

        delta = argmax <g, delta> subject to ||delta||_p <= eps
              = eps sign(g) |g|^(q-1) / (||g||_q^q)^(1/p),    eps = noise_scale ||e||_F,    1/p + 1/q = 1,

    that is eps g / ||g||_2 for p = 2 and eps sign(g) for p = inf, and <g, delta> = eps ||g||_q.

    Args:
        gradient: g, of each example's own loss with respect to its embeddings.
        embeddings: e.
        attention_mask: (batch, token), not 0 where there is a token. Padding gets no noise and does not count in any norm.
        noise_scale: eps as a fraction of the Frobenius norm of the example's embeddings.
        norm: p > 1, or `math.inf`. For p other than 2 the Frobenius norm of delta is not eps.

    Returns:
        delta, float32 or better; all zeros for an example whose gradient is zero, NaN for one whose gradient is not finite.

    Raises:
        ValueError: p is not above 1, `noise_scale` is not positive, or the shapes do not go together.
    """
    if not norm > 1:
        raise ValueError(f"got norm = {norm}; expected p > 1 or inf: the noise is taken from an L_p ball")
    if not (noise_scale > 0 and math.isfinite(noise_scale)):
        raise ValueError(f"got noise_scale = {noise_scale}; expected a positive number: the noise as a fraction of the embeddings' norm")
    if gradient.shape != embeddings.shape or attention_mask.shape != embeddings.shape[:2]:
        shapes = f"{tuple(gradient.shape)}, {tuple(embeddings.shape)} and {tuple(attention_mask.shape)}"
        raise ValueError(f"gradient, embeddings and attention_mask have shapes {shapes}; expected (b, t, h) twice and (b, t)")
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    padding = (attention_mask == 0).unsqueeze(-1).to(embeddings.device)
    g = gradient.to(dtype).masked_fill(padding, 0)
    radius = noise_scale * _norms(embeddings.to(dtype).masked_fill(padding, 0))
    dual = 1.0 if math.isinf(norm) else norm / (norm - 1)
    # delta does not depend on the length of g: dividing by the largest entry first keeps the powers from over- and underflowing.
    largest = g.abs().amax(dim=(1, 2), keepdim=True)
    share = g.abs() / torch.where(largest == 0, torch.ones_like(largest), largest)
    direction = g.sign() * share ** (dual - 1)
    length = share.pow(dual).sum(dim=(1, 2), keepdim=True) ** (1 / norm)
    delta = radius[:, None, None] * direction / torch.where(length == 0, torch.ones_like(length), length)
    # sign() of NaN is 0 on some devices: a gradient that is not finite must show, not pass as "no noise".
    return torch.where(torch.isfinite(largest), delta, torch.full_like(delta, math.nan)).masked_fill(padding, 0)


def layer_sensitivity(
    task: Task,
    params: Params,
    batches: Iterable[Batch],
    noise_scale: float = 0.1,
    norm: float = 2.0,
    importance: Literal["output", "increment"] = "output",
    max_examples: int | None = None,
) -> Float[Tensor, " layers"]:
    """How much the output of each transformer block changes under the worst small noise on the input. [S]

        I(l) = mean over examples of ||h_l(e + delta) - h_l(e)||_F / ||h_l(e)||_F,    l = 1..L,

    with e the input embeddings of an example (tokens themselves cannot be perturbed [C]), delta = `worst_noise`, h_l the output of
    block l, and both Frobenius norms over the example's non-padding positions. Dividing by the norm of the unperturbed output is [C].
    Where an example is an answer, its change is the mean over the positions that predict a labelled token of the relative change there [C]:
    the first position of a decoder has a vector so long that it would decide a norm over all of them, and nothing is predicted at the
    others.

    It costs one forward and backward pass and two forward passes of each batch; nothing is trained and no tensor is written.

    It needs no federation: any Hugging Face classifier with an adapter will do, as a `Task`.

    Args:
        task: the model. Only `losses`, `embed`, `hidden_states`, `device` and `num_layers` are used.
        params: the trainable tensors at which the importance is measured.
        batches: tokenised examples with `attention_mask` (batch, token) and `labels`, (batch,) or of answers (batch, token).
        noise_scale: norm of the noise over the norm of the example's embeddings [C: 0.1].
        norm: p of the ball the noise is taken from, above 1; `math.inf` = signs [C: 2].
        importance: "output" = I as above [S]; "increment" = I(l) - I(l-1), see `increments` [C].
        max_examples: examples looked at, the first ones of `batches`; None = all.

    Returns:
        One number per layer, float32, shape (L,), without unit; index 0 is the block next to the embeddings. Examples weigh the same
        however they are batched.

    Raises:
        ValueError: no examples, `max_examples` below 1, an importance of another name, a batch without attention mask, or arguments that
            `worst_noise` rejects.
    """
    if importance not in ("output", "increment"):
        raise ValueError(f'got importance = {importance!r}; expected "output" or "increment"')
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"got max_examples = {max_examples}; expected at least 1, or None for all")
    params = placed(params, task.device)
    sums = list[Tensor]()
    num_examples = 0
    for batch in batches:
        if "attention_mask" not in batch:
            raise ValueError(f"got a batch of {sorted(batch)}; expected an attention_mask, which separates padding from text")
        if max_examples is not None:
            batch = {name: tensor[: max_examples - num_examples] for name, tensor in batch.items()}
        changes = _relative_changes(task, params, batch, noise_scale, norm)
        sums.append(changes.sum(dim=1))
        num_examples += changes.shape[1]
        if num_examples == max_examples:
            break
    if num_examples == 0:
        raise ValueError("got no examples; expected at least one to measure the layers' importance on")
    total = torch.zeros(task.num_layers, dtype=torch.float64)
    for part in torch.stack(sums).to("cpu", torch.float64):  # read once: a GPU would be waited for each time
        total += part
    mean = (total / num_examples).float()
    return increments(mean, noise_scale) if importance == "increment" else mean


def increments(importance: Float[Tensor, " layers"], noise_scale: float) -> Float[Tensor, " layers"]:
    """What each block adds to the relative change of its input: I(l) - I(l-1) with I(0) = `noise_scale`. [C]

    I accumulates along depth, so that it tends to be largest in the last blocks; the increment singles out the block that amplifies.
    I(0) is the relative change of the embeddings themselves, which is `noise_scale` for noise from an L_2 ball. An increment is
    negative where a block damps the change.

    >>> increments(torch.tensor([0.5, 0.25, 1.0]), noise_scale=0.25)
    tensor([ 0.2500, -0.2500,  0.7500])
    """
    return torch.diff(importance, prepend=importance.new_tensor([noise_scale]))


def _relative_changes(task: Task, params: Params, batch: Batch, noise_scale: float, norm: float) -> Float[Tensor, "layers batch"]:
    """||h_l(e + delta) - h_l(e)||_F / ||h_l(e)||_F of each block and example."""
    embeddings = task.embed(batch).detach()
    with torch.enable_grad():
        leaf = embeddings.clone().requires_grad_()
        # The sum: no example's loss depends on another's embeddings, so each row of the gradient is that example's own.
        (gradient,) = torch.autograd.grad(task.losses(params, batch, embeddings=leaf).sum(), leaf)
    mask = moved(batch["attention_mask"], embeddings.device)
    with torch.no_grad():
        noise = worst_noise(gradient, embeddings, mask, noise_scale, norm).to(embeddings.dtype)
        clean = task.hidden_states(params, batch, embeddings=embeddings)
        noisy = task.hidden_states(params, batch, embeddings=embeddings + noise)
        before = _before_answers(batch)
        if before is not None:
            before = moved(before, mask.device)
            return torch.stack([_change_by_position(a, b, before) for a, b in zip(clean, noisy, strict=True)])
        padding = (mask == 0).unsqueeze(-1)
        return torch.stack([_relative_change(a, b, padding) for a, b in zip(clean, noisy, strict=True)])


def _before_answers(batch: Batch) -> Bool[Tensor, "batch token"] | None:
    """Where a token of an answer is predicted; None where what is predicted is a class."""
    labels = batch.get("labels")
    return None if labels is None or labels.ndim != 2 else torch.nn.functional.pad(predicted(labels), (0, 1))


def _change_by_position(
    clean: Float[Tensor, "batch token hidden"], noisy: Float[Tensor, "batch token hidden"], where: Bool[Tensor, "batch token"]
) -> Float[Tensor, " batch"]:
    """The mean over positions of ||h(e + delta) - h(e)||_2 / ||h(e)||_2."""
    dtype = torch.promote_types(clean.dtype, torch.float32)
    clean, noisy = clean.to(dtype), noisy.to(dtype)
    change = torch.linalg.vector_norm(noisy - clean, dim=2) / torch.linalg.vector_norm(clean, dim=2).clamp_min(torch.finfo(dtype).tiny)
    return (change * where).sum(1) / where.sum(1).clamp(min=1)


def _relative_change(
    clean: Float[Tensor, "batch token hidden"], noisy: Float[Tensor, "batch token hidden"], padding: Bool[Tensor, "batch token 1"]
) -> Float[Tensor, " batch"]:
    dtype = torch.promote_types(clean.dtype, torch.float32)
    clean = clean.to(dtype).masked_fill(padding, 0)
    noisy = noisy.to(dtype).masked_fill(padding, 0)
    return _norms(noisy - clean) / _norms(clean).clamp_min(torch.finfo(dtype).tiny)


def _norms(values: Float[Tensor, "batch token hidden"]) -> Float[Tensor, " batch"]:
    """Frobenius norm of each example."""
    return torch.linalg.vector_norm(values, dim=(1, 2))
