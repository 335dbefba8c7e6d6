"""Runs whose clients take their steps in joined passes: those of one client after the other, to rounding, and resumed to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved import adapter_files, interrupted_at, run_config, save_inputs

from fibecfed import session
from fibecfed.core.errors import UserError


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def made(inputs: Path, out: Path, size: int, kind: str = "fibecfed", listen: Any = lambda event: None) -> Path:
    sgd = {"optimizer": "sgd", "learning_rate": 0.5}  # AdamW divides small gradients by themselves, so that rounding grows to a step's size
    federation, joined = {"clients_per_round": 3}, {"cohort_batch": size}
    config = run_config(inputs, method={"kind": kind}, federation=federation, training=sgd, resources=joined)
    session.start(config, out, listen)
    return out


@pytest.mark.parametrize("kind", ["fibecfed", "lora", "lora-finetune"])
def test_a_run_in_joined_passes_is_the_run_to_rounding(kind: str, inputs: Path, tmp_path: Path) -> None:
    one, three = made(inputs, tmp_path / "one", 1, kind), made(inputs, tmp_path / "three", 3, kind)
    mine, others = adapter_files(one), adapter_files(three)
    assert mine.keys() == others.keys() and mine
    for name in mine:
        left, right = load_file(one / name), load_file(three / name)
        assert left.keys() == right.keys()
        for tensor, value in left.items():
            torch.testing.assert_close(right[tensor], value, rtol=1e-4, atol=1e-5)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, three)]
    for name in ("bytes", "steps", "examples"):
        assert summaries[0].get(name) == summaries[1].get(name)


def test_it_resumes_to_the_same_bits(inputs: Path, tmp_path: Path) -> None:
    whole = made(inputs, tmp_path / "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        made(inputs, tmp_path / "cut", 2, listen=interrupted_at(4))
    session.resume(tmp_path / "cut")
    assert adapter_files(tmp_path / "cut") == adapter_files(whole)


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"resources": {"cohort_batch": 2, "workers": 2}}, "resources.workers"),
        ({"resources": {"cohort_batch": 2}, "federation": {"schedule": "buffered"}}, "federation.schedule"),
        ({"resources": {"cohort_batch": 2}, "method": {"kind": "hetlora"}}, "differ in rank"),
        ({"resources": {"cohort_batch": 2}, "method": {"kind": "adapter"}}, "only linear maps"),
        ({"resources": {"cohort_batch": 0}}, "cohort_batch"),
    ],
)
def test_what_cannot_be_joined_is_rejected_before_training(tables: Any, named: str, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named) as rejected:
        session.start(run_config(inputs, **tables), tmp_path / "run")
    assert "cohort_batch" in str(rejected.value) and not (tmp_path / "run" / "records.jsonl").exists()
