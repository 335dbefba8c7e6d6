"""Every family that transformers classifies sequences with, as tiny random models, and what becomes of a run with each."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from published import published
from rich.console import Console
from saved import run_config, save_tokenizer, write_reviews
from texts import noisy
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from fibecfed import check, session
from fibecfed.build import prepare
from fibecfed.config import Config
from fibecfed.core.errors import UserError
from fibecfed.models.export import save_adapter

FAMILIES = tuple(sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES))
METHODS = ("fibecfed", "lora")
RUNS = "runs"

_SIZES: tuple[tuple[int, str], ...] = (
    (72, "vocab_size max_position_embeddings n_positions n_ctx max_seq_len num_position_embeddings max_2d_position_embeddings "
         "entity_vocab_size pronunciation_vocab_size shape_vocab_size vocab_size_per_layer_input"),
    (64, "intermediate_size d_ff ffn_dim d_inner n_inner dff hidden_dim ffn_hidden_size encoder_ffn_dim decoder_ffn_dim mlp_hidden_size "
         "attention_hidden_size"),
    (32, "hidden_size d_model n_embd dim emb_dim embedding_size d_embed pooler_hidden_size num_hash_buckets input_embedding_size "
         "output_embedding_size word_embed_proj_dim xpath_unit_hidden_size"),
    (16, "moe_intermediate_size shared_expert_intermediate_size kv_lora_rank q_lora_rank linear_key_head_dim linear_value_head_dim "
         "sliding_window local_attention true_hidden_size intra_bottleneck_size chunk_size"),
    (8, "head_dim d_kv d_head v_head_dim qk_nope_head_dim qk_rope_head_dim attention_head_dim kv_channels"),
    (4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts num_local_experts "
        "n_routed_experts n_group"),
    (2, "type_vocab_size num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
        "num_experts_per_tok topk_group n_shared_experts num_key_value_heads num_kv_heads moe_topk"),
)  # fmt: skip
_SMALL = {name: size for size, names in _SIZES for name in names.split()}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3, "mask_token_id": 1}

_LATENT = {"num_key_value_heads": 4, "head_dim": None}  # DeepSeek's attention, where keys and values come from one vector
_ONE_GROUP = {"n_group": 1, "topk_group": 1}  # of experts
_HYBRID = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False}
_SHARED = {"num_hidden_layers": 4, "layer_types": None, "layers_block_type": ["linear_attention", "hybrid"] * 2}
_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": {**_LATENT, **_ONE_GROUP},
    "axk2": {**_LATENT, **_ONE_GROUP},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": _LATENT,
    "esm": {"vocab_size": 72, "position_embedding_type": "rotary"},
    "esmc": {"num_key_value_heads": 4},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "jamba": _HYBRID,
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6},
    "lilt": {"hidden_size": 48},
    "minicpm3": _LATENT,
    "mistral4": {**_LATENT, **_ONE_GROUP},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {"num_latents": 4, "d_latents": 32, "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
                  "num_cross_attention_heads": 4},
    "reformer": {"axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16), "attn_layers": ["local", "lsh"], "attention_head_size": 8},
    "xmod": {"languages": ["en_XX"]},
    "zamba": {**_SHARED, **_HYBRID, "attention_head_dim": 16},
    "zamba2": _SHARED,
}  # fmt: skip
"""What a family needs beside, to be small and whole."""


def tiny(family: str) -> PretrainedConfig:
    """A configuration of a family with few layers and small widths."""
    kind = CONFIG_MAPPING[family]
    table = {**_small(kind()), **_SPECIAL.get(family, {})}
    return kind(**{name: value for name, value in table.items() if value is not None})


def _small(default: PretrainedConfig) -> dict[str, Any]:
    table: dict[str, Any] = {}
    there = {**default.to_dict(), **dict.fromkeys(default.attribute_map)}
    for name in there:
        value = getattr(default, name, None)
        if isinstance(value, PretrainedConfig):
            table[name] = {"model_type": value.model_type, **_small(value)}
        elif name in _SMALL and (name == "head_dim" or (isinstance(value, int) and not isinstance(value, bool))):
            table[default.attribute_map.get(name, name)] = _SMALL[name]
        elif name in _TOKENS and (value is not None or name == "pad_token_id"):
            table[name] = _TOKENS[name]
    if "layer_types" in there and "num_hidden_layers" in table:  # one layer of each kind
        table["layer_types"] = (list(dict.fromkeys(default.layer_types or [])) * 2)[:2]
    return table


class Unmade(Exception):
    """A family of which no tiny model can be made, or whose own call fails on it."""


def save_tiny(family: str, folder: Path) -> None:
    """The random body of a family and a tokenizer of whole words, as a folder of a published model.

    Raises:
        Unmade: with the reason.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_config(tiny(family)).eval()
        body = model.base_model
        with torch.no_grad():
            for value in body.parameters():
                if value.ndim == 2:
                    value.mul_(3)  # so that texts differ in their logits
        body.save_pretrained(folder)
    except Exception as error:
        raise Unmade(said(error)) from error
    save_tokenizer(folder)


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def config_of_run(folder: Path, kind: str) -> Config:
    """One short round with the model in `folder`."""
    return run_config(
        folder,
        method=published({"kind": kind}),
        model={"rank": 2},
        federation={"clients": 2, "clients_per_round": 2, "rounds": 1},
        evaluation={"every": 1},
        data={"max_length": 16},
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers and torch say of odd models."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


def outcome(family: str, kind: str, folder: Path) -> str:
    """`RUNS`, where a method trains a tiny model of the family, and plain PEFT computes the same from the adapter it saves; the sentence in
    which both `check` and `run` reject it before anything is written; or what else happened, beginning with "fault".

    Raises:
        Unmade: no tiny model can be made.
    """
    with quiet():
        save_tiny(family, folder / "backbone")
        write_reviews(folder / "reviews.csv", 24)
        config, run = config_of_run(folder, kind), folder / "run"
        found = []
        for go in (lambda: check.report(config, Console(file=io.StringIO())), lambda: session.start(config, run)):
            try:
                go()
                found.append(RUNS)
            except UserError as error:
                found.append(str(error).replace(str(folder), ""))
            except Exception as error:
                found.append(f"fault: {said(error)}")
        if found[0] != found[1]:
            return f"fault: check says {found[0]!r}, run {found[1]!r}"
        if found[0] != RUNS:
            return found[0] if not run.exists() else f"fault: it was rejected after something was written: {found[0]}"
        return RUNS if _loads_alike(config, folder) else "fault: its saved adapter computes another function"


def _loads_alike(config: Config, folder: Path) -> bool:
    task = prepare(config).task
    params, pad = noisy(task), 0
    save_adapter(task, params, folder / "adapter", base="org/model", revision=None, labels=("a", "b"), card="")
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "backbone", num_labels=2, pad_token_id=pad)
    loaded = PeftModel.from_pretrained(plain, str(folder / "adapter")).eval()
    batch = {"input_ids": torch.tensor([[5, 9, 7, 12, 6]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    with torch.no_grad():
        own, ours = loaded(**batch).logits, task.logits(params, batch)
    return bool((own - ours).abs().max() <= 1e-3 * own.abs().max())
