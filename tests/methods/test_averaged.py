"""The mean of the last rounds' models: beside the run without it, round by round."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from made import federation, made_data, made_method, made_task, same

import fibecfed
from fibecfed.config import from_table
from fibecfed.core.errors import UserError
from fibecfed.core.wire import decode, encode
from fibecfed.methods.averaged import TailAveraged

ROUNDS = 5
DATA = made_data(validation_per_client=4)
KINDS = ["lora", "fibecfed", "fedadam", "scaffold", "fedalt", "fedpeptao", "slora", "hetlora"]


def held(kind: str, **options: Any) -> tuple[Any, list[Any]]:
    """A federation behind its last round, and the server's state after each round."""
    world = federation(made_method(kind, rounds=ROUNDS, **options), made_task(2), DATA)
    steps = list(world.run())
    return world, steps


@pytest.mark.parametrize(("share", "number"), [(0.2, 1), (0.5, 3), (0.4, 2), (1.0, ROUNDS), (1e-9, 1)])
def test_the_result_is_the_mean_of_the_last_rounds_models(share: float, number: int):
    (_, plain), (world, steps) = held("lora", finetune=False), held("lora", finetune=False, tail_average=share)
    for before, step in zip(plain[:-1], steps[:-1], strict=True):
        assert same(before.server.params, step.server.params)
    last = [step.server.params for step in plain[-number:]]
    for name, value in steps[-1].server.params.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in last]).double().mean(0).float(), rtol=1e-5, atol=1e-7)
    assert steps[-1].server.tail == {}
    assert world.method.summary(steps[-1].server)["averaged_rounds"] == number


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_of_a_method_changes(kind: str):
    """Of every method: the same bits until the last round, in which nothing but its tensors differs; the same bytes and steps."""
    (_, plain), (_, steps) = held(kind, finetune=False), held(kind, finetune=False, tail_average=0.5)
    assert [step.now for step in plain] == [step.now for step in steps]
    for before, step in zip(plain, steps, strict=True):
        one, two = before.record, step.record
        assert (one.bytes_down, one.bytes_up, one.steps, one.loss) == (two.bytes_down, two.bytes_up, two.steps, two.loss)
    for before, step in zip(plain[:-1], steps[:-1], strict=True):
        assert same(before.server.params, step.server.params)
    rounds = plain[-1].now.num_rounds
    number = -(-rounds // 2)
    moved = 0
    for name, value in steps[-1].server.params.items():
        mean = torch.stack([step.server.params[name] for step in plain[-number:]]).double().mean(0).float()
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(value, plain[-1].server.params[name])
    assert moved
    held_more = [sum(value.numel() for value in step.server.tail.values()) for step in steps]
    whole = sum(value.numel() for value in steps[-1].server.params.values())
    assert held_more == [0] * (len(steps) - number) + [whole] * (number - 1) + [0]


def test_the_last_training_begins_with_the_mean():
    world, steps = held("lora", finetune=True, tail_average=0.5)
    _, plain = held("lora", finetune=False, tail_average=0.5)
    phase = world.method.phases[-1]
    assert phase.name == "finetune"
    assert same(phase.broadcast(steps[-1].server, steps[-1].now).shared, plain[-1].server.params)


def test_a_closing_round_begins_with_the_mean():
    layers = {"rule": "last", "value": 1}
    options = {"finetune": False, "head": "shared", "layers": layers, "closing_round": True}
    (_, plain), (_, steps) = held("fibecfed", **options), held("fibecfed", **options, tail_average=0.5)
    assert [step.now.phase for step in steps][-2:] == ["tune", "closing"]
    tuned = [step.server.params for step in plain if step.now.phase == "tune"][-3:]
    for name, value in steps[-2].server.params.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in tuned]).double().mean(0).float(), rtol=1e-5, atol=1e-7)
    assert steps[-1].server.tail == {}


def test_its_state_is_a_message_and_it_can_be_copied():
    world, steps = held("lora", finetune=False, tail_average=1.0)
    state = steps[-2].server
    assert state.tail
    read = decode(world.method.server_state, encode(state))
    assert same(read.tail, state.tail)
    for again in (copy.copy(world.method), pickle.loads(pickle.dumps(world.method))):
        assert isinstance(again, TailAveraged)
        assert again == world.method


def test_no_key_no_mean():
    assert not isinstance(made_method("lora"), TailAveraged)


def test_a_method_without_params_is_told():
    from fibecfed.methods.averaged import averaged

    class Foreign:
        server_state = fibecfed.message(type("Own", (), {"__annotations__": {"w": torch.Tensor}, "__module__": __name__}))

    with pytest.raises(UserError, match=r"method\.tail_average: got 0\.5 with a method whose server's state, Own, has no field `params`"):
        averaged(Foreign(), 0.5)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"method": {"kind": "lora", "aggregation": "exact"}}, "exact aggregation"),
        ({"method": {"kind": "fedex-lora"}}, "exact aggregation"),
        ({"method": {"kind": "local"}}, 'method.kind` = "local"'),
        ({"method": {"kind": "lora"}, "evaluation": {"patience": 2}}, "evaluation.patience"),
    ],
)
def test_what_it_does_not_go_with_is_told(tables: dict[str, Any], told: str):
    tables["method"]["tail_average"] = 0.25
    with pytest.raises(UserError, match=r"method\.tail_average: got 0\.25") as error:
        from_table({"data": {"task": "sst2"}, **tables})
    assert told in str(error.value)
