"""Linear maps whose weights bitsandbytes has packed. They compute as the maps that they stand for: the weight is unpacked in each forward
and each backward pass, so that losses and gradients are those of the dequantised model to the bit.

bitsandbytes' own forward is not used. On CPUs it rewrites the packed weights of a module in evaluation mode for a kernel that has no
gradient, in 8 bit it rounds the inputs too, in a way that depends on the other examples of the batch, and single tokens go through other
kernels. Only what it is imported for is of it: the packing. This module needs the extra `qlora`.
"""

from __future__ import annotations

from typing import Any, Literal

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from torch import Tensor, nn
from torch.nn.functional import linear


class NF4Map(bnb.nn.Linear4bit):
    """4 bit, NF4 in blocks of 64 with double quantisation of their scales (Dettmers et al., NeurIPS 2023)."""

    def unpacked(self) -> Tensor:
        """W, (d_out, d_in), in the dtype that was packed."""
        weight: Any = self.weight
        return functional.dequantize_4bit(weight.data, weight.quant_state)

    def scales_of_weight(self) -> tuple[Tensor, ...]:
        """What is kept beside the packed weight."""
        weight: Any = self.weight
        state = weight.quant_state
        return (state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset)

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        return _applied(self, x)


class Int8Map(bnb.nn.Linear8bitLt):
    """8 bit, with a scale for each row of W (Dettmers et al., NeurIPS 2022); inputs are not quantised."""

    scales: Tensor

    def unpacked(self) -> Tensor:
        """W, (d_out, d_in), float32."""
        return functional.int8_vectorwise_dequant(self.weight.data, self.scales)

    def scales_of_weight(self) -> tuple[Tensor, ...]:
        """What is kept beside the packed weight."""
        return (self.scales,)

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b."""
        return _applied(self, x)


def packed(module: nn.Module, wanted: Literal["nf4", "int8"]) -> NF4Map | Int8Map:
    """A map of the same function, but for the rounding of its weight.

    Args:
        module: nn.Linear, or a Conv1D of transformers, whose weight is (d_in, d_out); on the CPU.
    """
    source: Any = module
    library: Any = bnb.nn
    weight = (source.weight.T if type(module).__name__ == "Conv1D" else source.weight).detach().contiguous()
    d_out, d_in = weight.shape
    made: Any = NF4Map(d_in, d_out, source.bias is not None, quant_type="nf4", device="meta") if wanted == "nf4" else Int8Map(
        d_in, d_out, source.bias is not None, has_fp16_weights=False, device="meta"
    )  # fmt: skip
    if wanted == "nf4":
        made.weight = library.Params4bit(weight, compress_statistics=True, quant_type="nf4").to("cpu")
        made.quant_state = made.weight.quant_state
    else:
        row = library.Int8Params(weight, requires_grad=False).to("cpu")
        made.register_buffer("scales", row.SCB.float(), persistent=False)
        row.CB = row.SCB = None
        made.weight = row
    made.bias = source.bias
    return made.requires_grad_(False).train(module.training)


def _applied(module: NF4Map | Int8Map, x: Tensor) -> Tensor:
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return _Unpacking.apply(x.to(dtype), module)  # pyright: ignore[reportReturnType]


class _Unpacking(torch.autograd.Function):
    """Keeps the packed weight for the backward pass, and not the unpacked one: this is what saves the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: NF4Map | Int8Map) -> Tensor:
        ctx.module = module
        bias = None if module.bias is None else module.bias.to(x.dtype)
        return linear(x, module.unpacked().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = outer
        found = gradient.flatten(0, -2) @ ctx.module.unpacked().to(gradient.dtype)
        return found.view(*gradient.shape[:-1], found.shape[-1]), None
