"""What the tests of FibecFed's halves share: one federation, and a look at what a client trains on."""

from __future__ import annotations

from typing import Any

import pytest
from made import client_view, made_data, made_task, names_of_layers

from fibecfed.core.types import Round
from fibecfed.local.optimise import fit

TASK, DATA = made_task(4), made_data()
FIXED: dict[str, Any] = {"layers": {"rule": "last", "value": 2}}
"""Layers 2 and 3 of 4 are global, without a phase of measuring."""
OWN = names_of_layers(TASK, [0, 1])
SHARED = names_of_layers(TASK, [2, 3, None])


def tune(index: int, rounds: int = 4) -> Round:
    return Round("tune", index, rounds, index)


def update_of(world: Any, client: str, index: int = 0, state: Any = None, rounds: int = 4) -> Any:
    phase = next(phase for phase in world.method.phases if phase.name == "tune")
    now = tune(index, rounds)
    return phase.client_update(client_view(world, client, index, state), phase.broadcast(world.server, now), now)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call of `fit`: the batches of each epoch, where it started, and what was masked."""
    calls: list[dict[str, Any]] = []

    def spy(task: Any, params: Any, epochs: Any, *args: Any, **more: Any) -> Any:
        epochs = [list(epoch) for epoch in epochs]
        calls.append({"epochs": epochs, "params": params, **more})
        return fit(task, params, epochs, *args, **more)

    monkeypatch.setattr("fibecfed.methods.fibecfed_client.fit", spy)
    return calls


def positions(client: str, epoch: list[Any]) -> list[int]:
    """Where in the client's training part the examples of an epoch stand; they are all different."""
    train = DATA.client(client).train
    rows = {tokens: i for i in range(len(train)) for tokens in texts(train.batch([i]))}
    assert len(rows) == len(train)
    return [rows[tokens] for batch in epoch for tokens in texts(batch)]


def texts(batch: Any) -> list[tuple[int, ...]]:
    """The tokens of each example without padding."""
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
