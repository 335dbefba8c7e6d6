"""The model card: a header that hubs can read, code that uses the adapter, and what it says. That the code runs: e2e/test_cards.py."""

from __future__ import annotations

import ast
import re
import tomllib
from typing import Any

import pytest
import yaml

from fibecfed.data.prompt import Prompt
from fibecfed.model_card import SavedAdapter, model_card
from fibecfed.snippet import Base, Reading

SAVED = {
    "rounds": 7, "pooled_personalised": 0.8251, "global": 0.8, "worst_decile": 0.7, "majority": 0.61, "own_majority": 0.66,
    "validation": 0.8, "validation_examples": 100,
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "method": "fibecfed", "rounds": 12, "steps": 3450, "bytes_up": 6789, "bytes_down": 9876, "clients_that_took_part": 20, "saved": SAVED,
    "scores": {**SAVED, "rounds": 12, "best_by_validation": None, "untrained": {"global": 0.512}},
}  # fmt: skip


OF_CLIENT, HUB, ONE_TEXT = SavedAdapter("07"), Base("owner/model", "owner/model"), Reading()


def card(who: SavedAdapter = OF_CLIENT, base: Base = HUB, reading: Reading = ONE_TEXT, **more: Any) -> str:
    fields: dict[str, Any] = {
        "files": {"model.safetensors": "ab12"}, "labels": ("bad", "good"), "max_length": 160, "summary": SUMMARY,
        "settings": 'seed = 3\nmodel.name = "minilm"\n', "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    }  # fmt: skip
    return model_card(who, base, reading, **{**fields, **more})


def block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)\n```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("base", ["owner/model", "a: b # c", 'with "quotes"'])
def test_its_header_names_the_base_model_for_hubs_and_claims_nothing_that_is_not_known(base: str):
    text = card(base=Base(base, base))
    header = yaml.safe_load(text.split("---\n")[1])
    assert header == {
        "base_model": base,
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["text-classification", "federated-learning", "lora", "fibecfed"],
        "metrics": ["accuracy"],
    }
    assert base in [node.value for node in ast.walk(ast.parse(block(text, "python"))) if isinstance(node, ast.Constant)]
    for metric, named in (("macro_f1", ["f1"]), ("matthews", ["matthews_correlation"]), ("loss", [])):
        assert yaml.safe_load(card(summary={**SUMMARY, "metric": metric}).split("---\n")[1])["metrics"] == named
    by_loss = card(summary={**SUMMARY, "metric": "loss", "saved": {**SAVED, "majority": None, "own_majority": None}})
    assert "| loss |" in by_loss and "0.825 nat" in by_loss and "no better" not in by_loss


def test_it_says_whose_it_is_how_it_was_made_and_how_it_did():
    text = card()
    assert "# Adapter of client 07\n" in text
    for fact in (
        "| all clients, each with its own model | 82.5 % | 66.0 % |",
        "| the global model | 80.0 % | 61.0 % |",
        "| before training | 51.2 % | 61.0 % |",
        "12 rounds with 20 clients; the models of round 7 are saved. 3,450 optimiser steps, 6,789 bytes up",
        "0 = bad, 1 = good",
        "torch 2.13.0",
        "`fibecfed`",
        "at most 160 tokens",
    ):
        assert fact in text, fact
    assert tomllib.loads(block(text, "toml")) == {"seed": 3, "model": {"name": "minilm"}}


def test_a_clients_card_quotes_its_own_score_and_nobody_elses():
    own = {"test_examples": 37, "score": 0.459, "majority": 0.66}
    others = {"secret-name": {"test_examples": 9, "score": 0.1, "majority": 0.9}}
    text = card(summary={**SUMMARY, "client": own, "clients": others})
    assert "| this adapter, on this client's 37 test examples | 45.9 % | 66.0 % |" in text and "secret-name" not in text
    assert "no better than always predicting the most frequent class" in text
    fine = card(summary={**SUMMARY, "client": {**own, "score": 0.7}})
    assert "70.0 %" in fine and "no better" not in fine
    whole = card(SavedAdapter(None), summary={**SUMMARY, "clients": others})
    assert "this adapter, on all test examples" in whole and "secret-name" not in whole and "# Adapter of the global model" in whole


def test_a_score_below_the_most_frequent_class_is_said_plainly():
    text = card(summary={**SUMMARY, "saved": {**SAVED, "global": 0.6}})
    assert "The global score (60.0 %) is worse than what always predicting the most frequent class gives (61.0 %)." in text
    assert "below" not in card()


def test_it_names_the_weights_by_their_checksum_or_says_that_they_come_by_an_id():
    assert "`model.safetensors` sha256 `ab12`" in card()
    assert "loaded by its id, revision `1f2e`" in card(base=Base("owner/model", "owner/model", revision="1f2e"), files={})


@pytest.mark.parametrize(
    ("base", "call"),
    [
        (Base("owner/model", "owner/model", revision="1f2e"), '"owner/model",\n    revision="1f2e",'),
        (Base("sentence-transformers/x", "minilm", packaged=True), 'fibecfed.model_folder("minilm"),'),
        (Base("o/m", "smollm2", packaged=True, gguf_file="m.Q4.gguf"), 'fibecfed.model_folder("smollm2"),\n    gguf_file="m.Q4.gguf",'),
        (Base("mine", "mine", local=True), '"mine",  # the folder that the adapter was trained on; its checksums are below'),
        (
            Base("m.Q4", "models", local=True, gguf_file="m.Q4.gguf"),
            '"models",  # the folder of the file; its checksums are below',
        ),
    ],
    ids=["hub", "packaged", "packaged GGUF", "folder", "GGUF"],
)
def test_its_code_loads_the_very_base_that_was_trained_on(base: Base, call: str):
    text = card(base=base)
    assert call in block(text, "python")
    assert ("expanded to float32" in text) == (base.gguf_file is not None)


def test_a_name_with_a_line_break_stays_one_heading():
    assert "# Adapter of client a b\n" in card(SavedAdapter("a\nb"))


@pytest.mark.parametrize(("mask_id", "kind"), [(4, "AutoModelForMaskedLM"), (None, "AutoModelForCausalLM")])
def test_with_label_words_it_says_how_to_ask_the_model(mask_id: int | None, kind: str):
    prompt = Prompt("{x} . It was <mask>", ("terrible", "great"), ("Ġterrible", "Ġgreat"), (7, 8), mask_id)
    text = card(reading=Reading(prompt=prompt))
    code = block(text, "python")
    assert f"from transformers import {kind}, AutoTokenizer\n" in code and f"base = {kind}.from_pretrained(" in code
    assert "num_labels" not in code and "classification head" not in text and "without a head of its own" in text
    where = "after the last token" if mask_id is None else "in the place of the tokenizer's mask token"
    for fact in ("`{x} . It was <mask>`", "`terrible`, `great`", "`Ġterrible`, `Ġgreat`", where):
        assert fact in text, fact
