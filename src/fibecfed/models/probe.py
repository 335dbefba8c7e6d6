"""Whatever training will ask of a model is asked of it once before anything starts, on two short texts: what fails then is rejected."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator

import torch

from ..core.errors import UserError
from ..core.rng import Key
from ..core.task import Use
from ..core.types import Batch
from ..local.fisher import fisher_pass
from ..local.gradients import Wanted, alone, joined
from ..local.sensitivity import layer_sensitivity
from ..local.spectrum import hessian_vector_product
from .adapted_model import AdaptedModel
from .heads import UnsupportedModel

_LONGEST = 200
"""Characters that are shown of what a library says."""


@contextlib.contextmanager
def rejecting(published: str, family: str, what: str, use: str = "") -> Iterator[None]:
    """Turns whatever a model's own code raises into a rejection of that model; memory that runs out stays what it is.

    Args:
        published: the model's name.
        family: its `model_type`.
        what: what is being done, for the sentence.
        use: with what it cannot be used, where something else may do.

    Raises:
        UserError: instead of any other exception.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except UnsupportedModel as error:
        raise UserError(f"model.name: {published} cannot be used{use}: {error}; docs/models.md lists what can") from error
    except Exception as error:  # hundreds of families, each with its own code
        said = next((line for line in str(error).splitlines() if line.strip()), "no message").strip()
        raise UserError(
            f"model.name: {published} cannot be used{use}: {what} of this {family} model failed with {type(error).__name__}: "
            f"{said[:_LONGEST].rstrip('.')}; docs/models.md lists what can"
        ) from error


def try_out(task: AdaptedModel, published: str, family: str, *, pad: int, uses: Collection[Use]) -> None:
    """Compute on two texts, one of them padded, what training asks of a model.

    Args:
        pad: number of the padding token.
        uses: what the method asks beside losses and their gradients.

    Raises:
        UserError: some of it cannot be computed, or does not depend on all that is trained.
    """
    with rejecting(published, family, "a test run"):
        params, batch = task.init_params(Key(0)), _two_texts(task, pad)

    def gradients() -> None:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        losses = task.losses(leaves, batch)
        if not losses.isfinite().all():
            raise UnsupportedModel(f"the losses of this {family} model are not finite numbers")
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        inside = [gradient for name, gradient in zip(leaves, found, strict=True) if task.layer_of(name) is not None]
        if inside and all(gradient is None for gradient in inside):
            raise UnsupportedModel(f"no gradient reaches the adapter in the layers of this {family} model")

    trials: dict[Use, Callable[[], object]] = {
        "per-example gradients": lambda: fisher_pass(task, params, [batch]),
        "layer importance": lambda: layer_sensitivity(task, params, [batch]),
        "hidden states": lambda: task.hidden_states(params, batch),
        "curvature": lambda: hessian_vector_product(task.exact(), params, batch, params),
        "joined passes": lambda: _joined_passes(task, batch),
    }
    with rejecting(published, family, "the gradient"):
        gradients()
    for use in sorted(uses):
        with rejecting(published, family, use, " with `resources.cohort_batch`" if use == "joined passes" else " with this method"):
            trials[use]()


def _joined_passes(task: AdaptedModel, batch: Batch) -> None:
    """Two clients with as many texts each, and with different numbers of them, against each for itself."""
    together = task.together()
    if together.unjoined:
        return  # what is trained here cannot be joined with any model
    first, second = ({name: value[row : row + 1] for name, value in batch.items()} for row in (0, 1))
    for batches in ((first, second), (batch, second)):
        wanted = [_client(task, one, together.stream(Key(place)), place) for place, one in enumerate(batches)]
        for place, (one, found) in enumerate(zip(wanted, joined(together, wanted), strict=True)):
            with task.training(Key(place)):
                own = alone(task, one)
            off = torch.stack([(a - b).norm() for a, b in zip(found.of_leaves, own.of_leaves, strict=True)]).norm()
            if off > _CLOSE[task.precision] * torch.stack([gradient.norm() for gradient in own.of_leaves]).norm():
                raise UnsupportedModel("a pass of several clients does not give the gradients of a pass for each")


_CLOSE = {"float32": 1e-2, "bf16": 0.1}
"""Fraction by which gradients of the same batch may differ: rows are padded otherwise."""


def _client(task: AdaptedModel, batch: Batch, stream: object, number: int) -> Wanted:
    """With parameters of its own."""
    drawn = task.init_params(Key(number)).items()
    params = {name: value.to(task.device, copy=True).add_(0.01).requires_grad_() for name, value in drawn}
    return Wanted(params, list(params.values()), batch, torch.mean, stream=stream)


def _two_texts(task: AdaptedModel, pad: int) -> Batch:
    """A batch of a text of four tokens and one of two, which is padded."""
    mask = task.objective.mask_id
    number = task.model.get_input_embeddings().num_embeddings  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    tokens = [token for token in range(min(16, number)) if token not in (pad, mask)]
    ids = torch.tensor([tokens[-4:], [*tokens[-2:], pad, pad]])
    if mask is not None:
        ids[:, 1] = mask
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    return {"input_ids": ids, "attention_mask": seen, "labels": task.objective.some_labels(ids)}
