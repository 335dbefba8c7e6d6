"""Counted work of a client, against hooks on the blocks of the model that it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from made import federation, made_data, made_method, made_options, made_task

LAYERS = 4


@contextlib.contextmanager
def seen(task: Any) -> Iterator[list[int]]:
    """Tokens that pass forward and backward through the blocks of the module."""
    counts = [0, 0]

    def forward(_module: Any, args: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        tokens = hidden.shape[0] * hidden.shape[1]
        counts[0] += tokens
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: counts.__setitem__(1, counts[1] + tokens))

    blocks = [module for name, module in task.model.named_modules() if name.rpartition(".")[0].endswith("layer") and name[-1].isdigit()]
    assert len(blocks) == LAYERS
    handles = [block.register_forward_hook(forward) for block in blocks]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "lora"},
        {"kind": "self-evolution", "after": 0.0},
        {"kind": "fibecfed", "layers": {"rule": "last", "value": 2}, "score_after": 0},
        {"kind": "fibecfed", "layers": {"rule": "last", "value": 2}, "curriculum": {"scoring": "training"}},
        {"kind": "prompt-tuning", "adapter": {"num_tokens": 3}},
    ],
    ids=lambda options: options["kind"],
)
def test_tokens_are_those_that_pass_through_the_blocks(options: dict[str, Any]):
    task = made_task(LAYERS, made_options(**options))
    world = federation(made_method(**options, rounds=2), task, made_data(3, 6))
    with seen(task) as counts:
        steps = world.finish()
    told = [notes["token_blocks"] for step in steps for notes in step.record.notes.values()]
    assert [len(told), sum(len(step.record.cohort) for step in steps)] == [len(told)] * 2
    forward, backward = (sum(column) for column in zip(*told, strict=True))
    if options["kind"] == "prompt-tuning":  # its soft tokens are no tokens of the text
        tokens = counts[0] / forward
        assert tokens > 1 and counts[1] / backward == pytest.approx(tokens)
    else:
        assert (forward, backward) == tuple(counts)


def test_what_lies_below_the_lowest_trained_block_has_no_backward_pass():
    from fibecfed.engine.counting import CountedTask

    task = made_task(LAYERS)
    batch = made_data(3, 6).train.batch([0, 1, 2])
    tokens = batch["input_ids"].numel()
    for lowest, trained in ((2, [name for name in task.names if task.layer_of(name) in (2, 3, None)]), (LAYERS, [])):
        counted: Any = CountedTask(task)  # pyright: ignore[reportArgumentType]
        params = {name: value.requires_grad_(name in trained) for name, value in task.params().items()}
        counted.losses(params, batch)
        assert counted.token_blocks == [LAYERS * tokens, (LAYERS - lowest) * tokens]
        with torch.no_grad():
            counted.losses(params, batch)
        assert counted.token_blocks == [2 * LAYERS * tokens, (LAYERS - lowest) * tokens]
