"""Attacks on what was sent, each with nothing but the messages, the frozen base model and examples of the same kind.

They are cheap ones: minutes on the machine that made the run. A better attack may find more; none of their figures is a guarantee.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..core.task import Task
from ..core.types import ClientData, ClientId, Examples, Params
from ..local.batches import of_like_length
from ..local.fisher import squares
from .figures import MemberScores

BATCH = 32


def moved(params: Params, update: Params) -> dict[str, Tensor]:
    """A model with an update added to it."""
    return {name: tensor + update[name] if name in update else tensor for name, tensor in params.items()}


def example_losses(task: Task, params: Params, examples: Examples) -> Tensor:
    """The loss of each example, nat per labelled token where there are answers; float64, shape (examples,)."""
    found = torch.zeros(len(examples), dtype=torch.float64)
    with torch.no_grad():
        for positions in of_like_length(examples, BATCH):
            found[positions] = task.losses(params, examples.batch(positions)).double().cpu()
    return found if examples.targets is None else found / examples.targets.clamp(min=1)


def alignments(task: Task, params: Params, updates: Sequence[Params], examples: Examples) -> Tensor:
    """How far each update points where each example's own gradient would have the model go: <-g, update> / ||g||.

    From one forward and backward pass per batch, without a gradient of a single example ever being made.

    Args:
        updates: all of the same tensors.

    Returns:
        float64, shape (updates, examples).

    Raises:
        ValueError: the task trains something that is not a linear map.
    """
    found = torch.zeros(len(updates), len(examples), dtype=torch.float64)
    leaves = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in params.items()}
    for positions in of_like_length(examples, BATCH):
        losses, tape = task.traced(leaves, examples.batch(positions))
        gradients = torch.autograd.grad(losses.sum(), [linear.output for linear in tape.linears], allow_unused=True)
        norms = squares(tape, gradients, trace_over=list(updates[0])).trace.double().sqrt().cpu()
        for place, update in enumerate(updates):
            dots = torch.zeros(len(positions))
            for linear, gradient in zip(tape.linears, gradients, strict=True):
                if gradient is None:
                    continue
                if linear.weight in update:
                    output = linear.input.detach() @ update[linear.weight].to(linear.input).T
                    dots += (gradient * output).flatten(1).sum(1).float().cpu()
                if linear.bias is not None and linear.bias in update:
                    dots += (gradient * update[linear.bias].to(gradient)).flatten(1).sum(1).float().cpu()
            found[place, positions] = -dots.double() / norms.clamp(min=1e-30)
    return found


def within_classes(members: Tensor, others: Tensor, of_members: Tensor | None, of_others: Tensor | None) -> list[MemberScores]:
    """MemberScores apart by class, so that finding out the class alone tells nobody from anybody; all together without classes. The others
    of a class are taken for the same ones in every call."""
    if of_members is None or of_others is None:
        return [MemberScores(members, others, 0)]
    return [MemberScores(members[of_members == one], others[of_others == one], int(one)) for one in of_members.unique()]


def guessed_shares(features: Tensor, shares: Tensor, of: int, seen: Tensor | None = None) -> Tensor:
    """The shares of the classes among one client's labels, guessed by somebody who knows those of all other clients.

    One slope from features to shares, the least squares of the other clients', is applied to the difference of what is seen from the mean
    of their features.

    Args:
        features: shape (clients, classes); what an update does to each class.
        shares: shape (clients, classes); row `of` is not looked at.
        seen: features of what is seen instead of this client's own, shape (classes,); then row `of` of `features` is not looked at either.

    Returns:
        Shape (classes,), not negative, of sum 1.
    """
    known = torch.arange(len(shares)) != of
    f, s = features.double() - features.double().mean(1, keepdim=True), shares.double()
    mean_f, mean_s = f[known].mean(0), s[known].mean(0)
    df, ds = f[known] - mean_f, s[known] - mean_s
    slope = (df * ds).sum() / df.square().sum().clamp(min=1e-300)
    own = f[of] if seen is None else seen.double() - seen.double().mean()
    guess = (mean_s + slope * (own - mean_f)).clamp(min=0)
    return guess / guess.sum().clamp(min=1e-300)


def class_features(task: Task, before: Params, update: Params, texts: Examples) -> Tensor:
    """What an update does to each class: the change of the head's bias where that is sent, else of the mean log-probability on texts that
    anybody may have; shape (classes,)."""
    classes: int = task.num_classes  # pyright: ignore[reportAttributeAccessIssue]
    for name, tensor in update.items():
        if task.layer_of(name) is None and tensor.shape == (classes,):
            return tensor.double()
    return _mean_log_probability(task, moved(before, update), texts) - _mean_log_probability(task, before, texts)


def _mean_log_probability(task: Task, params: Params, texts: Examples) -> Tensor:
    parts = [task.logits(params, texts.batch(part)).double().log_softmax(1).cpu() for part in of_like_length(texts, BATCH)]  # pyright: ignore[reportAttributeAccessIssue]
    return torch.cat(parts).mean(0)


def word_scores(task: Task, update: Params, tokens: Tensor) -> Tensor | None:
    """How much of each token's embedding lies in the span of what the first block's A matrices have moved by.

    Every step moves a row of A along inputs of the block; tokens that were read leave their direction there.

    Args:
        tokens: ids, shape (tokens,).

    Returns:
        Between 0 and 1, shape (tokens,); None where no such matrix is sent.
    """
    moves = [tensor.double() for name, tensor in sorted(update.items()) if "lora_A" in name and task.layer_of(name) == 0]
    embedded = task.embed({"input_ids": tokens[None]})[0].detach().double().cpu()
    moves = [one for one in moves if one.ndim == 2 and one.shape[1] == embedded.shape[1] and float(one.abs().sum()) > 0]
    if not moves:
        return None
    centred = embedded - embedded.mean(0)
    basis = torch.linalg.qr(torch.cat(moves).T).Q
    return (centred @ basis).square().sum(1) / centred.square().sum(1).clamp(min=1e-300)


def tokens_of(examples: Examples) -> set[int]:
    """The tokens that occur in some examples."""
    found: set[int] = set()
    for positions in of_like_length(examples, BATCH):
        batch = examples.batch(positions)
        found.update(batch["input_ids"][batch["attention_mask"].bool()].tolist())
    return found


def own_words(held: Mapping[ClientId, set[int]], elsewhere: set[int], of: Iterable[ClientId]) -> tuple[Tensor, Tensor] | None:
    """Tokens that some clients alone hold, and as many kinds of tokens as there are that nobody of them holds; None if there are none.

    Args:
        held: tokens by client.
        elsewhere: tokens of texts that no client holds.
    """
    those = set(of)
    inside = set[int]().union(*(held[client] for client in those))
    outside = set[int]().union(*(tokens for client, tokens in held.items() if client not in those), elsewhere)
    alone, others = sorted(inside - outside), sorted(outside - inside)
    return (torch.tensor(alone), torch.tensor(others)) if alone and others else None


def shares_of(data: Sequence[ClientData], classes: int) -> Tensor:
    """Shares of the classes among each one's training labels, shape (clients, classes)."""
    counts = [torch.bincount(one.train.labels, minlength=classes).double() for one in data if one.train.labels is not None]
    return torch.stack([count / count.sum().clamp(min=1) for count in counts])
