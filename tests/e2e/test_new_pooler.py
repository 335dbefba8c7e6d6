"""Runs on a BERT whose file has no pooler, as masked language models are saved: the pooler is trained with the head, and saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import run_config, save_backbone, write_reviews

from fibecfed.build import prepare
from fibecfed.session import start


@pytest.mark.parametrize("method", ["fibecfed", "lora"])
def test_a_run_trains_a_pooler_that_the_file_lacks_and_saves_it(method: str, tmp_path: Path) -> None:
    save_backbone(tmp_path / "backbone")
    write_reviews(tmp_path / "reviews.csv", 60)
    weights = tmp_path / "backbone" / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "pooler" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    config = run_config(tmp_path, method={"kind": method}, federation={"rounds": 2})
    start(config, tmp_path / "run")
    prepared = prepare(config)
    before = prepared.task.init_params(prepared.inputs.key.fold("run", "init"))
    poolers = {name: value for name, value in before.items() if "pooler" in name}
    saved = load_file(tmp_path / "run" / "global" / "adapter_model.safetensors")
    trained = {name: value for name, value in saved.items() if "pooler" in name}
    assert len(trained) == len(poolers) == 2
    assert all(torch.isfinite(value).all() and value.any() for value in trained.values())
    assert not any(torch.equal(a, b) for a in trained.values() for b in poolers.values())
