"""No tensor as large as the scores of all words at all positions is made in a step on answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from answering import answer_task, answers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fibecfed.models import token_loss


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
