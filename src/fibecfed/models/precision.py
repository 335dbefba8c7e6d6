"""On which device and in which precision a model computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..core.errors import UserError
from ..local.options import TrainingOptions
from .quantised import is_packed


def choose_device(name: str, key: str = "training.device") -> torch.device:
    """The device asked for; auto = cuda, mps or cpu, the first that is there.

    Args:
        key: what named it, for an error.

    Raises:
        UserError: it is none of these kinds, or is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"{key}: got {name!r}, expected auto, cpu, cuda, cuda:1 or the like, or mps")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{key}: {name!r} cannot be used here ({str(error).splitlines()[0]}); try auto or cpu") from None
    return device


def on_first(training: TrainingOptions, devices: Sequence[str] | None) -> TrainingOptions:
    """How the process of a run trains that computes clients on several devices (`resources.devices`): on the first of them.

    Raises:
        UserError: one of them is not there.
    """
    there = [choose_device(name, "resources.devices") for name in devices or ()]
    return training.model_copy(update={"device": str(there[0])}) if there else training


def choose_precision(name: str, device: torch.device, dtype: str = "float32") -> str:
    """float32 or bf16; auto = bf16 where the hardware has instructions for it, since elsewhere it is emulated and slower.

    Args:
        dtype: of the frozen weights; in those of bfloat16 nothing else can be computed.
    """
    if name != "auto":
        return name
    if dtype == "bfloat16":
        return "bf16"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return "bf16"
    return "float32"


def store_frozen_maps_in_bf16(model: nn.Module, but: Sequence[nn.Module] = ()) -> None:
    """Keep the frozen weights of linear maps in bfloat16: what autocast would convert them to again in every step, so no number changes.

    Args:
        but: modules that stay as they are: a language-model head, which computes in float32 and may share its weight with the embeddings.
    """
    kept = {id(inner) for module in but for inner in module.modules()}
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.Linear) and id(module) not in kept and not any(p.requires_grad or is_packed(p) for p in own):
            module.to(torch.bfloat16)


def keep_in_float32(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Of a model that was loaded in bfloat16, turn what is small or must not be rounded back to float32: `modules`, and all that is neither
    a linear map nor an embedding, such as norms."""
    for module in modules:
        module.float()
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
