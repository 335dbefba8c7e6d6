"""Where LoRA stands, of which rank and how it is scaled: runs of every method on it, and their adapters under plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import chat_config, save_chats_and_reviews
from peft import PeftModel
from ran import counted_by_plain_peft
from saved import run_config
from transformers import AutoModelForCausalLM

from fibecfed import session
from fibecfed.build import prepare
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.methods.catalogue import METHODS

OPTIONS: dict[str, Any] = {
    "target_modules": "all-linear",
    "rslora": True,
    "layers_to_transform": [1],
    "rank_pattern": {"o_proj": 3, ".*_proj": 1},  # o_proj matches both
    "alpha_pattern": {"layers.1.mlp.down_proj": 5.0},
}
ON_LORA = [kind for kind, options in METHODS.items() if getattr(options(), "adapter", None) is None and not options().needs_classes]
REFUSED: dict[str, tuple[str, ...]] = {
    "fedex-lora": ("rank_pattern", "alpha_pattern"),
    "slora": ("rank_pattern", "alpha_pattern"),
    "hetlora": ("rank_pattern",),
    "fedalt": ("layers_to_transform",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chats_and_reviews(tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("kind", ON_LORA)
def test_every_method_trains_with_them_or_names_what_it_cannot_have(kind: str, folder: Path, tmp_path: Path) -> None:
    for key in REFUSED.get(kind, ()):
        with pytest.raises(UserError, match=f'model.{key}: got .* with `method.kind` = "{kind}"'):
            chat_config(folder, method={"kind": kind}, model={key: OPTIONS[key]})
    options = {key: value for key, value in OPTIONS.items() if key not in REFUSED.get(kind, ())}
    config = chat_config(folder, method={"kind": kind}, model=options, federation={"rounds": 2})
    summary = session.start(config, tmp_path / "run", adapters=False)
    assert summary["scores"]["pooled_personalised"] < summary["scores"]["untrained"]["pooled_personalised"]


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ({"kind": "lora", "aggregation": "exact"}, "alpha_pattern"),
        ({"depth": 1}, "layers_to_transform"),
        ({"layers": {"rule": "layer_gap"}}, "layers_to_transform"),
    ],
)
def test_options_of_methods_that_do_not_go_with_them_are_named(method: dict[str, Any], key: str, folder: Path) -> None:
    with pytest.raises(UserError, match=f"model.{key}: got .* with `method"):
        chat_config(folder, method=method, model={key: OPTIONS[key]})


def test_the_adapter_of_answers_says_all_of_it_and_gives_the_same_scores_under_plain_peft(folder: Path, tmp_path: Path) -> None:
    config = chat_config(folder, method={"kind": "lora"}, model=OPTIONS, training={"learning_rate": 0.5})
    session.start(config, tmp_path / "run")
    table = json.loads((tmp_path / "run" / "global" / "adapter_config.json").read_text())
    assert table["target_modules"] == sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    assert (table["use_rslora"], table["layers_to_transform"]) == (True, [1])
    assert list(table["rank_pattern"].items()) == [("o_proj", 3), (".*_proj", 1)]
    assert table["alpha_pattern"] == {"layers.1.mlp.down_proj": 5.0}
    base: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    plain: Any = PeftModel.from_pretrained(base, tmp_path / "run" / "global").eval()
    ranks = {path.split(".")[-1]: module.r["default"] for path, module in plain.named_modules() if hasattr(module, "lora_A")}
    assert ranks == {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 3, "gate_proj": 1, "up_proj": 1, "down_proj": 1}
    prepared = prepare(config)
    ours = dict(prepared.task.init_params(Key(0)))
    ours |= {name: dict(plain.named_parameters())[name].detach() for name in ours}
    assert any(value.abs().max() > 0.01 for name, value in ours.items() if "lora_B" in name)
    batch = prepared.inputs.data.test.batch([0, 1, 2, 3])
    with torch.no_grad():
        logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
        labels = batch["labels"][:, 1:]
        wanted = -(logits.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels >= 0)).sum(1)
        torch.testing.assert_close(prepared.task.losses(ours, batch), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "fibecfed"])
def test_the_scores_of_a_classification_are_those_of_its_adapters_under_plain_peft(kind: str, folder: Path, tmp_path: Path) -> None:
    options = {
        **OPTIONS,
        "alpha": 1.0,
        "rank_pattern": {"query": 3, "attention.output.dense": 1},
        "alpha_pattern": {"layer.1.intermediate.dense": 0.5},
    }
    config = run_config(folder, method={"kind": kind}, model=options, federation={"rounds": 6})
    summary = session.start(config, tmp_path / "run")
    matrix, _ = counted_by_plain_peft(config, folder, tmp_path / "run")
    right = sum(matrix[label][label] for label in (0, 1))
    assert summary["scores"]["global"] == pytest.approx(right / sum(map(sum, matrix)))
    assert right > 0.6 * sum(map(sum, matrix))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"target_modules": "all-linea"}, 'model.target_modules: got "all-linea", expected .*did you mean "all-linear"'),
        ({"layers_to_transform": []}, r"model.layers_to_transform: got \[\], expected numbers of blocks from 0"),
        ({"layers_to_transform": [1, 1]}, r"model.layers_to_transform: got \[1, 1\]"),
        ({"rank_pattern": {"q_proj": 0}}, "model.rank_pattern: got 'q_proj = 0', expected a name or regular expression with an integer"),
        ({"rank_pattern": {"q_proj": 1.5}}, "model.rank_pattern: got 'q_proj = 1.5'"),
        ({"rank_pattern": ["q_proj"]}, "model.rank_pattern: got 'q_proj'"),
        ({"alpha_pattern": {"(": 2}}, r"model.alpha_pattern: got '\( = 2', expected a name or regular expression with a number above 0"),
        ({"alpha_pattern": ["q_proj=1", "q_proj = 2"]}, "model.alpha_pattern: .*expected each name once"),
    ],
)
def test_a_mistake_in_them_is_a_sentence(model: dict[str, Any], sentence: str, folder: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        chat_config(folder, model=model)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"layers_to_transform": [0, 2]}, "model.layers_to_transform: got 2, expected 0 to 1, the model's blocks"),
        ({"rank_pattern": {"k_proj": 4}}, "model.rank_pattern: got 'k_proj', .* none of the layers that LoRA adapts, .*q_proj, v_proj"),
        ({"alpha_pattern": {"q_proj": 4, "layers.0.self_attn.q_proj": 2}}, "model.alpha_pattern: got 'layers.0.self_attn.q_proj'"),
    ],
)
def test_what_the_model_does_not_have_is_a_sentence_before_training(model: dict[str, Any], sentence: str, folder: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        prepare(chat_config(folder, model=model))
