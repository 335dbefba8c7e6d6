"""A thousand optimiser steps: memory at the end is that of the beginning."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch

from fibecfed.core.rng import Key
from fibecfed.local.collect import Collect
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.tiny import tiny_model
from fibecfed.models.transformer_task import TransformerTask

pytestmark = pytest.mark.gpu

UPDATES, STEPS, WARM = 20, 50, 4
"""Client updates of so many steps each; the first ones fill torch's caches."""


def allocated(device: torch.device) -> int:
    """Bytes in use: of the GPU what tensors take, of the CPU what the process does."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return psutil.Process().memory_info().rss


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_memory_does_not_grow_over_a_thousand_steps(precision: str, device: torch.device) -> None:
    task = TransformerTask(tiny_model("bert", hidden=64), device=device, precision=precision, dropout=0.0)
    ids = torch.randint(3, 64, (8, 4, 24), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one), "labels": torch.tensor([0, 1, 0, 1])} for one in ids]
    options = TrainingOptions.model_validate({"batch_size": 4, "learning_rate": 1e-3})
    params, sizes = task.params(), list[int]()
    for number in range(UPDATES):
        epoch = [batches[step % len(batches)] for step in range(STEPS)]
        found = fit(task, params, [epoch], options, Key(number), collect=Collect(traces=True))
        params = found.params
        assert found.steps == STEPS
        sizes.append(allocated(device))
    settled = sizes[WARM:]
    room = 0 if device.type == "cuda" else 8 * 2**20  # a process gives memory back when it likes
    assert max(settled) - settled[0] <= room, sizes
