"""Which linear maps LoRA adapts."""

from __future__ import annotations

from collections.abc import Sequence

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import UserError
from .heads import UnsupportedModel

_QUERY_AND_VALUE = (
    ("query", "value"), ("query_proj", "value_proj"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("q", "v"), ("Wq", "Wv"),
    ("q_head", "v_head"), ("q_b_proj", "kv_b_proj"), ("q_proj", "kv_b_proj"),
)  # fmt: skip
"""Names of the attention's query and value. The first that are both there are taken, whatever else PEFT's defaults for the family adapt.

DeepSeek's makes keys and values with one map, from a vector that both share.
"""

_FUSED = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")
"""Names of one map for query, key and value, in families that PEFT has no default for."""


ALL_LINEAR = "all-linear"
"""PEFT's word for every linear map but those of the output layer. Here also without those outside the blocks, such as a pooler: what
stands between blocks and head, or before the blocks, belongs to no layer. Causal language models have none of these."""


def target_modules(
    model: nn.Module, family: str, wanted: tuple[str, ...] | str | None, head: Sequence[str], blocks: str | None = None
) -> str | list[str]:
    """The names of the maps that LoRA stands beside, as PEFT takes them: a map's path or its end.

    Args:
        wanted: as the user says; "all-linear": all of the transformer blocks; None: the attention's query and value.
        head: paths of modules that are trained as they are.
        blocks: path of the list of transformer blocks.

    Raises:
        UserError: a name that is no linear map's, or no default for the family.
        UnsupportedModel: no linear map before the head.
    """
    paths = [path for path, module in model.named_modules() if _is_map(module) and not _inside(path, head)]
    maps = sorted({path.rsplit(".", 1)[-1] for path in paths})
    if not maps:
        raise UnsupportedModel(f"{type(model).__name__} is not supported: it has no linear maps before its head that LoRA could adapt")
    if wanted == ALL_LINEAR:
        return _all_linear(model, [path for path in paths if path.startswith(f"{blocks}.")])
    if wanted:
        unknown = [name for name in wanted if not _names_maps(model, name, head)]
        if unknown:
            raise UserError(f"model.target_modules: got {', '.join(unknown)}, expected names among {', '.join(maps)}")
        return list(wanted)
    both = next((names for names in _QUERY_AND_VALUE if set(names) <= set(maps)), None)
    fused = next(([name] for name in _FUSED if name in maps), None)
    targets = both or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(family) or fused
    if not targets:
        raise UserError(f"model.target_modules: no default is known for a {family} model; choose among {', '.join(maps)}")
    return targets if isinstance(targets, str) else list(targets)


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _inside(path: str, modules: Sequence[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _names_maps(model: nn.Module, name: str, head: Sequence[str]) -> bool:
    """Whether all that PEFT finds under a name are linear maps, at least one of them before the head."""
    found = {path: module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")}
    return all(map(_is_map, found.values())) and any(not _inside(path, head) for path in found)


def _all_linear(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """The shortest ends of these maps' paths that are the ends of no other module's path; a whole path where there is none.

    Raises:
        UnsupportedModel: no maps.
    """
    if not paths:
        raise UnsupportedModel(f"{type(model).__name__} is not supported with all-linear: it has no linear maps in a list of blocks")
    others = [f".{path}" for path, _ in model.named_modules() if path not in set(paths)]
    found: set[str] = set()
    for path in paths:
        parts = path.split(".")
        ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        found.add(next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), path))
    return sorted(found)
