"""Bytes of the frozen part of a model by its shape, as `model.quantization` and `model.dtype` keep it.

    python benchmarks/quantised_memory.py smollm2-135m
    python benchmarks/quantised_memory.py mistral-7b llama-3.1-8b

One block is made and packed, and counted as often as there are blocks.

"blocks": the weights of the linear maps, with the scales of packed ones: what is quantised. "words": embeddings and output layer, which
bitsandbytes leaves as they are; the output layer, and embeddings tied to it, are kept in float32. Norms are in "all". Random weights;
needs the extra qlora, and 2 GB for a block of the large ones.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fibecfed.models.precision import keep_in_float32
from fibecfed.models.quantised import Quantization, frozen_size, quantise

FEW = 8
"""Words of the models that are made; the others are counted."""
SHAPES: Mapping[str, LlamaConfig] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "mistral-7b": LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    ),
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    ),
}  # fmt: skip
KINDS: tuple[tuple[str, Quantization | None, torch.dtype], ...] = (
    ("float32", None, torch.float32),
    ("bfloat16", None, torch.bfloat16),
    ("int8", "int8", torch.float32),
    ("nf4", "nf4", torch.float32),
    ("nf4, bfloat16", "nf4", torch.bfloat16),
)


def sizes(shape: LlamaConfig, kind: Quantization | None, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of the linear maps in the blocks, of embeddings and output layer, and of everything."""
    one = LlamaConfig.from_dict({**shape.to_dict(), "num_hidden_layers": 1, "vocab_size": FEW})
    torch.set_default_dtype(dtype)
    model = LlamaForCausalLM(one).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    keep_in_float32(model, [model.lm_head])  # as a run does
    if kind is not None:
        quantise(model, kind)
    words = sum(weight.nbytes for weight in {id(w): w for w in (model.lm_head.weight, model.model.embed_tokens.weight)}.values())
    maps = frozen_size(nn.ModuleList(module for module in model.model.layers.modules() if isinstance(module, nn.Linear)))[1]
    block = frozen_size(model.model.layers)[1]
    last = frozen_size(model.model.norm)[1]
    words = words // FEW * shape.vocab_size
    return maps * shape.num_hidden_layers, words, block * shape.num_hidden_layers + last + words


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["smollm2-135m"]:
        whole = sizes(SHAPES[name], None, torch.float32)
        for title, kind, dtype in KINDS:
            found = sizes(SHAPES[name], kind, dtype)
            parts = (
                f"{what} {size / 1e6:8.1f} MB ({size / of:.3f})"
                for what, size, of in zip(("blocks", "words", "all"), found, whole, strict=True)
            )
            print(f"{name} {title:14} {'   '.join(parts)}", flush=True)
