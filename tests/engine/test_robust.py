"""Robust means against numbers worked out by hand, and federations with hostile clients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from made import KEY, made_data, made_method, made_task
from made import federation as begun
from torch import Tensor

from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.types import ClientId, Failure
from fibecfed.core.wire import decode, encode
from fibecfed.data.planted import planted_federation
from fibecfed.engine.options import FederationOptions, RobustMean
from fibecfed.engine.robust import reject_not_robust, robust_mean
from fibecfed.engine.runtime import frame, unframe
from fibecfed.engine.transport import Answer, Ticket
from fibecfed.local.options import TrainingOptions
from fibecfed.testing.federation import Around

KINDS: tuple[RobustMean, ...] = ("trimmed-mean", "median", "centred-clipping")


def drawn(clients: int, numbers: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(clients, numbers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_means_worked_out_by_hand() -> None:
    updates = torch.tensor([[5.0], [1.0], [2.0], [100.0], [3.0], [4.0]])
    assert float(robust_mean(updates, "median")) == 3.5
    assert float(robust_mean(updates, "trimmed-mean", 0.2)) == 3.5  # without 1 and 100
    assert float(robust_mean(updates, "trimmed-mean", 0.49)) == 3.5  # two of six at either end
    assert float(robust_mean(updates[:2], "trimmed-mean", 0.4)) == 3.0  # nothing to cut off
    assert float(robust_mean(updates, "mean")) == pytest.approx(115 / 6)


@pytest.mark.parametrize("kind", KINDS)
def test_clients_that_agree_are_what_comes_out_and_their_order_does_not_matter(kind: RobustMean) -> None:
    one = drawn(1).expand(5, -1)
    torch.testing.assert_close(robust_mean(one, kind), one[0])
    updates = drawn(7)
    torch.testing.assert_close(robust_mean(updates.flip(0), kind), robust_mean(updates, kind))
    torch.testing.assert_close(robust_mean(updates + 3, kind), robust_mean(updates, kind) + 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [3, 4, 5])
def test_one_hostile_client_of_a_few_moves_it_no_further(kind: RobustMean, clients: int) -> None:
    honest = drawn(clients - 1)
    among = torch.cat([honest, torch.full((1, honest.shape[1]), 1e6, dtype=torch.float64)])
    spread = float((honest - honest.mean(0)).norm(dim=1).max())
    assert float((robust_mean(among, kind) - honest.mean(0)).norm()) <= 2 * spread


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [10.0, 1e6, 1e30])
def test_a_minority_moves_it_no_further_than_the_honest_ones_differ(kind: RobustMean, size: float) -> None:
    honest = drawn(8)
    among = torch.cat([honest, size * torch.ones(2, honest.shape[1], dtype=torch.float64)])
    spread = float((honest - honest.mean(0)).norm(dim=1).max())
    assert float((robust_mean(among, kind) - honest.mean(0)).norm()) <= spread < float((among.mean(0) - honest.mean(0)).norm())


class Hostile(Around):
    """Some clients send another answer than they have."""

    def __init__(self, inner: Any, up: type, clients: Collection[ClientId], change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.up, self.clients, self.change = up, clients, change
        self.sent: dict[str, Tensor] = {}

    def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
        for answer in super().receive(tickets):
            if answer.ticket.client not in self.clients or isinstance(answer.reply, Failure) or answer.ticket.action != "train":
                yield answer
                continue
            encoded, work = unframe(answer.reply)
            message = decode(self.up, encoded)
            shared = {name: self.change(self.sent[name], tensor) for name, tensor in message.shared.items()}
            yield replace(answer, reply=frame(encode(replace(message, shared=shared)), work))


def accuracy(options: FederationOptions, hostile: Collection[ClientId] = (), flipped: Collection[ClientId] = ()) -> float:
    """Of the global model on all test examples, after rounds with every client.

    Args:
        hostile: send ten times their update, turned round.
        flipped: train on the other class.
    """
    training = TrainingOptions(local_epochs=2, batch_size=4, learning_rate=0.02)
    method, task, data = (
        made_method("lora", rounds=12, clients=10, training=training),
        made_task(layers=2),
        planted_federation(10, 24, KEY.fold("data"), partition="iid", length=12),
    )
    (phase,) = method.phases
    assert data.train.labels is not None
    labels = data.train.labels.clone()
    for client in flipped:
        rows = data.partition.indices["train"][client]
        labels[rows] = 1 - labels[rows]
    data = replace(data, train=replace(data.train, labels=labels))

    def wrap(inner: Any) -> Any:
        return Hostile(inner, phase.up, hostile, lambda sent, tensor: sent - 10 * (tensor - sent))

    made = begun(method, task, data, per_round=10, wrap=wrap)
    transport: Any = made.transport
    transport.sent = method.server_params(method.init(task, KEY.fold("run", "init")))
    for step in made.run(tolerance=options):
        transport.sent = method.server_params(step.server)
    predicted = task.predict(transport.sent, data.test.batch(range(len(data.test))))
    return float((predicted == data.test.labels).double().mean())


def test_a_fifth_of_hostile_clients_ruins_the_mean_and_not_the_robust_ones() -> None:
    hostile = ("1", "6")
    clean = accuracy(FederationOptions())
    assert clean > 0.9 and accuracy(FederationOptions(), hostile) < clean - 0.2
    for kind in KINDS:
        assert accuracy(FederationOptions(aggregation=kind), hostile) >= clean - 0.02, kind
    assert accuracy(FederationOptions(aggregation="trimmed-mean"), flipped=hostile) >= clean - 0.02


def test_too_large_updates_are_scaled_down_to_the_limit_instead_of_rejected() -> None:
    def update(options: FederationOptions) -> tuple[dict[str, Tensor], Any]:
        made = begun(made_method("lora", rounds=1), made_task(layers=2), made_data(), per_round=1)
        before = made.method.server_params(made.server)
        (step,) = made.finish(tolerance=options)
        after = made.method.server_params(step.server)
        return {name: after[name].double() - before[name].double() for name in after}, step.record

    def norm(change: dict[str, Tensor]) -> float:
        return sum(float(tensor.square().sum()) for tensor in change.values()) ** 0.5

    whole, _ = update(FederationOptions())
    limit = norm(whole) / 4
    clipped, record = update(FederationOptions(max_update_norm=limit, on_excess="clip"))
    assert not record.failures and norm(clipped) == pytest.approx(limit, rel=1e-4)
    for name, tensor in whole.items():
        torch.testing.assert_close(clipped[name], tensor / 4, rtol=1e-3, atol=1e-6)
    below, _ = update(FederationOptions(max_update_norm=8 * limit, on_excess="clip"))
    assert all(torch.equal(below[name], tensor) for name, tensor in whole.items())


def test_a_round_with_fewer_answers_than_one_can_be_outvoted_of_is_not_aggregated() -> None:
    class Silent(Around):
        def receive(self, tickets: Collection[Ticket]) -> Iterator[Answer]:
            for answer in super().receive(tickets):
                yield answer if answer.ticket.client in ("0", "1") else replace(answer, reply=Failure("gone"))

    options = FederationOptions(aggregation="median", on_failure="drop")
    made = begun(made_method("lora", rounds=1), made_task(layers=2), made_data(), per_round=5, wrap=Silent)
    with pytest.raises(RunFailed, match="2 of 5 clients gave a usable answer, expected at least 3"):
        made.finish(tolerance=options)


def test_what_cannot_be_made_robust_is_told_before_anything_runs() -> None:
    options = FederationOptions(aggregation="median")
    for kind in ("fedex-lora", "hetlora", "scaffold", "fibecfed"):
        with pytest.raises(UserError, match=rf"federation.aggregation: .*the method {kind} cannot be run with: in its stage"):
            reject_not_robust(made_method(kind), kind, options, 5)
    with pytest.raises(UserError, match='in its stage "finetune" clients send no update'):
        reject_not_robust(made_method("lora", finetune=True), "lora", options, 5)
    with pytest.raises(UserError, match="with 2 clients per round, expected at least 3"):
        reject_not_robust(made_method("lora"), "lora", options, 2)
    reject_not_robust(made_method("fibecfed", layers={"rule": "last"}), "fibecfed", options, 5)
    reject_not_robust(made_method("hetlora"), "hetlora", FederationOptions(), 5)
