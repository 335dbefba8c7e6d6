"""What passes take at most: no tensor as large as the scores of all words at all positions, and no more freed memory than is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from answering import answer_task, answers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fibecfed.core.rng import Key
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.local.sensitivity import layer_sensitivity
from fibecfed.models import adapted_model, token_loss


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that anything inside returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.found = max(self.found, value.numel())
        return out


@pytest.mark.parametrize("learned", [(3, 1, 7, 4), (8, 5, 11, 6)])
def test_a_step_makes_the_scores_of_a_few_positions_at_a_time(learned: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, rows = 2048, 2
    monkeypatch.setattr(token_loss, "CHUNK", rows * vocabulary)
    task, batch = answer_task("llama", vocab=vocabulary, hidden=8), answers(learned=learned)
    params = {name: value.requires_grad_() for name, value in task.params().items()}
    with Largest() as largest:
        torch.autograd.grad(task.losses(params, batch).sum(), list(params.values()))
    table = vocabulary * 8  # the head's own weight
    assert rows * vocabulary <= largest.found <= table < sum(learned) * vocabulary


WORKS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "training": lambda task, params, batches: fit(task, params, [batches], TrainingOptions(), Key(0)),
    "difficulty": fisher_pass,
    "importance": layer_sensitivity,
    "evaluation": lambda task, params, batches: [task.sums(params, batch) for batch in batches],
}


@pytest.mark.parametrize("name", WORKS)
def test_freed_memory_is_bounded_at_every_batch_whatever_it_is_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, bounds = answer_task("llama"), list[int]()
    monkeypatch.setattr(adapted_model, "bound_freed_memory", bounds.append)
    WORKS[name](task, task.params(), [answers()] * 3)
    assert len(bounds) >= 3 and set(bounds) == {2**32}
