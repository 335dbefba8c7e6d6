"""Tiny federations on a GPU: every kind of model and precision runs, learns, agrees with the CPU, and goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import chat_config
from every_family import config_of_run, quiet, save_tiny
from safetensors.torch import load_file
from saved import adapter_files, interrupted_at, write_reviews

from fibecfed import session
from fibecfed.config import from_table
from fibecfed.trained.model import load

pytestmark = pytest.mark.gpu

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "gpt2", "llama", "qwen3")
FIBECFED = {"kind": "fibecfed", "preset": "paper", "score_after": 1, "layers": {"importance_clients": 2}}


def clocks_apart(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name in ("adapters", "bytes", "steps", "examples")}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_there_as_on_the_cpu(family: str, device: torch.device, tmp_path: Path, facts: Any) -> None:
    with quiet():
        save_tiny(family, tmp_path / "backbone")
    write_reviews(tmp_path / "reviews.csv", 24)
    runs = {}
    for place in (torch.device("cpu"), device):
        table = config_of_run(tmp_path, "fibecfed").model_dump()
        table["training"] |= {"device": str(place), "precision": "float32", "optimizer": "sgd", "learning_rate": 0.1}
        out = tmp_path / f"on-{len(runs)}"
        session.start(from_table(table), out, adapters=False)
        runs[len(runs)] = facts(out)
    assert runs[0][0] == runs[1][0]
    torch.testing.assert_close(torch.tensor(runs[1][1]), torch.tensor(runs[0][1]), rtol=2e-3, atol=2e-3)


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "float32": ({}, "float32"),
    "bf16": ({}, "bf16"),
    "nf4": ({"quantization": "nf4"}, "auto"),
    "int8": ({"quantization": "int8"}, "auto"),
    "bfloat16 weights": ({"dtype": "bfloat16"}, "auto"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_learns_in_every_precision(kind: str, device: torch.device, tmp_path: Path, config_on: Any) -> None:
    model, precision = KINDS[kind]
    if "quantization" in model:
        pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    more = {"model": model, "training": {"precision": precision}, "method": {"kind": "lora"}, "federation": {"rounds": 6}}
    summary = session.start(config_on(device, **more), tmp_path / "run", adapters=False)
    assert summary["scores"]["global"] > 0.9


@pytest.mark.parametrize("kind", ["bf16", "nf4"])
def test_answers_are_learned(kind: str, device: torch.device, inputs: Path, tmp_path: Path) -> None:
    model, precision = KINDS[kind]
    if "quantization" in model:
        pytest.importorskip("bitsandbytes", reason="needs the extra qlora")
    training = {"device": str(device), "precision": precision}
    config = chat_config(inputs, method=FIBECFED, model=model, training=training, evaluation={"every": 1, "generate": 2})
    scores = session.start(config, tmp_path / "run")["scores"]
    assert scores["pooled_personalised"] < 0.9 * scores["untrained"]["pooled_personalised"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(
    precision: str, device: torch.device, tmp_path: Path, config_on: Any
) -> None:
    config = config_on(device, method=FIBECFED, training={"precision": precision, "dropout": 0.1}, evaluation={"every": 1})
    whole = session.start(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        session.start(config, tmp_path / "cut", interrupted_at(8))
    resumed, _ = session.resume(tmp_path / "cut")
    assert adapter_files(tmp_path / "cut") == adapter_files(tmp_path / "whole")
    assert clocks_apart(resumed) == clocks_apart(whole)


@pytest.mark.parametrize("kind", ["fibecfed", "lora"])
def test_a_cohort_in_one_pass_is_one_client_after_the_other_to_rounding(
    kind: str, device: torch.device, tmp_path: Path, config_on: Any
) -> None:
    for size in (1, 3):
        tables = {"method": {"kind": kind}, "federation": {"clients_per_round": 3}, "resources": {"cohort_batch": size}}
        sgd = {"optimizer": "sgd", "learning_rate": 0.5}  # AdamW divides small gradients by themselves
        session.start(config_on(device, training=sgd, **tables), tmp_path / str(size))
    mine, others = (adapter_files(tmp_path / str(size)) for size in (1, 3))
    assert mine.keys() == others.keys() and mine
    for name in mine:
        left, right = load_file(tmp_path / "1" / name), load_file(tmp_path / "3" / name)
        for tensor, value in left.items():
            torch.testing.assert_close(right[tensor], value, rtol=1e-3, atol=1e-4)


def test_kept_activations_change_no_bit(device: torch.device, tmp_path: Path, config_on: Any) -> None:
    for size in (0, 32):
        tables = {"method": {"kind": "lora", "depth": 1, "depth_rule": "last"}, "resources": {"activation_cache_mb": size}}
        session.start(config_on(device, **tables), tmp_path / str(size))
    assert adapter_files(tmp_path / "0") == adapter_files(tmp_path / "32")


def test_what_was_trained_there_predicts_the_same_on_the_cpu(device: torch.device, tmp_path: Path, config_on: Any) -> None:
    session.start(config_on(device, method={"kind": "lora"}), tmp_path / "run")
    texts = ["good film the plot", "the cast is bad bad", "a dull story", "warm witty scene"] * 5
    found = [load(tmp_path / "run", device=str(place)).probabilities(texts) for place in ("cpu", device)]
    torch.testing.assert_close(found[1].cpu(), found[0], rtol=1e-4, atol=1e-5)


def test_the_clock_and_the_records_name_what_computed(device: torch.device, tmp_path: Path, config_on: Any) -> None:
    session.start(config_on(device, method={"kind": "lora"}, federation={"rounds": 1}), tmp_path / "run")
    header, *records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert header["device"] == device.type
    assert {one["compute_clock"] for one in records if "compute_clock" in one} == {device.type}
