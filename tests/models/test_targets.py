"""Which maps LoRA adapts: the defaults by family, and names that are rejected."""

from __future__ import annotations

import pytest
from every_family import quiet, tiny
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.models.base_models import add_lora
from fibecfed.models.heads import UnsupportedModel
from fibecfed.models.options import ModelOptions
from fibecfed.models.tiny import tiny_config

BERT = "dense, key, query, value"


def classifier(family: str) -> PreTrainedModel:
    with quiet():
        return AutoModelForSequenceClassification.from_config(tiny(family))


def adapted(model: PreTrainedModel, *names: str) -> set[str]:
    found = add_lora(model, ModelOptions(rank=2, target_modules=names or None), dropout=0.0, key=Key(0))
    return {path.removeprefix("base_model.model.") for path, module in found.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["word_embeddings"], "word_embeddings"),
        (["LayerNorm"], "LayerNorm"),
        (["self"], "self"),
        (["dropout"], "dropout"),
        (["q_proj", "value"], "q_proj"),
        (["classifier"], "classifier"),  # the head is trained as it is
        (["bert.encoder.layer.0"], "bert.encoder.layer.0"),
        (["uery"], "uery"),
    ],
)
def test_what_is_no_linear_map_before_the_head_is_refused_with_those_that_are(names: list[str], refused: str) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny_config("bert"))
    with pytest.raises(UserError) as error:
        adapted(model, *names)
    assert str(error.value) == f"model.target_modules: got {refused}, expected names among {BERT}"


def test_a_map_can_be_named_by_its_whole_path_or_the_end_of_it() -> None:
    one = "bert.encoder.layer.1.attention.self.key"
    assert adapted(AutoModelForSequenceClassification.from_config(tiny_config("bert")), one) == {one}
    both = {f"bert.encoder.layer.{n}.intermediate.dense" for n in (0, 1)}
    assert adapted(AutoModelForSequenceClassification.from_config(tiny_config("bert")), "intermediate.dense") == both


@pytest.mark.parametrize(
    ("family", "maps"),
    [("falcon", {"query_key_value"}), ("deepseek_v3", {"q_b_proj", "kv_b_proj"}), ("openai-gpt", {"c_attn"}), ("ctrl", {"Wq", "Wv"})],
)
def test_query_and_value_go_by_other_names_in_some_families(family: str, maps: set[str]) -> None:
    assert {path.rsplit(".", 1)[-1] for path in adapted(classifier(family))} == maps


def test_a_model_without_a_linear_map_before_its_head_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="IBertForSequenceClassification is not supported: it has no linear maps before its head"):
        adapted(classifier("ibert"))
