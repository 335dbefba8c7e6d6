"""Runs on a quantised base model and on one loaded in bfloat16: they learn, and go on to the same bits after a stop."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import chat_config, save_chats_and_reviews
from rich.console import Console
from saved import adapter_files, interrupted_at, run_config
from torch import nn

from fibecfed import check, session
from fibecfed.build import prepare
from fibecfed.config import load
from fibecfed.core.errors import UserError

FIBECFED = {"kind": "fibecfed", "score_after": 1, "layers": {"importance_clients": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chats_and_reviews(tmp_path_factory.mktemp("quantised"))


def needing(model: dict[str, Any]) -> dict[str, Any]:
    if "quantization" in model:
        pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    return model


KINDS = [{"quantization": "nf4"}, {"quantization": "int8"}, {"dtype": "bfloat16"}]


@pytest.mark.parametrize("model", KINDS, ids=str)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(model: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    config = chat_config(folder, method=FIBECFED, model=needing(model), training={"precision": "auto"}, evaluation={"every": 1})
    summary = session.start(config, tmp_path / "a")
    assert summary["scores"]["pooled_personalised"] < 0.9 * summary["scores"]["untrained"]["pooled_personalised"]
    with pytest.raises(KeyboardInterrupt):
        session.start(config, tmp_path / "b", interrupted_at(8))
    session.resume(tmp_path / "b")
    assert adapter_files(tmp_path / "b") == adapter_files(tmp_path / "a")
    card = (tmp_path / "a" / "global" / "README.md").read_text()
    assert ("quantised (" in card) == ("quantization" in model)


@pytest.mark.parametrize("model", [*KINDS, {"dtype": "bfloat16", "quantization": "nf4"}], ids=str)
def test_a_classifier_learns_on_it(model: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    config = run_config(folder, model=needing(model), training={"precision": "auto"}, method={"kind": "lora"}, federation={"rounds": 6})
    summary = session.start(config, tmp_path / "run", adapters=False)
    assert summary["scores"]["global"] > 0.9


def test_in_bfloat16_what_is_trained_norms_and_the_output_layer_are_in_float32(folder: Path) -> None:
    for make in (chat_config, run_config):
        task = prepare(make(folder, model={"dtype": "bfloat16"}, training={"precision": "auto"}, method={"kind": "lora"})).task
        assert task.precision == "bf16"
        kinds: Any = {path: module for path, module in task.model.named_modules() if isinstance(module, nn.Linear)}
        frozen = {path: module for path, module in kinds.items() if not module.weight.requires_grad}
        inside = {path for path in frozen if ".layers." in path or ".layer." in path}
        assert inside and all(frozen[path].weight.dtype == torch.bfloat16 for path in inside)
        heads = [module for path, module in kinds.items() if path.endswith(("lm_head", "classifier.modules_to_save.default"))]
        assert heads and all(module.weight.dtype == torch.float32 for module in heads)
        others = [p for m in task.model.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)]
        assert others and all(p.dtype == torch.float32 for p in others)
        assert all(value.dtype == torch.float32 for value in task.params().values())


def test_bfloat16_weights_compute_in_nothing_else(folder: Path) -> None:
    with pytest.raises(UserError, match=r'model.dtype: got "bfloat16" with `training.precision` = "float32"'):
        chat_config(folder, model={"dtype": "bfloat16"})


def test_check_prices_the_configuration_of_a_model_of_8_billion_parameters_on_a_small_one_in_its_place(folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    file = Path(__file__).parents[2] / "configs" / "llama-8b.toml"
    small = (f"model.name={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}", "federation.clients_per_round=2")
    console = Console(file=io.StringIO(), width=200)
    check.report(load(file, (*small, "training.device=cpu")).config, console)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "(nf4), 2 layers; cpu, bf16; trained: LoRA of rank 16 on all-linear" in said
    assert all(text in said for text in ("optimiser steps", "memory", "up, each", "a step"))


def test_check_says_what_the_frozen_part_takes(folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    console = Console(file=io.StringIO(), width=200)
    check.report(chat_config(folder, model={"quantization": "nf4"}), console)
    assert "Model: model, 13,584 frozen parameters in 51.8 kB (nf4), 2 layers" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
