"""Random models for tests: sizes as asked, equal from equal seeds, gradients that are not zero by construction."""

from __future__ import annotations

import pytest
import torch
from texts import PAD, bits, padded, sentences

from fibecfed.models.tiny import FAMILIES, TARGETS, Family, tiny_config, tiny_model, tiny_task


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_asked_for(family: Family) -> None:
    task = tiny_task(family, layers=3, hidden=24, heads=3, vocab=70, num_classes=5, rank=4)
    assert (task.num_layers, task.num_classes) == (3, 5)
    assert task.embed({"input_ids": torch.tensor([[69]])}).shape == (1, 1, 24)
    params = task.params()
    down = {name: value.shape for name, value in params.items() if "lora_A" in name}
    assert len(down) == 3 * len(TARGETS[family])
    assert set(down.values()) == {(4, 24)}
    assert sum("lora_B" in name for name in params) == len(down)
    assert tiny_config(family).pad_token_id == PAD[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_seeds_give_equal_models_and_leave_the_global_generator_alone(family: Family) -> None:
    before = torch.get_rng_state()
    model = tiny_model(family, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert bits(tiny_model(family, seed=3)) == bits(model)
    assert bits(tiny_model(family, seed=4)) != bits(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_tensor_has_a_gradient_unless_b_is_asked_to_be_zero(family: Family) -> None:
    batch = padded(sentences([5, 3]), PAD[family], num_classes=2)
    for random_b in (True, False):
        task = tiny_task(family, random_b=random_b)
        params = {name: value.requires_grad_() for name, value in task.params().items()}
        gradients = dict(zip(params, torch.autograd.grad(task.losses(params, batch).sum(), list(params.values())), strict=True))
        without = {name for name, value in gradients.items() if not value.any()}
        assert without == ({name for name in params if "lora_A" in name} if not random_b else set())


def test_a_task_is_in_the_dtype_asked_for() -> None:
    task = tiny_task("llama", dtype=torch.float64)
    assert {value.dtype for value in task.params().values()} == {torch.float64}
    assert task.losses(task.params(), padded(sentences([4]), 0)).dtype == torch.float64
