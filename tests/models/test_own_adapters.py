"""Adapters that are not PEFT's, in a folder and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapted import SMALL
from safetensors.torch import load_file, save_file
from texts import PAD, bits, noisy, padded, sentences
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import fibecfed
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.models.export import save_adapter
from fibecfed.models.own_adapters import add_adapter
from fibecfed.models.tiny import FAMILIES, Family, tiny_config, tiny_task
from fibecfed.models.transformer_task import TransformerTask


def plain(family: Family, seed: int, **sizes: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(tiny_config(family, **sizes))


def saved(task: TransformerTask, folder: Path) -> Path:
    save_adapter(task, noisy(task), folder, base="org/published", revision="v1", labels=("a", "b"), card="# Card\n")
    return folder


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_beside_a_new_copy_of_the_backbone_gives_the_same_bits(family: Family, kind: str, tmp_path: Path) -> None:
    task = tiny_task(family, adapter=SMALL[kind])
    before = bits(task.model)
    folder = saved(task, tmp_path)
    assert bits(task.model) == before
    fresh = plain(family, seed=0)
    for name, value in fresh.named_parameters():
        if name.startswith(("classifier.", "score.")):
            torch.nn.init.normal_(value)  # as transformers draws the head anew
    loaded, batch = fibecfed.load_adapter(fresh, folder), padded(sentences([4, 2]), PAD[family])
    assert torch.equal(loaded.logits(loaded.params(), batch), task.logits(noisy(task), batch))


def test_a_head_of_which_the_last_map_alone_was_trained_is_saved_whole(tmp_path: Path) -> None:
    model = plain("roberta", seed=0)
    add_adapter(model, SMALL["prompt"], head="last", key=Key(0))
    task = TransformerTask(model)
    assert {name for name in task.names if "classifier" in name} == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    fresh = plain("roberta", seed=0)
    torch.nn.init.normal_(fresh.classifier.dense.weight)
    loaded, batch = fibecfed.load_adapter(fresh, saved(task, tmp_path)), padded(sentences([4, 2]), 1)
    assert torch.equal(loaded.logits(loaded.params(), batch), task.logits(noisy(task), batch))


def test_modules_that_the_models_file_lacks_are_trained_and_saved_with_the_head(tmp_path: Path) -> None:
    model = plain("bert", seed=0)
    add_adapter(model, SMALL["prefix"], drawn=["bert.pooler.dense", "classifier"], key=Key(0))
    task = TransformerTask(model)
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= set(task.names)
    assert "bert.pooler.dense.bias" in load_file(saved(task, tmp_path) / "adapter.safetensors")


def test_the_folder_says_what_it_holds_and_nothing_is_pickled(tmp_path: Path) -> None:
    folder = saved(tiny_task("bert", adapter=SMALL["late prompt"]), tmp_path)
    table = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    assert table == {
        "format": 1, "kind": "late prompt", "options": {"num_tokens": 3, "size": 4}, "base": "org/published", "revision": "v1",
    }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {"adapter.json", "adapter.safetensors", "labels.json", "README.md"}


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tiny_task("bert", adapter=SMALL["prefix"]), tmp_path / "adapter")
    with pytest.raises(UserError, match=r"got no adapter that fibecfed saved .*expected adapter.json and adapter.safetensors"):
        fibecfed.load_adapter(plain("bert", seed=0), tmp_path)
    with pytest.raises(UserError, match=r"do not fit this BertForSequenceClassification: .*adapter.layers.0.key"):
        fibecfed.load_adapter(plain("bert", seed=0, hidden=32), folder)
    with pytest.raises(UserError, match=r"tensors that do not fit .*classifier"):
        fibecfed.load_adapter(plain("bert", seed=0, num_classes=5), folder)
    used = plain("bert", seed=0)
    fibecfed.load_adapter(used, folder)
    with pytest.raises(UserError, match="that has an adapter, expected one as transformers loads it"):
        fibecfed.load_adapter(used, folder)
    tensors = load_file(folder / "adapter.safetensors")
    save_file({name: value for name, value in tensors.items() if name != "adapter.layers.1.key"}, folder / "adapter.safetensors")
    with pytest.raises(UserError, match=r"do not fit .*adapter.layers.1.key"):
        fibecfed.load_adapter(plain("bert", seed=0), folder)
