"""LoRA, dropout, device and precision that a pre-trained model gets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from texts import bits, noisy, padded, save_backbone, sentences
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.local.options import TrainingOptions
from fibecfed.models.base_models import add_lora, build_task, find, set_dropout
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions
from fibecfed.models.precision import choose_device, choose_precision
from fibecfed.models.tiny import FAMILIES, Family, tiny_config
from fibecfed.models.transformer_task import TransformerTask

KEY = Key(2).fold("model")


# The adapter


def classifier(family: Family) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_config(tiny_config(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_stands_beside_query_and_value_unless_other_maps_are_named(family: Family) -> None:
    expected = {"bert": {"query", "value"}, "roberta": {"query", "value"}, "gpt2": {"c_attn"}, "llama": {"q_proj", "v_proj"}}[family]

    def adapted(model: PeftModel) -> set[str]:
        return {path.rsplit(".", 1)[-1] for path, module in model.named_modules() if hasattr(module, "lora_A")}

    assert adapted(add_lora(classifier(family), ModelOptions(rank=2), dropout=0.0, key=KEY)) == expected
    other = {"gpt2": "c_fc", "llama": "up_proj"}.get(family, "dense")
    chosen = ModelOptions(rank=2, target_modules=(other,))
    assert other in adapted(add_lora(classifier(family), chosen, dropout=0.0, key=KEY))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("phi", {"q_proj", "v_proj"}),
        ("deberta-v2", {"query_proj", "value_proj"}),
        ("distilbert", {"q_lin", "v_lin"}),
        ("gpt_neox", {"query_key_value"}),
    ],
)
def test_families_whose_usual_maps_are_others_are_adapted_at_query_and_value_too(kind: str, expected: set[str]) -> None:
    """PEFT's default for Phi has the feed-forward maps beside them."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 64}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes, pad_token_id=0))
    adapted = add_lora(model, ModelOptions(rank=2), dropout=0.0, key=KEY)
    assert {path.rsplit(".", 1)[-1] for path, module in adapted.named_modules() if hasattr(module, "lora_A")} == expected


def test_rank_scale_and_dropout_are_those_asked_for() -> None:
    model = add_lora(classifier("bert"), ModelOptions(rank=3, alpha=12.0), dropout=0.25, key=KEY)
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    assert layer.lora_A["default"].weight.shape == (3, 16)
    assert layer.scaling["default"] == 4.0
    assert layer.lora_dropout["default"].p == 0.25


def test_a_family_without_a_default_is_refused_with_its_maps() -> None:
    model = classifier("bert")
    model.config.model_type = "unheard-of"
    for module in model.modules():
        if hasattr(module, "query"):
            module.ask = module.query
            del module.query
    with pytest.raises(UserError, match=r"no default is known for a unheard-of model; choose among ask, dense, key, value"):
        add_lora(model, ModelOptions(), dropout=0.0, key=KEY)


@pytest.mark.parametrize(("family", "full", "last"), [("bert", 2, 2), ("roberta", 4, 2), ("gpt2", 1, 1), ("llama", 1, 1)])
def test_the_whole_head_is_trained_or_its_last_map(family: Family, full: int, last: int) -> None:
    for head, number in (("full", full), ("last", last)):
        chosen = ModelOptions.model_validate({"rank": 2, "head": head})
        task = TransformerTask(add_lora(classifier(family), chosen, dropout=0.0, key=KEY))
        assert sum(task.layer_of(name) is None for name in task.names) == number
        frozen = {name for name, p in task.model.named_parameters() if p.requires_grad} ^ set(task.names)
        assert not frozen


def test_dropout_is_set_wherever_a_configuration_has_it() -> None:
    for family in FAMILIES:
        config = tiny_config(family)
        set_dropout(config, 0.25)
        rates = {p for module in AutoModel.from_config(config).modules() if isinstance(p := getattr(module, "p", None), float)}
        assert rates == {0.25} or family == "llama"
        assert not hasattr(config, "dropout")  # nothing is added that was not there
    llama = tiny_config("llama")
    set_dropout(llama, 0.25)
    assert llama.attention_dropout == 0.25


# Device and precision


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", ""])
def test_a_device_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"training\.device: "):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    if (torch.cuda.is_available() and name.startswith("cuda")) or (torch.backends.mps.is_available() and name == "mps"):
        pytest.skip("it is there")
    with pytest.raises(UserError, match=f"training\\.device: '{name}' cannot be used here .*; try auto or cpu"):
        choose_device(name)


def test_auto_takes_the_first_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert choose_device("auto") == torch.device(expected)


def test_auto_computes_in_bf16_where_the_processor_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there and not including_emulation)
        for device in ("cpu", "cuda"):
            assert choose_precision("auto", torch.device(device)) == ("bf16" if there else "float32")
            assert choose_precision("bf16", torch.device(device)) == "bf16"
            assert choose_precision("float32", torch.device(device)) == "float32"
    assert choose_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_task_in_bf16_keeps_what_it_trains_in_float32(family: Family, tmp_path: Path) -> None:
    chosen = ModelOptions(name=str(save_backbone(tmp_path / "model", family)), rank=2)
    task, exact = (
        build_task(find(chosen), chosen, TrainingOptions(device="cpu", precision=name), objective=ClassHead(3), pad_token_id=0, key=KEY)
        for name in ("bf16", "float32")
    )
    stored = {name: p.dtype for name, p in task.model.named_parameters()}
    assert {stored[name] for name in task.names} == {torch.float32}
    halved = {name for name, dtype in stored.items() if dtype == torch.bfloat16}
    assert all(name in halved for name in task.adapted_weights()) or family == "gpt2"
    assert not any("norm" in name.lower() or "embed" in name or "wte" in name for name in halved)
    assert bits(task.init_params(KEY)) == bits(exact.init_params(KEY))
    batch, params = padded(sentences([5, 3]), 0), noisy(exact)
    found = task.losses(params, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.losses(params, batch), rtol=0.1, atol=0.1)
