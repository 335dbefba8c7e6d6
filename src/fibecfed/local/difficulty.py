"""How hard a client's examples are to a model, without a gradient: the controls beside Fisher information, and ranks among like lengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.answers import targets_of
from ..core.task import Task
from ..core.trees import placed
from ..core.types import Examples, Params
from .batches import PASS_BATCH, batches, by_length

BINS = 10
"""[C] Bins of like length that examples are ranked in."""


def losses_per_token(task: Task, params: Params, examples: Examples) -> Float[Tensor, " examples"]:
    """-log p of each example over its labelled tokens, nat, or of its class; without dropout, float32, in the order of the examples."""
    order, params = by_length(examples), placed(params, task.device)
    found, counts = list[Tensor](), list[Tensor]()
    with torch.no_grad():
        for batch in batches(examples, order, PASS_BATCH):
            found.append(task.losses(params, batch))
            if (targets := targets_of(batch)) is not None:
                counts.append(targets.clamp(min=1))
    losses = torch.cat(found).cpu()  # read once: a GPU would be waited for each time
    whole = (losses / torch.cat(counts) if counts else losses).float()
    return torch.empty_like(whole).index_copy_(0, order, whole)


def misalignment(task: Task, params: Params, examples: Examples) -> Float[Tensor, " examples"]:
    """-IRA per labelled token: the loss of each answer behind its prompt minus that behind an empty one, nat, float32.

    Instruction-response alignment (FedDQC, Du et al., Findings of ACL 2025): how much the prompt lowers the loss of the answer. An example
    whose prompt says much of its answer has a low value, and is easy.
    """
    return losses_per_token(task, params, examples) - losses_per_token(task, params, examples.without_prompts())


WITHOUT_GRADIENT: dict[str, Callable[[Task, Params, Examples], Tensor]] = {"nll": losses_per_token, "ira": misalignment}
"""Orders of a curriculum that take forward passes alone, by name: what the examples are sorted by, ascending."""


def in_length_bins(
    difficulty: Float[Tensor, " examples"], lengths: Int[Tensor, " examples"], bins: int = BINS
) -> Float[Tensor, " examples"]:
    """The rank of each example among those of like length, as a fraction in [0, 1): an order by it has every length at every pace.

    The examples are cut by length into `bins` parts of equal size, or one for each example where there are fewer.
    """
    size = len(difficulty)
    found = torch.empty(size)
    for part in torch.argsort(lengths, stable=True).tensor_split(min(bins, max(1, size))):
        ranks = torch.empty(len(part), dtype=torch.int64)
        ranks[torch.argsort(difficulty[part], stable=True)] = torch.arange(len(part))
        found[part] = ranks / max(1, len(part))
    return found
