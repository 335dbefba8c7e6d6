"""Runs without a head: a masked and a causal language model from the command line to adapters that plain PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from saved import run_config, save_language_model, write_reviews
from sums import matrix
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from fibecfed.build import prepare, read_inputs
from fibecfed.cli import app
from fibecfed.config import load, to_toml
from fibecfed.core.errors import UserError
from fibecfed.core.records import EvalRecord, RoundRecord, read


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "causal"])
def test_a_run_trains_lora_alone_and_plain_peft_predicts_what_was_reported(masked: bool, tmp_path: Path) -> None:
    save_language_model(tmp_path / "backbone", masked=masked)
    write_reviews(tmp_path / "reviews.csv")
    words = {"template": "{x} . it was <mask> .", "label_words": ["dull", "great"]}
    config = run_config(tmp_path, model={"head": "label-words"}, data=words, method={"kind": "fibecfed", "score_after": 0})
    (tmp_path / "run.toml").write_text(to_toml(config), encoding="utf-8")
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", str(tmp_path / "run.toml"), "--out", str(out)])
    assert done.exit_code == 0, done.output

    records = read(out / "records.jsonl")[1]
    rounds = [record for record in records if isinstance(record, RoundRecord) and record.phase == "tune"]
    losses = [sum(record.loss.values()) / len(record.loss) for record in rounds]
    assert losses[-1] < losses[0]
    assert "difficulty" in next(iter(rounds[0].notes.values()))

    inputs = read_inputs(load(out / "config.toml").config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "backbone")
    about = json.loads((out / "global" / "labels.json").read_text(encoding="utf-8"))
    template = words["template"] if masked else "{x} . it was <mask>"
    expected = {"labels": ["bad", "good"], "template": template, "label_words": ["dull", "great"], "tokens": ["dull", "great"]}
    assert expected.items() <= about.items() and about["max_length"] == 64
    ids = tokenizer.convert_tokens_to_ids(about["tokens"])
    kind = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    *_, last = [record for record in records if isinstance(record, EvalRecord)]

    def counted(adapter: Path, client: str | None) -> list[list[int]]:
        model = PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "backbone"), str(adapter)).eval()
        examples = inputs.data.test if client is None else inputs.data.client(client).test
        counts = torch.zeros(2, 2, dtype=torch.int64)
        for row in range(len(examples)):
            tokens = examples.batch([row])["input_ids"][0, : int(examples.lengths[row])]
            place = tokens.tolist().index(tokenizer.mask_token_id) if masked else len(tokens) - 1
            with torch.no_grad():
                scores = model(input_ids=tokens[None]).logits[0, place, ids]
            counts[int(examples.labels[row]), int(scores.argmax())] += 1
        return counts.tolist()

    assert counted(out / "global", None) == matrix(last.server)
    for client in inputs.data.clients:
        own = out / "clients" / client
        assert counted(own if own.exists() else out / "global", client) == matrix(last.clients[client])


def test_a_model_without_a_head_for_words_is_refused_before_anything_is_written(inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, model={"head": "label-words"}, data={"template": "{x} <mask>", "label_words": ["dull", "great"]})
    (tmp_path / "run.toml").write_text(to_toml(config), encoding="utf-8")
    done = CliRunner().invoke(app, ["run", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")])
    assert done.exit_code != 0 and "needs a tokenizer with a mask token" in " ".join(done.output.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (
            {"kind": "slw", "start": 6},
            "method.start: got texts of 6 tokens in the first rounds, of which the template takes 6; expected more",
        ),
        ({"kind": "shortformer", "cut": 0.1}, "method.cut: got texts of 6 tokens in the first rounds, of which the template takes 6"),
        ({"kind": "slw", "start": 7}, None),
        ({"kind": "shortformer", "cut": 0.25}, None),
    ],
    ids=["slw", "shortformer", "slw with room", "shortformer with room"],
)
def test_a_method_that_cuts_texts_leaves_room_beside_the_template(method: dict[str, Any], sentence: str | None, tmp_path: Path) -> None:
    save_language_model(tmp_path / "backbone", masked=True)
    write_reviews(tmp_path / "reviews.csv", 40)
    words = {"template": "{x} . it was <mask>", "label_words": ["dull", "great"], "max_length": 64}
    config = run_config(tmp_path, model={"head": "label-words"}, data=words, method=method)
    if sentence is None:
        assert prepare(config).method is not None
    else:
        with pytest.raises(UserError) as error:
            prepare(config)
        assert sentence in str(error.value)
