"""The model card: a header that hubs can read, and code that loads the adapter."""

from __future__ import annotations

import ast
import re
import tomllib
from typing import Any

import pytest
import yaml

from fibecfed.data.prompt import Prompt
from fibecfed.report.card import model_card

SUMMARY = {
    "method": "fibecfed", "rounds": 12, "steps": 345, "bytes_up": 6789, "bytes_down": 9876,
    "scores": {"pooled_personalised": 0.8251, "global": 0.8, "untrained": {"global": 0.512}},
}  # fmt: skip


def card(**more: Any) -> str:
    fields: dict[str, Any] = {
        "who": "client 07", "base": "owner/model", "files": {"model.safetensors": "ab12"}, "labels": ("bad", "good"), "summary": SUMMARY,
        "config_toml": 'seed = 3\n\n[model]\nname = "minilm"\n', "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    }  # fmt: skip
    return model_card(**{**fields, **more})


def block(text: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)\n```", text, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("base", ["owner/model", "a: b # c", 'with "quotes"'])
def test_its_header_names_the_base_model_for_hubs(base: str):
    text = card(base=base)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["base_model"] == base and header["library_name"] == "peft" and header["pipeline_tag"] == "text-classification"
    tree = ast.parse(block(text, "python"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert base in strings and 2 in strings


def test_it_says_whose_it_is_how_it_was_made_and_how_it_did():
    text = card()
    assert "# Adapter of client 07\n" in text
    for fact in (
        "82.5 %",
        "80.0 %",
        "51.2 %",
        "12 rounds",
        "345 optimiser steps",
        "6789 bytes up",
        "0 = bad, 1 = good",
        "torch 2.13.0",
        "`fibecfed`",
    ):
        assert fact in text, fact
    assert tomllib.loads(block(text, "toml")) == {"seed": 3, "model": {"name": "minilm"}}


def test_it_names_the_weights_by_their_checksum_or_says_that_they_come_by_an_id():
    assert "`model.safetensors` sha256 `ab12`" in card()
    assert "loaded by its id" in card(files={})


def test_a_name_with_a_line_break_stays_one_heading():
    assert "# Adapter of client a b\n" in card(who="client a\nb")


@pytest.mark.parametrize(("mask_id", "kind"), [(4, "AutoModelForMaskedLM"), (None, "AutoModelForCausalLM")])
def test_with_label_words_it_says_how_to_ask_the_model(mask_id: int | None, kind: str):
    text = card(prompt=Prompt("{x} . It was <mask>", ("terrible", "great"), ("Ġterrible", "Ġgreat"), (7, 8), mask_id))
    code = block(text, "python")
    assert f"from transformers import {kind}\n" in code and f'base = {kind}.from_pretrained("owner/model")' in code
    assert "num_labels" not in code and "classification head" not in text and "without a head of its own" in text
    where = "after the last token" if mask_id is None else "in the place of the tokenizer's mask token"
    for fact in ("`{x} . It was <mask>`", "`terrible`, `great`", "`Ġterrible`, `Ġgreat`", where):
        assert fact in text, fact
