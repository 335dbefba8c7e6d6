"""A tiny random LLaMA as a GGUF file, with a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from saved import WORDS


def write_gguf(path: Path, *, layers: int = 2, hidden: int = 64, heads: int = 4) -> None:
    """Weights in float32; the words of `saved.WORDS` as a byte-level vocabulary, each letter a token of its own beside them."""
    draw = np.random.default_rng(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words, merges = list(WORDS[4:]), []
    pieces: list[str] = ["<s>", "</s>", "Ġ", *letters]
    for word in [*words, *(f"Ġ{word}" for word in words)]:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(pieces)
    writer.add_token_types([gguf.TokenType.CONTROL if piece in ("<s>", "</s>") else gguf.TokenType.NORMAL for piece in pieces])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, (draw.standard_normal(shape) * 0.2).astype(np.float32))

    tensor("token_embd.weight", len(pieces), hidden)
    tensor("output.weight", len(pieces), hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, dtype=np.float32))
    for block in range(layers):
        for part in ("q", "k", "v", "output"):
            tensor(f"blk.{block}.attn_{part}.weight", hidden, hidden)
        tensor(f"blk.{block}.ffn_gate.weight", 2 * hidden, hidden)
        tensor(f"blk.{block}.ffn_up.weight", 2 * hidden, hidden)
        tensor(f"blk.{block}.ffn_down.weight", hidden, 2 * hidden)
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{norm}.weight", np.ones(hidden, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
