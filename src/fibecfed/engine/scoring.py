"""A model on examples -> the sums that its metrics are computed from."""

from __future__ import annotations

import torch

from ..core.statistics import added
from ..core.task import Task
from ..core.trees import placed
from ..core.types import Examples, Params
from ..local.batches import length_batches


def totals(task: Task, params: Params, examples: Examples, batch_size: int) -> dict[str, torch.Tensor]:
    """The task's sums over all examples, in batches of texts of like length."""
    params = placed(params, task.device)
    return added((task.sums(params, batch) for batch in length_batches(examples, batch_size)), task.statistics.zero)
