"""LoRA on every linear map, and on some blocks."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config

from fibecfed.core.rng import Key
from fibecfed.models.lora import add_lora
from fibecfed.models.options import ModelOptions
from fibecfed.models.tiny import FAMILIES, Family, tiny_config

ALL = ModelOptions(rank=2, target_modules="all-linear")


def adapted(model: Any) -> set[str]:
    return {path.removeprefix("base_model.model.") for path, module in model.named_modules() if hasattr(module, "lora_A")}


def causal(family: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
    return AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=64, **sizes) if family == "qwen2" else tiny_config(family))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_all_linear_is_what_peft_takes_of_a_causal_language_model(family: str) -> None:
    ours = adapted(add_lora(causal(family), ALL, dropout=0.0, key=Key(0), draws_head=False))
    theirs = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", fan_in_fan_out=family == "gpt2")
    assert ours == adapted(get_peft_model(causal(family), theirs))
    assert len(ours) == 2 * (4 if family == "gpt2" else 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_of_a_classifier_is_every_map_of_its_blocks_and_neither_head_nor_pooler(family: Family) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny_config(family))
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    inside = {path for path, kind in kinds.items() if kind in ("Linear", "Conv1D") and (".0." in path or ".1." in path)}
    assert adapted(add_lora(model, ALL, dropout=0.0, key=Key(0))) == inside


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_chosen_by_number(family: Family) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, layers=3))
    found = adapted(add_lora(model, ALL.model_copy(update={"layers_to_transform": (2, 0)}), dropout=0.0, key=Key(0)))
    assert {number for path in found for number in "012" if f".{number}." in path} == {"0", "2"}


@pytest.mark.parametrize("stabilised", [False, True])
def test_the_scale_is_that_of_the_pattern_or_of_the_model(stabilised: bool) -> None:
    patterns = {"rank_pattern": ("q_proj = 4",), "alpha_pattern": ("layers.1.self_attn.q_proj = 3",)}
    options = ModelOptions(rank=16, alpha=8, rslora=stabilised, **patterns)
    found = add_lora(causal("llama"), options, dropout=0.0, key=Key(0), draws_head=False)
    scales = {path.split("model.model.model.")[-1]: m.scaling["default"] for path, m in found.named_modules() if hasattr(m, "lora_A")}
    power = 0.5 if stabilised else 1
    wanted = {"layers.0.self_attn.q_proj": 8 / 4**power, "layers.1.self_attn.q_proj": 3 / 4**power}
    assert scales == {**wanted, **{f"layers.{n}.self_attn.v_proj": 8 / 16**power for n in (0, 1)}}
