"""A model on examples -> the sums that its metrics are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..core.statistics import Totals, added
from ..core.task import Task
from ..core.trees import placed
from ..core.types import Examples, Params
from ..core.written import GENERATED
from ..local.batches import length_batches, of_like_length


def totals(task: Task, params: Params, examples: Examples, batch_size: int) -> dict[str, torch.Tensor]:
    """The task's sums over all examples, in batches of texts of like length."""
    params = placed(params, task.device)
    return added((task.sums(params, batch) for batch in length_batches(examples, batch_size)), task.statistics.zero)


def with_written(task: Any, params: Params, examples: Sequence[Examples], sums: Totals) -> dict[str, torch.Tensor]:
    """Sums of a model, and with them those of answers that it writes to some of each client's examples."""
    zero = task.statistics.zero
    written = [{**zero, **task.written(placed(params, task.device), one)} for one in examples]
    return added([sums, *written], zero)


def writes(task: Any) -> bool:
    """Whether a task answers an evaluation with sums of answers that it has written."""
    return GENERATED in task.statistics.zero


def totals_of_some(task: Task, params: Params, examples: Examples, batch_size: int, part: int, of: int) -> dict[str, torch.Tensor]:
    """The sums of every `of`-th batch of `totals`, from the batch `part` on, each by itself: `number of the batch/name`."""
    params, found = placed(params, task.device), dict[str, torch.Tensor]()
    for number, positions in enumerate(of_like_length(examples, batch_size)):
        if number % of == part:
            found |= {f"{number}/{name}": value.cpu() for name, value in task.sums(params, examples.batch(positions)).items()}
    return found


def totals_of_parts(task: Task, parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What `totals` gives, to the last bit, of what `totals_of_some` gave of each of all parts."""
    batches: dict[int, dict[str, torch.Tensor]] = {}
    for part in parts:
        for place, value in part.items():
            number, _, name = place.partition("/")
            batches.setdefault(int(number), {})[name] = value
    return added((batches[number] for number in sorted(batches)), task.statistics.zero)
