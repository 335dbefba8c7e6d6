"""The linear maps of a module that are trained or stand beside trained ones, and what passes through them in a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.task import LowRank, TracedLinear
from .quantised import is_packed


@dataclass(frozen=True)
class TrainedLinear:
    """A linear map whose weight is trained, and the names of its trained tensors."""

    module: nn.Linear
    weight: str
    bias: str | None


def trained_linears(model: nn.Module, trained: Collection[str]) -> tuple[TrainedLinear, ...]:
    """The linear maps of `model` whose weight is among the names `trained`, in the module's order."""
    found = []
    for path, module in model.named_modules():
        weight, bias = f"{path}.weight", f"{path}.bias"
        if isinstance(module, nn.Linear) and weight in trained:
            found.append(TrainedLinear(module, weight, bias if bias in trained else None))
    return tuple(found)


def adapted_weights(model: nn.Module) -> dict[str, Tensor]:
    """The frozen weights that LoRA stands beside, by name; without packed ones, which nothing can be added to."""
    found = {}
    for path, module in model.named_modules():
        base = getattr(module, "base_layer", None)
        if hasattr(module, "lora_A") and isinstance(base, nn.Module):
            weight = base.get_parameter("weight")
            if not is_packed(weight):
                found[f"{path}.base_layer.weight"] = weight
    return found


def low_rank_maps(model: nn.Module, trained: Collection[str]) -> tuple[tuple[LowRank, ...], frozenset[str]]:
    """The trained LoRA maps, and the names of the weights that are stored as (d_in, d_out)."""
    maps, transposed = [], set()
    for path, module in model.named_modules():
        if not hasattr(module, "lora_A") or not isinstance(getattr(module, "base_layer", None), nn.Module):
            continue
        weight, a, b = f"{path}.base_layer.weight", f"{path}.lora_A.default.weight", f"{path}.lora_B.default.weight"
        scaling: Any = module.scaling
        if a in trained and b in trained:
            maps.append(LowRank(weight, a, b, float(scaling["default"])))
        if module.fan_in_fan_out:
            transposed.add(weight)
    return tuple(sorted(maps, key=lambda found: found.weight)), frozenset(transposed)


class PerExample(Tensor):
    """What a map gives for an input that all examples share, with one row per example, so that each has a gradient of its own.

    DeBERTa projects the embeddings of relative positions once per batch and repeats the projection for the examples. Here it has been
    repeated already: that `repeat` returns it as it is. It stays of this class through what reshapes or scales it; anything else makes it
    a plain tensor, on which `repeat` is `repeat`.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.repeat and isinstance(args[0], cls) and all(size == 1 for size in args[2:]):
                return args[0].as_subclass(Tensor)
            out = func(*args, **(kwargs or {}))
            if not isinstance(out, Tensor):
                return out
            return out.as_subclass(cls if getattr(func, "__name__", "") in _KEEPS else Tensor)


def widened(x: Tensor, num_examples: int) -> Tensor:
    """An input of a map; one that all examples share, (1, token, d_in), with a row for each."""
    return x.expand(num_examples, -1, -1).as_subclass(PerExample) if x.ndim == 3 and len(x) == 1 < num_examples else x


_KEEPS = frozenset({"linear", "dropout", "add", "mul", "to", "float", "view", "reshape", "permute", "transpose", "contiguous"})


@contextlib.contextmanager
def recorded(linears: Sequence[TrainedLinear], params: Mapping[str, Tensor], num_examples: int) -> Iterator[list[TracedLinear]]:
    """A list that is filled with each use of the maps inside; a map of which there was none has an input and an output of zeros.

    An input that all examples share, (1, token, d_in), is given a row for each.

    Raises:
        ValueError: an input whose rows are not the examples: their gradients cannot be told apart.
    """
    records: list[TracedLinear] = []

    def recording(linear: TrainedLinear, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def record(x: Tensor) -> Tensor:
            x = widened(x, num_examples)
            if len(x) != num_examples:
                raise ValueError(
                    f"{linear.weight}: got an input of shape {tuple(x.shape)}, expected one row for each of the {num_examples} examples"
                )
            out = forward(x)
            records.append(TracedLinear(linear.weight, linear.bias, x.detach(), out))
            return out

        return record

    # In place of their `forward`, as hooks on 25 maps take a hundredth of a step of MiniLM in bf16 to put on and off.
    before = [vars(linear.module).get("forward") for linear in linears]
    try:
        for linear in linears:
            vars(linear.module)["forward"] = recording(linear, linear.module.forward)
        yield records
    finally:
        for linear, own in zip(linears, before, strict=True):
            if own is None:
                vars(linear.module).pop("forward", None)
            else:
                vars(linear.module)["forward"] = own
    used = {record.weight for record in records}
    for linear in linears:
        if linear.weight not in used:
            weight = params[linear.weight].detach()
            x, y = (weight.new_zeros(num_examples, 1, size) for size in reversed(weight.shape))
            records.append(TracedLinear(linear.weight, linear.bias, x, y.requires_grad_()))


@contextlib.contextmanager
def removing(handles: Sequence[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    """Remove the hooks at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
