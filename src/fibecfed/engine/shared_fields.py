"""The tensors of an answer that a mean is taken of, and what a client sends of an answer under differential privacy: those alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.method import Phase
from ..core.types import Params
from ..core.wire import field_kinds, tensors_of
from ..privacy.clip import clipped


def pooled_fields(phase: Phase[Any, Any, Any, Any]) -> tuple[str, ...]:
    """The fields of tensors that an answer has in common with the broadcast."""
    up, down = field_kinds(phase.up), field_kinds(phase.down)
    return tuple(name for name, kind in up.items() if kind in ("tensors", "tensor") and down.get(name) == kind)


def shared_of(message: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of some fields of a message, each under the name of its field and its own."""
    return {f"{field}/{name}": value for field, tensors in tensors_of(message).items() if field in names for name, value in tensors.items()}


def num_shared(phase: Phase[Any, Any, Any, Any], broadcast: Any) -> int:
    """How many numbers a mean of answers to this broadcast has."""
    return sum(value.numel() for value in shared_of(broadcast, pooled_fields(phase)).values())


def with_shared(phase: Phase[Any, Any, Any, Any], shared: Params) -> Any:
    """An answer that holds these tensors and nothing else: it counts as one example, and other fields are as by default."""
    kinds, found = field_kinds(phase.up), dict[str, Any]()
    for field in pooled_fields(phase):
        part = {name.removeprefix(f"{field}/"): value for name, value in shared.items() if name.startswith(f"{field}/")}
        found[field] = part if kinds[field] == "tensors" else part[""]
    if "num_samples" in kinds:
        found["num_samples"] = 1
    return phase.up(**found)


def only_clipped(phase: Phase[Any, Any, Any, Any], broadcast: Any, message: Any | None, clip_norm: float) -> Any:
    """What leaves a client of an answer: its shared tensors, at most C from those it was sent.

    Args:
        message: the method's answer; None where the client has none. It is then as one that changed nothing, as is one that is not finite.
    """
    names = pooled_fields(phase)
    sent = shared_of(broadcast, names)
    if message is None:
        return with_shared(phase, sent)
    update = clipped(shared_of(message, names), sent, clip_norm)
    return with_shared(phase, {name: (value.double().cpu() + torch.from_numpy(update[name])).to(value) for name, value in sent.items()})
