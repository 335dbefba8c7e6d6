"""Which layers are aggregated globally, and which neurons a client updates in its other layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import UserError
from ..core.rng import Key
from ..core.task import Task
from ..core.trees import weighted_mean
from ..core.types import Params
from .curriculum import ceil_share
from .fisher import Neurons
from .options import LayerOptions, NeuronOptions

_ROUNDING = 1e-9


def aggregate_importance(importances: Sequence[Float[Tensor, " layers"]], num_samples: Sequence[int]) -> Float[Tensor, " layers"]:
    """sum_k n_k I_k / sum_k n_k over the clients that measured it [S: the server aggregates; C: these weights], summed in float64.

    Raises:
        ValueError: no clients, other numbers of layers, or weights that do not sum to a positive number.
    """
    return weighted_mean([{"importance": one} for one in importances], num_samples)["importance"]


def _descending(scores: Tensor) -> Tensor:
    """Positions from the highest score to the lowest, ties by the lower position."""
    return torch.argsort(scores.cpu(), descending=True, stable=True)


def _fewest_reaching(scores: Tensor, share: float) -> int:
    """The fewest of the scores that add up to `share` of their total, at least 1; all where the total is 0. Negative scores count as 0."""
    ordered = scores.cpu().double().clamp(min=0).sort(descending=True).values
    target = share * float(ordered.sum())
    if target == 0:
        return len(ordered)
    return min(len(ordered), 1 + int((ordered.cumsum(0) < target * (1 - _ROUNDING)).sum()))


def choose_layers(importance: Float[Tensor, " layers"], number: int) -> tuple[int, ...]:
    """The `number` layers of the largest importance [S], ties to the lower index; 0-based, ascending.

    >>> choose_layers(torch.tensor([0.3, 0.9, 0.5, 0.9]), 2)
    (1, 3)

    Raises:
        UserError: more layers than there are, or fewer than one.
        FloatingPointError: an importance that is not finite.
    """
    if not 1 <= number <= len(importance):
        raise UserError(
            f"got {number} layers to choose; expected 1 to {len(importance)}, the layers of the model: set method.layers.value accordingly"
        )
    if not torch.isfinite(importance).all():
        raise FloatingPointError(f"the importance of the layers is {importance.tolist()}; expected finite numbers")
    return tuple(sorted(_descending(importance)[:number].tolist()))


def _nearest(x: float, num_layers: int) -> int:
    """clip(floor(x + 1/2), 1, L)"""
    return max(1, min(num_layers, math.floor(x + 0.5 + _ROUNDING)))


def number_of_layers(options: LayerOptions, importance: Float[Tensor, " layers"], ratio: float | None = None) -> int:
    """How many layers are aggregated globally [C], by `options.rule`; method.md's clip(floor(x + 1/2), 1, L).

    - share: x = value L; count, last, first, random: value itself, by default x = L / 2; last, first, random with a fraction: x = value L;
    - coverage: the fewest layers whose importances add up to that fraction of the total (one below 0 counts as 0; all layers
      if the total is 0);
    - layer_gap, plateau: x = mu L r with `ratio` = r, the clients' mean;
    - all: L; agreement: L, until training tells otherwise.

    Raises:
        UserError: a share above 1, a number that is not whole or above L.
        ValueError: layer_gap or plateau without a ratio.
    """
    num_layers, rule, value = len(importance), options.rule, options.value
    if rule in ("all", "agreement"):
        return num_layers
    if rule in ("share", "coverage"):
        part = value if value is not None else {"share": 0.5, "coverage": 0.6}[rule]
        if part > 1:
            raise UserError(f"method.layers.value = {part:g} for the rule {rule!r}; expected a share above 0 and at most 1")
        return _nearest(part * num_layers, num_layers) if rule == "share" else _fewest_reaching(importance, part)
    if rule in ("layer_gap", "plateau"):
        if ratio is None:
            raise ValueError(f"the rule {rule!r} needs the ratio that the clients found")
        return _nearest(options.mu * num_layers * ratio, num_layers)
    if value is None:
        return _nearest(num_layers / 2, num_layers)
    if value < 1 and rule != "count":
        return _nearest(value * num_layers, num_layers)
    if value != int(value):
        raise UserError(f"method.layers.value = {value:g} for the rule {rule!r}; expected an integer number of layers, 1 to {num_layers}")
    if value > num_layers:
        raise UserError(
            f"method.layers.value = {value:g} for the rule {rule!r}; expected at most {num_layers}, the layers of the model: set it lower"
        )
    return int(value)


def global_layers(options: LayerOptions, importance: Float[Tensor, " layers"], ratio: float | None, key: Key) -> tuple[int, ...]:
    """The global aggregation layers (GAL), 0-based, ascending: the most important ones [S], or the controls last, first, random [C].

    Args:
        options: the rule and its value.
        importance: the clients' importances, aggregated.
        ratio: the clients' lossless ratio, aggregated; None for rules that use none.
        key: stream of the rule random; the others draw nothing.

    Raises:
        As `number_of_layers` and `choose_layers`.
    """
    num_layers, number = len(importance), number_of_layers(options, importance, ratio)
    if options.rule == "last":
        return tuple(range(num_layers - number, num_layers))
    if options.rule == "first":
        return tuple(range(number))
    if options.rule == "random":
        return tuple(sorted(key.permutation(num_layers)[:number].tolist()))
    return choose_layers(importance, number)


def layers_among(
    options: LayerOptions, importance: Float[Tensor, " layers"], ratio: float | None, key: Key, among: Sequence[int]
) -> tuple[int, ...]:
    """As `global_layers`, of the layers `among` alone; a number beyond theirs means all of them."""
    if options.rule in ("count", "last", "first", "random") and options.value is not None:
        options = options.model_copy(update={"value": min(options.value, len(among))})
    return tuple(among[place] for place in global_layers(options, importance[list(among)], ratio, key))


def block_information(task: Task, neurons: Neurons) -> Float[Tensor, " layers"]:
    """Fisher information of each block: that of all rows of its trainable tensors, summed in float64."""
    found = torch.zeros(task.num_layers, dtype=torch.float64)
    for name in sorted(neurons.rows):
        if (layer := task.layer_of(name)) is not None:
            found[layer] += neurons.rows[name].double().sum()
    return found.float()


def trained_blocks(
    amount: int | float, rule: Literal["fisher", "coverage", "last", "random"], information: Float[Tensor, " layers"], key: Key
) -> tuple[int, ...]:
    """Which blocks are trained [C], 0-based, ascending.

    - fisher: those of the largest Fisher information, `amount` of them, or clip(floor(amount L + 1/2), 1, L) if it is a fraction;
    - coverage: the fewest that hold the fraction `amount` of it;
    - last, random: as many as with fisher, the uppermost ones or drawn from `key`.

    Raises:
        FloatingPointError: Fisher information that is not finite.
    """
    num_layers = len(information)
    if rule == "coverage":
        return choose_layers(information, _fewest_reaching(information, amount))
    number = min(amount, num_layers) if isinstance(amount, int) else _nearest(amount * num_layers, num_layers)
    if rule == "last":
        return tuple(range(num_layers - number, num_layers))
    if rule == "random":
        return tuple(sorted(key.permutation(num_layers)[:number].tolist()))
    return choose_layers(information, number)


def _scores(name: str, neurons: Neurons) -> Tensor:
    """Fisher information of a tensor's neurons; of a lora_A that has none yet, that of its ranks in the lora_B beside it."""
    rows = neurons.rows[name]
    head, found, tail = name.rpartition("lora_A")
    if found and not rows.any():
        # B = 0 makes the gradient of A exactly 0; the gradient of B's column j says what rank j would be used for.
        return neurons.columns.get(f"{head}lora_B{tail}", rows)
    return rows


