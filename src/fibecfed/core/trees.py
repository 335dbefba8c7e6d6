"""Arithmetic on named tensors. Nothing here writes into its arguments."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from .types import Params


def weighted_mean(trees: Sequence[Params], weights: Sequence[float]) -> dict[str, Tensor]:
    """sum_k w_k tree_k / sum_k w_k, summed in float64 in the order given, in each tensor's own dtype.

    Raises:
        ValueError: no trees, names, shapes or dtypes that differ, a dtype that is not floating point, or weights that do not sum to a
            positive, finite number.
    """
    if not trees or len(trees) != len(weights):
        raise ValueError(f"got {len(trees)} trees and {len(weights)} weights; expected the same number, at least one")
    total = float(sum(weights))
    if not (total > 0 and math.isfinite(total)):
        raise ValueError(f"the weights sum to {total}; expected a positive, finite sum")
    first = trees[0]
    for k, tree in enumerate(trees):
        if tree.keys() != first.keys():
            raise ValueError(f"tree {k} has other names than tree 0: {sorted(tree.keys() ^ first.keys())[:5]}")
    mean: dict[str, Tensor] = {}
    for name in sorted(first):
        dtype = first[name].dtype
        if not dtype.is_floating_point:
            raise ValueError(f"{name}: got {dtype}, expected floating point; a mean of others would be cut off")
        acc = torch.zeros(first[name].shape, dtype=torch.float64)
        for tree, weight in zip(trees, weights, strict=True):
            if tree[name].shape != acc.shape or tree[name].dtype != dtype:
                got = f"{tuple(tree[name].shape)} {tree[name].dtype}"
                raise ValueError(f"{name}: {got} beside {tuple(acc.shape)} {dtype}; expected the same in every tree")
            acc.add_(tree[name].to("cpu", torch.float64), alpha=weight / total)
        mean[name] = acc.to(dtype)
    return mean


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
    return {name: value.to(device) for name, value in params.items()}


def first_not_finite(params: Params) -> str | None:
    """The first name, in sorted order, whose tensor holds an infinity or NaN; None if there is none. Waits for a GPU once."""
    names = sorted(params)
    if not names:
        return None
    finite = [torch.isfinite(params[name]).all() for name in names]
    flags = torch.stack([flag.to(finite[0].device) for flag in finite]).to("cpu")
    return next((name for name, flag in zip(names, flags, strict=True) if not flag), None)


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
