"""Adapters on disk in PEFT's own format; that they compute the same is shown in references/test_own_call.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from texts import bits, noisy
from transformers import AutoModelForSequenceClassification

from fibecfed.core.task import DELTA
from fibecfed.models.export import DELTA_FILE, add_delta, save_adapter
from fibecfed.models.tiny import FAMILIES, Family, tiny_config, tiny_model, tiny_task
from fibecfed.models.transformer_task import TransformerTask

LABELS = ("böse", "gut")


def saved(task: TransformerTask, folder: Path, params: dict[str, torch.Tensor] | None = None, revision: str | None = None) -> Path:
    save_adapter(task, params or noisy(task), folder, base="org/published", revision=revision, labels=LABELS, card="# How it was made\n")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_holds_the_given_tensors_under_pefts_saved_names(family: Family, tmp_path: Path) -> None:
    task = tiny_task(family)
    before, params = bits(task.model), noisy(task)
    written = load_file(saved(task, tmp_path, params) / "adapter_model.safetensors")
    expected = {name.replace(".modules_to_save.default", "").replace(".default", ""): value for name, value in params.items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    assert bits(task.model) == before


def test_the_folder_names_the_published_base_the_labels_and_how_it_was_made(tmp_path: Path) -> None:
    folder = saved(tiny_task("bert"), tmp_path / "new" / "folder", revision="v1.0")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"], config["inference_mode"]) == ("org/published", "v1.0", True)
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == ("LORA", "SEQ_CLS", 2, 4)
    assert json.loads((folder / "labels.json").read_text(encoding="utf-8")) == list(LABELS)
    assert (folder / "README.md").read_text(encoding="utf-8") == "# How it was made\n"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "labels.json", "README.md"}


def test_equal_parameters_give_equal_bytes_whatever_was_saved_before(tmp_path: Path) -> None:
    task, params = tiny_task("bert"), noisy(tiny_task("bert"))
    first = {path.name: path.read_bytes() for path in saved(task, tmp_path / "a", params, revision="v1").iterdir()}
    saved(task, tmp_path / "b", noisy(task, seed=1))
    again = {path.name: path.read_bytes() for path in saved(tiny_task("bert"), tmp_path / "b", params, revision="v1").iterdir()}
    assert again == first


def test_only_an_adapter_of_peft_can_be_saved(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny_config("bert"))
    with pytest.raises(TypeError, match="got BertForSequenceClassification, expected a PeftModel"):
        saved(TransformerTask(model), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_trained_in_bf16_is_saved_in_float32(tmp_path: Path) -> None:
    task = TransformerTask(tiny_model("llama"), precision="bf16")
    written = load_file(saved(task, tmp_path) / "adapter_model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_beside_the_weights_is_saved_apart_and_added_by_the_loader(family: Family, tmp_path: Path) -> None:
    task = tiny_task(family)
    generator = torch.Generator().manual_seed(0)
    sizes = {found.weight: (len(task.params()[found.b]), task.params()[found.a].shape[1]) for found in task.low_rank()}
    deltas = {name + DELTA: torch.randn(size, generator=generator) for name, size in sizes.items()}
    params = noisy(task)
    folder = saved(task, tmp_path, {**params, **deltas})
    assert load_file(folder / DELTA_FILE).keys() == sizes.keys()
    assert not any(name.endswith(DELTA) for name in load_file(folder / "adapter_model.safetensors"))
    model = tiny_model(family)
    model.load_adapter(str(folder), "default")
    assert add_delta(model, folder) == len(sizes)
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64), "labels": torch.zeros(1)}
    loaded = TransformerTask(model)
    torch.testing.assert_close(loaded.logits(loaded.params(), batch), task.logits({**params, **deltas}, batch))
    assert not torch.allclose(task.logits(params, batch), task.logits({**params, **deltas}, batch))
    with pytest.raises(KeyError, match="load the adapter"):
        add_delta(torch.nn.Linear(1, 1), folder)


def test_a_folder_without_differences_changes_no_weight(tmp_path: Path) -> None:
    task = tiny_task("bert")
    before = bits(task.model)
    assert add_delta(task.model, saved(task, tmp_path)) == 0
    assert bits(task.model) == before
