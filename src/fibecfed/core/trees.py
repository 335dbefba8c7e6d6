"""Arithmetic on named tensors. Nothing here writes into its arguments."""

from __future__ import annotations

import cmath
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from .types import Params

_BLOCK = 2**17
"""Numbers that are summed together: in float64 they stay in the processor's cache, and take no new memory for each tensor."""

_WAITING = 5
"""Trees that are added to a sum together: of large ones the sum's own float64 numbers then pass through memory once for all of them."""


def weighted_mean(trees: Sequence[Params], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum_k w_k tree_k / sum_k w_k, summed in float64 in the order given, in each tensor's own dtype.

    Raises:
        ValueError: no trees, names, shapes or dtypes that differ, a dtype that is not floating point, or weights that do not sum to a
            positive, finite number.
    """
    if not trees or len(trees) != len(weights):
        raise ValueError(f"got {len(trees)} trees and {len(weights)} weights; expected the same number, at least one")
    total = _positive(sum(weights))
    first = trees[0]
    for k, tree in enumerate(trees):
        _check_alike(first, tree, k)
    mean: dict[str, Tensor] = {}
    for name in sorted(first):
        out = torch.empty(first[name].shape, dtype=first[name].dtype)
        blocks = [_blocks(tree[name]) for tree in trees]
        for place, target in enumerate(_blocks(out)):
            acc = torch.zeros(len(target), dtype=torch.float64)
            for block, weight in zip(blocks, weights, strict=True):
                acc.add_(block[place], alpha=weight / total)
            target.copy_(acc)
        mean[name] = out
    return mean


class WeightedSum:
    """sum_k w_k tree_k in float64, of trees that come one after the other and need not be kept; the last few are, until they are added.

    Its mean is `weighted_mean` of the same trees in the same order up to the rounding of float64: the division comes last, since the sum
    of the weights is not known before.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._like: Params = {}  # shapes and dtypes
        self._sums: dict[str, list[Tensor]] = {}  # in blocks: so large a piece as a whole tensor would be memory new to the process
        self._waiting: list[tuple[Params, float]] = []
        self._count = 0

    def add(self, tree: Params, weight: float) -> None:
        """Add w_k tree_k.

        Raises:
            ValueError: names, shapes or dtypes other than those of the first tree, or a dtype that is not floating point.
        """
        if not self._count:
            self._like = {name: value.to("meta") for name, value in tree.items()}
            self._sums = {name: [torch.zeros(len(b), dtype=torch.float64) for b in _blocks(value)] for name, value in tree.items()}
        _check_alike(self._like, tree, self._count)
        self._waiting.append((tree, weight))
        self._total += weight
        self._count += 1
        if len(self._waiting) == _WAITING:
            self._fold()

    def _fold(self) -> None:
        """Add the trees that wait, in their order, block by block."""
        for name, targets in self._sums.items():
            blocks = [_blocks(tree[name]) for tree, _ in self._waiting]
            for place, target in enumerate(targets):
                for block, (_, weight) in zip(blocks, self._waiting, strict=True):
                    target.add_(block[place], alpha=weight)
        self._waiting.clear()

    def mean(self) -> dict[str, Tensor]:
        """sum_k w_k tree_k / sum_k w_k, in each tensor's own dtype.

        Raises:
            ValueError: the weights do not sum to a positive, finite number.
        """
        total = _positive(self._total)
        self._fold()
        mean: dict[str, Tensor] = {}
        for name in sorted(self._sums):
            out = torch.empty(self._like[name].shape, dtype=self._like[name].dtype)
            for target, acc in zip(_blocks(out), self._sums[name], strict=True):
                target.copy_(acc / total)
            mean[name] = out
        return mean


def _positive(total: float) -> float:
    if not (total > 0 and math.isfinite(total)):
        raise ValueError(f"the weights sum to {float(total)}; expected a positive, finite sum")
    return float(total)


def _check_alike(first: Params, tree: Params, k: int) -> None:
    """That tree k has the names, shapes and dtypes of tree 0."""
    if tree.keys() != first.keys():
        raise ValueError(f"tree {k} has other names than tree 0: {sorted(tree.keys() ^ first.keys())[:5]}")
    for name in sorted(first):
        want, got = first[name], tree[name]
        if not want.dtype.is_floating_point:
            raise ValueError(f"{name}: got {want.dtype}, expected floating point; a mean of others would be cut off")
        if got.shape != want.shape or got.dtype != want.dtype:
            text = f"{tuple(got.shape)} {got.dtype} beside {tuple(want.shape)} {want.dtype}"
            raise ValueError(f"{name}: {text}; expected the same in every tree")


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """The numbers of a tensor in order, on the CPU, in parts of at most `_BLOCK`; views of it where they lie so already."""
    return tensor.detach().to("cpu").reshape(-1).split(_BLOCK)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def pick(params: Params, names: Collection[str]) -> dict[str, Tensor]:
    """The entries named, in sorted order.

    Raises:
        KeyError: a name that is not there.
    """
    missing = sorted(set(names) - params.keys())
    if missing:
        raise KeyError(f"no such tensor: {missing[:5]}")
    return {name: params[name] for name in sorted(names)}


def placed(params: Params, device: torch.device) -> dict[str, Tensor]:
    """The same tensors on `device`: once, for work that takes many passes; those that are there already are not copied."""
    return {name: moved(value, device) for name, value in params.items()}


def moved(value: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device that computes. A GPU is not waited for: it gets the copy behind all that it has been asked for before."""
    return value.to(device, value.dtype if dtype is None else dtype, non_blocking=device.type not in _WAITED_FOR)


_WAITED_FOR = ("cpu", "mps")  # a copy to one of these could be read before it is whole


def first_not_finite(params: Params) -> str | None:
    """The first name, in sorted order, whose tensor holds an infinity or NaN; None if there is none. Waits for a GPU once."""
    sums = [value.sum() for value in params.values()]  # no infinity or NaN leaves a sum finite
    if all(value.device.type == "cpu" for value in sums):
        if all(cmath.isfinite(value.item()) for value in sums):
            return None
    elif _finite(sums).all():
        return None
    names = sorted(params)
    finite = _finite([params[name] for name in names])  # the numbers are finite or only their sum is not
    return next((name for name, flag in zip(names, finite, strict=True) if not flag), None)


def _finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether each tensor holds finite numbers alone, on the CPU."""
    flags = [torch.isfinite(tensor).all() for tensor in tensors]
    return torch.stack([flag.to(flags[0].device) for flag in flags]).to("cpu")


def num_values(tensors: Iterable[Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(t.numel() for t in tensors)


def checksum(params: Params) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in sorted order, as hex: equal if and only if every bit is."""
    digest = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].detach().to("cpu").contiguous()
        # JSON ends where it ends, whatever the name: no two sets of tensors give the same text
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
