"""A client's work on a GPU, counted on one that is not there: tensors go to it once, and nothing waits for it in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from made_accelerator import WAITS, accelerated, counted

from fibecfed.core.answers import IGNORED
from fibecfed.core.rng import Key
from fibecfed.core.types import Batch
from fibecfed.local.collect import Collect
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.local.sensitivity import layer_sensitivity
from fibecfed.models.answers import Answers
from fibecfed.models.tiny import Family, tiny_model, tiny_words


def some_batches(number: int, *, mask_token: int | None = None, answers: bool = False) -> list[Batch]:
    ids = torch.randint(5, 60, (number, 4, 6), generator=torch.Generator().manual_seed(0))
    if mask_token is not None:
        ids[:, :, 2] = mask_token
    found: list[Batch] = []
    for one in ids:
        labels = one.masked_fill(torch.arange(6) < 3, IGNORED) if answers else torch.tensor([0, 1, 0, 1])
        found.append({"input_ids": one, "attention_mask": torch.ones(4, 6, dtype=torch.long), "labels": labels})
    return found


def params_of(family: Family, **more: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in tiny_model(family, **more).named_parameters() if p.requires_grad}


def grown(work: Callable[[int], Any]) -> Counter[str]:
    """What four more batches add to the events of a work on so many."""
    found = []
    for number in (4, 8):
        with counted() as events:
            work(number)
        found.append(events)
    found[1].subtract(found[0])
    return found[1]


TASKS: dict[str, tuple[Family, dict[str, Any], dict[str, Any]]] = {
    "classes": ("bert", {}, {}),
    "words of a masked model": ("bert", {"words": tiny_words("bert")}, {"mask_token": 4}),
    "words of a causal model": ("llama", {"words": tiny_words("llama")}, {}),
    "answers": ("llama", {"words": tiny_words("llama"), "objective": Answers()}, {"answers": True}),
}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("more", [{}, {"gradient_accumulation": 2}], ids=["plain", "accumulated"])
def test_a_step_copies_its_batch_and_waits_for_nothing(kind: str, more: dict[str, Any]) -> None:
    family, made, batch = TASKS[kind]
    task = accelerated(family, **made)
    options = TrainingOptions.model_validate({"batch_size": 4, **more})
    params = params_of(family, **({"words": made["words"]} if made else {}))

    def work(number: int) -> None:
        collect = Collect(traces=True, halves=True)
        fit(task, params, [some_batches(number, **batch)], options, Key(0), collect=collect)

    events = grown(work)
    per_batch = events.pop("copy to the device") / 4
    assert not any(events[name] for name in WAITS), events
    assert events["mask read by transformers"] <= 8  # its choice of a kernel: once or twice a pass
    assert 3 <= per_batch <= 8  # fields of a batch, and no tensor of the model's


@pytest.mark.parametrize("labels", ["true", "model"])
def test_a_fisher_pass_is_read_once(labels: Any) -> None:
    task, params = accelerated(), params_of("bert")
    events = grown(lambda number: fisher_pass(task, params, some_batches(number), labels))
    assert not any(events[name] for name in WAITS), events


def test_layer_importance_is_read_once() -> None:
    task, params = accelerated(), params_of("bert")
    events = grown(lambda number: layer_sensitivity(task, params, some_batches(number)))
    assert not any(events[name] for name in WAITS), events


def test_the_count_sees_a_wait() -> None:
    task, params = accelerated(), params_of("bert")
    with counted() as events:
        losses = task.losses(params, some_batches(1)[0])
        before = events["read"]
        assert not bool((losses > 0).any()) and losses.tolist() == [0, 0, 0, 0]
        torch.ones(2).to(losses.device)
    assert (before, events["read"], events["waited-for copy to the device"]) == (0, 2, 1)
