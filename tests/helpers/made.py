"""Small federations for tests: a tiny model, planted data, and the loop around them, without a configuration or a folder of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from published import published
from torch import Tensor

from fibecfed.core.options import Options
from fibecfed.data.federated import FederatedData
from fibecfed.data.planted import planted_federation
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import METHODS, MethodContext, make
from fibecfed.models.tiny import tiny_task
from fibecfed.models.transformer_task import TransformerTask
from fibecfed.testing.federation import KEY, Around, Federation, Shuffled, Spy, client_view, same
from fibecfed.testing.federation import federation as begun

__all__ = [
    "KEY",
    "Around",
    "Federation",
    "Shuffled",
    "Spy",
    "client_view",
    "federation",
    "made_data",
    "made_method",
    "made_options",
    "made_task",
    "same",
]

LENGTH = 12
"""Tokens of the longest planted example."""
TRAINING = TrainingOptions(local_epochs=2, batch_size=4, learning_rate=0.01)


def made_task(layers: int = 4, options: Options | None = None) -> TransformerTask:
    """A task with LoRA, or with the adapter that a method's options bring."""
    return tiny_task("bert", layers=layers, adapter=getattr(options, "adapter", None))


def made_options(kind: str = "fibecfed", **options: Any) -> Options:
    """Options of a method; FibecFed's as published, where `preset` says nothing else (None: its defaults)."""
    return METHODS[kind].model_validate(published({"kind": kind, **options}))


def made_data(clients: int = 5, examples: int = 11, **more: Any) -> FederatedData:
    return planted_federation(clients, examples, KEY.fold("data"), partition="dirichlet", **{"length": LENGTH, **more})


def made_method(
    kind: str = "fibecfed",
    *,
    rounds: int = 4,
    clients: int = 5,
    training: TrainingOptions = TRAINING,
    asks_all: bool = False,
    **options: Any,
) -> Any:
    return make(made_options(kind, **options), MethodContext(training, rounds, clients, KEY.fold("method"), LENGTH, asks_all))


def federation(method: Any, task: Any = None, data: FederatedData | None = None, **more: Any) -> Federation:
    """A federation at its start, or where `more` says; by default of the tiny task and the planted data."""
    return begun(method, task or made_task(), data or made_data(), **more)


def names_of_layers(task: Any, layers: Sequence[int | None]) -> set[str]:
    return {name for name in task.names if task.layer_of(name) in layers}


def undecided(task: Any, params: Mapping[str, Tensor], examples: Any) -> dict[str, Tensor]:
    """`params` with the bias of a head of two classes moved so that half of the examples are predicted to be of each."""
    logits = task.logits(params, examples.batch(list(range(len(examples)))))
    (bias,) = (name for name in task.names if task.layer_of(name) is None and params[name].ndim == 1)
    ordered = (logits[:, 1] - logits[:, 0]).sort().values
    between = ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1].mean()  # on no example: a tie would hang on the last bit
    return {**params, bias: params[bias] - torch.stack([torch.zeros(()), between])}
