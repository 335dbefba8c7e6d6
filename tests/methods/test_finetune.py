"""The last training whose result a client's validation part decides on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made import federation, made_data, made_method, made_options, made_task

from fibecfed.core.trees import placed
from fibecfed.local.batches import PASS_BATCH, batches
from fibecfed.methods.finetune import VALIDATED, between

TASK, DATA = made_task(2), made_data(validation_per_client=4)


def loss(params: Any, examples: Any) -> float:
    """Mean loss, in the order of the examples."""
    some = batches(examples, torch.arange(len(examples)), PASS_BATCH)
    return float(torch.cat([TASK.losses(placed(params, TASK.device), one).detach() for one in some]).double().mean())


def ended(kind: str, how: Any) -> tuple[Any, Any]:
    """A federation behind its last round, and the broadcast of it."""
    world = federation(made_method(kind, finetune=how), TASK, DATA)
    *_, last = world.run()
    return world, world.method.phases[-1].broadcast(world.server, last.now)


@pytest.mark.parametrize("kind", ["lora", "fibecfed"])
def test_each_client_keeps_the_step_with_the_lowest_loss_on_its_validation_part(kind: str):
    (whole, down), (chosen, _) = ended(kind, True), ended(kind, "validated")
    kept = set()
    for client in DATA.clients:
        examples = DATA.client(client).validation
        trained, state = whole.state(client).tuned, chosen.state(client)
        inner = whole.method.inner
        own = whole.state(client)
        before = inner.personalise(down, inner.client_state(**{n: getattr(own, n) for n in inner.client_state.__wire_fields__}))
        losses = {step: loss(between(before, trained, step), examples) for step in VALIDATED}
        best = min(losses, key=lambda step: losses[step])
        kept.add(best)
        found = chosen.method.personalise(down, state)
        expected = between(before, trained, best)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert bool(state.tuned) == bool(best)
    assert kind == "lora" or len(kept) > 1  # here clients differ in what they keep, so that it is a choice


@pytest.mark.parametrize("kind", ["hetlora", "slora", "fedalt", "fedex-lora", "prompt-tuning", "scaffold"])
def test_every_method_can_be_asked_to(kind: str):
    """Whatever it trains: other ranks, other adapters, residuals."""
    options = made_options(kind, finetune="validated")
    world = federation(made_method(kind, finetune="validated", rounds=2), made_task(2, options), DATA)
    *_, last = world.run()
    phase, server = world.method.phases[-1], world.server
    down = phase.broadcast(server, last.now)
    for client in DATA.clients:
        sent = down if phase.address is None else phase.address(server, down, client)
        assert world.method.personalise(sent, world.state(client))


def test_the_ends_of_the_way_are_the_models_themselves():
    a, b = {"x": torch.tensor([1.0, 3.0])}, {"x": torch.tensor([2.0, 5.0])}
    assert between(a, b, 0.0) is a and between(a, b, 1.0) is b
    assert between(a, b, 0.5)["x"].tolist() == [1.5, 4.0]


def test_a_client_without_validation_examples_keeps_its_training():
    data = made_data(validation_per_client=0)
    ends = []
    for how in (True, "validated"):
        world = federation(made_method("lora", finetune=how), TASK, data)
        world.finish()
        ends.append([world.state(client).tuned for client in data.clients])
    assert all(torch.equal(a[name], b[name]) for a, b in zip(*ends, strict=True) for name in a)
