"""What the server of NVIDIA FLARE keeps, as the modules that its PyTorch recipe asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from workload import lora_model


class Adapter(torch.nn.Module):
    """The trained tensors of the workload's model."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        for name, value in adapter_of(lora_model(Path(folder))).items():
            self.register_parameter(name, torch.nn.Parameter(value.clone()))


class Still(torch.nn.Module):
    """Numbers that nobody trains."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.w = torch.nn.Parameter(torch.zeros(numbers))


def adapter_of(model: Any) -> dict[str, torch.Tensor]:
    """The trained tensors; a module allows no dots in the names of its own."""
    from peft import get_peft_model_state_dict

    return {name.replace(".", "/"): value.detach() for name, value in get_peft_model_state_dict(model).items()}


def set_adapter(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, {name.replace("/", "."): value for name, value in tensors.items()})
