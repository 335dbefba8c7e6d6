"""Bytes of the frozen part of a model of SmolLM2-135M's shape as `model.quantization` keeps it: `python benchmarks/quantised_memory.py`.

"linear maps": the weights of all linear maps of the blocks with the scales of packed ones; "all": with embeddings (which are those of the
output layer too, and stay) and norms. Random weights; needs the extra qlora.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from fibecfed.models.quantised import Quantization, frozen_size, quantise

KINDS: tuple[Quantization | None, ...] = (None, "int8", "nf4")


def sizes(kind: Quantization | None) -> tuple[int, int]:
    """Bytes of the linear maps in the blocks, and of everything."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    if kind is not None:
        quantise(model, kind)
    maps = nn.ModuleList(module for module in model.model.layers.modules() if isinstance(module, nn.Linear))
    return frozen_size(maps)[1], frozen_size(model)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    whole = sizes(None)
    for one in KINDS:
        maps, everything = whole if one is None else sizes(one)
        print(
            f"{one or 'float32':8} linear maps {maps / 1e6:6.1f} MB ({maps / whole[0]:.3f})   "
            f"all {everything / 1e6:6.1f} MB ({everything / whole[1]:.3f})"
        )
