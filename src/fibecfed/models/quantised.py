"""The frozen linear maps of a model's blocks in 4 or 8 bit, packed by bitsandbytes; what can be told without that package."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from transformers import PretrainedConfig

from ..core.errors import UserError
from .heads import UnsupportedModel
from .network import find_blocks

Quantization: TypeAlias = Literal["nf4", "int8"]


def reject_unpacked(wanted: Quantization | None, published: str, config: PretrainedConfig) -> None:
    """Reject a quantisation that cannot be made, and a model whose file is quantised already.

    Args:
        wanted: `model.quantization`.
        published: the model's name.
        config: its own configuration.

    Raises:
        UserError: bitsandbytes is not installed, or the file is quantised.
    """
    if wanted is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f'model.quantization: got "{wanted}", which needs the package bitsandbytes; remove it, or run in a clone of fibecfed: '
            "pip install '.[qlora]'"
        )
    table: Any = getattr(config, "quantization_config", None)
    if table is not None:
        way = table.get("quant_method", "a method of its own") if isinstance(table, dict) else type(table).__name__
        raise UserError(
            f"model.name: the file of {published} is quantised ({way}), expected a model in full precision; name that one, and set "
            "`model.quantization`, which quantises it when it is loaded"
        )


def quantise(model: nn.Module, wanted: Quantization) -> None:
    """Pack the weights of all linear maps in a model's blocks, in place, one after the other; head and embeddings stay as they are.

    Args:
        model: as transformers loads it, on the CPU, so that the bits are the same wherever it computes later.

    Raises:
        UnsupportedModel: it has no list of blocks, or no linear maps in it.
    """
    from .packed_maps import packed  # bitsandbytes is an extra

    found = find_blocks(model, getattr(model.config, "num_hidden_layers", 0))
    maps = [] if found is None else [path for path, module in found[1].named_modules() if _is_plain_map(module)]
    if found is None or not maps:
        raise UnsupportedModel(
            f"{type(model).__name__} is not supported with `model.quantization`: it has no linear maps in a list of blocks"
        )
    for path in maps:
        found[1].set_submodule(path, packed(found[1].get_submodule(path), wanted))
    whole: Any = model
    whole.is_loaded_in_4bit, whole.is_loaded_in_8bit = wanted == "nf4", wanted == "int8"  # what PEFT goes by


def is_packed(weight: Tensor) -> bool:
    """Whether a weight is the storage of a quantised one, in which no numbers stand."""
    return not weight.is_floating_point()


def frozen_size(model: nn.Module) -> tuple[int, int]:
    """How many values of a model are not trained, and the bytes that they take, scales of packed ones included.

    What PEFT keeps of a head that it replaced is left out: it computes nothing.
    """
    values, size, seen = 0, 0, set[int]()
    for path, module in model.named_modules():
        if "original_module" in path:
            continue
        for name, value in module.named_parameters(recurse=False):
            if value.requires_grad or id(value) in seen:
                continue
            seen.add(id(value))
            packed = name == "weight" and is_packed(value)
            whole: Any = module
            values += whole.in_features * whole.out_features if packed else value.numel()
            size += value.nbytes + (sum(tensor.nbytes for tensor in _scales(module)) if packed else 0)
    return values, size


def _scales(module: Any) -> Iterable[Tensor]:
    return module.scales_of_weight()


def _is_plain_map(module: nn.Module) -> bool:
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"