def neuron_masks(options: NeuronOptions, params: Params, neurons: Neurons | None, key: Key) -> dict[str, Bool[Tensor, " rows"]]:
    """Which neurons (output rows) of each tensor are updated [S: neurons of the highest aggregated Fisher information; C: how many].

    Usable on any model with LoRA, without a federation: `neurons` comes from `fisher_pass(task, params, batches).neurons`, and a
    mask multiplies the *step* of its tensor row by row (weight decay and moments included), not the gradient alone.

    - share: the top ceil(value x rows) neurons of each tensor, ties to the lower index;
    - coverage: the fewest that hold that fraction of the tensor's Fisher information; all where it holds none;
    - random: ceil(value x rows), drawn from `key` and the tensor's name;
    - all: every neuron.

    Where every score of a lora_A is 0 (B = 0 at the start), rank j of A scores the Fisher information in column j of the same
    module's lora_B [C].

    Args:
        options: rule and value (share and random 0.5, coverage 0.8 by default).
        params: the tensors to mask, by name; only their names and numbers of rows are read. Leave out what is updated whole (GAL, head).
        neurons: Fisher information, with a name for every tensor given; None is enough for random and all.
        key: stream of the rule random; the others draw nothing.

    Returns:
        For each tensor given, True where a row is updated, shape (rows,).

    Raises:
        ValueError: share or coverage without `neurons`, or `neurons` without one of the tensors or with another number of rows.
        FloatingPointError: a score that is not finite.
    """
    value = options.value if options.value is not None else {"coverage": 0.8}.get(options.rule, 0.5)
    masks: dict[str, Tensor] = {}
    for name in sorted(params):
        num_rows = params[name].shape[0]
        if options.rule == "all":
            masks[name] = torch.ones(num_rows, dtype=torch.bool)
            continue
        if options.rule == "random":
            kept = key.fold(name).permutation(num_rows)[: ceil_share(value, num_rows)]
        else:
            scores = _checked_scores(name, num_rows, neurons)
            number = ceil_share(value, num_rows) if options.rule == "share" else _fewest_reaching(scores, value)
            kept = _descending(scores)[:number]
        masks[name] = torch.zeros(num_rows, dtype=torch.bool).index_fill_(0, kept, True)
    return masks


def _checked_scores(name: str, num_rows: int, neurons: Neurons | None) -> Tensor:
    if neurons is None or name not in neurons.rows:
        raise ValueError(f"no Fisher information of {name}; expected one number per row, {num_rows} in all: run fisher_pass first")
    scores = _scores(name, neurons)
    if scores.shape != (num_rows,):
        raise ValueError(f"{name}: Fisher information of shape {tuple(scores.shape)} for {num_rows} rows; it belongs to another model")
    if not torch.isfinite(scores).all():
        raise FloatingPointError(f"{name}: Fisher information of its neurons is not finite")
    return scores
