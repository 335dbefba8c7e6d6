"""`fibecfed export` and `fibecfed.load_model`: the same probabilities without fibecfed, or a sentence."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from saved import run_config, save_language_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import fibecfed
from fibecfed import cli, session
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.model_card import merged_card
from fibecfed.trained import export as export_
from fibecfed.trained.model import load

TEXTS = ["great story is great is witty", "bad the scene bad stale", "film", "the cast " * 60, "dull warm plot"]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["export", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def rejected(*arguments: str | Path) -> str:
    code, _, said = call(*arguments)
    assert code == 2, said
    return said


def code_of(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)\n```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


# Run by an interpreter that cannot import fibecfed, in a folder with the merged model and the ONNX file
ELSEWHERE = """
import json, sys
sys.modules["fibecfed"] = None
import onnxruntime, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
texts, found = json.load(open("texts.json")), {}
tokenizer = AutoTokenizer.from_pretrained("merged")
model = AutoModelForSequenceClassification.from_pretrained("merged")
batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    found["merged"] = model(**batch).logits.softmax(-1).tolist()
session = onnxruntime.InferenceSession("onnx/model.onnx")
logits = session.run(["logits"], {one.name: batch[one.name].numpy() for one in session.get_inputs()})[0]
found["onnx"] = torch.tensor(logits).softmax(-1).tolist()
found["labels"] = model.config.id2label
json.dump(found, open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of client 1, merged and as ONNX."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    code, out, said = call(run, "--client", "1", "--merged", folder / "merged", "--onnx", folder / "onnx")
    assert (code, said) == (0, "") and f"{folder / 'merged'} written (merged)" in out
    return folder


def test_probabilities_are_the_same_where_fibecfed_is_not(run: Path, exported: Path) -> None:
    (exported / "texts.json").write_text(json.dumps(TEXTS))
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=exported, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    found = json.loads((exported / "found.json").read_text())
    expected = load(run, "1").probabilities(TEXTS)
    assert found["labels"] == {"0": "bad", "1": "good"}
    for form in ("merged", "onnx"):
        torch.testing.assert_close(torch.tensor(found[form]), expected, atol=1e-5, rtol=0, msg=lambda text, form=form: f"{form}: {text}")
    assert float((expected - load(run).probabilities(TEXTS)).abs().max()) > 1e-3, "it is the client's, not the global one"


def test_the_code_on_each_card_answers(exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for form, answer in (("merged", "'label': 'bad'"), ("onnx", "['bad']")):
        monkeypatch.chdir(exported / form)
        exec(compile(code_of(exported / form).replace('"a text"', json.dumps(TEXTS[1])), "card", "exec"), {})
        assert answer in capsys.readouterr().out
        card = (exported / form / "README.md").read_text()
        assert (
            f"library_name: {'transformers' if form == 'merged' else 'onnx'}\n" in card and "with a LoRA adapter merged into them" in card
        )
        assert "## How it did" in card and "PeftModel" not in card


@pytest.mark.parametrize("kind", ["delta", "pairs", "decoder"])
def test_other_kinds_give_the_run_s_probabilities(kind: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    run = made(kind)
    assert call(run, "--merged", tmp_path / "merged")[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    about = json.loads((tmp_path / "merged" / "labels.json").read_text())
    pairs = ["the film"] * len(TEXTS) if kind == "pairs" else None
    seconds = None if pairs is None else [about["separator"] + pair for pair in pairs]
    batch = tokenizer(TEXTS, seconds, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**batch).logits.softmax(-1)
    torch.testing.assert_close(found, load(run).probabilities(TEXTS, pairs), atol=1e-5, rtol=0)
    classify = fibecfed.load_model(run)
    asked = TEXTS if pairs is None else [{"text": a, "text_pair": about["separator"] + b} for a, b in zip(TEXTS, pairs, strict=True)]
    for answers in (classify(asked, batch_size=3), classify(asked)):
        assert [one["label"] for one in answers] == [about["labels"][int(row.argmax())] for row in found]
        assert [one["score"] for one in answers] == pytest.approx(found.max(-1).values.tolist(), abs=1e-5)


def test_a_pipeline_is_plain_transformers_and_cuts_where_training_did(run: Path) -> None:
    classify = fibecfed.load_model(run, "1")
    assert all("fibecfed" not in type(module).__module__ and "peft" not in type(module).__module__ for module in classify.model.modules())
    assert classify.model.config.id2label == {0: "bad", 1: "good"}
    assert classify("good " * 5000)[0]["label"] == "good"


def test_an_adapter_is_copied_whole(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert call(run, "--adapter", tmp_path / "there")[0] == 0
    copied, own = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path / "there", run / "global"))
    assert copied == own


def test_nothing_says_where_things_lie_and_whoever_may_read_the_folder_can_read_it(run: Path, place: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert call(run, "--merged", tmp_path / "merged")[0] == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "merged").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path.name
        assert not any(str(folder).encode() in path.read_bytes() for folder in (tmp_path, place)), path.name


@pytest.mark.parametrize(("kind", "problem"), [("prefixes", "trains a prefix"), ("masked", "answers by words of its vocabulary")])
def test_what_is_more_than_a_classifiers_weights_is_rejected_but_for_its_adapter(
    kind: str, problem: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    run = made(kind)
    for form in ("--merged", "--onnx"):
        said = rejected(run, form, tmp_path / "out")
        assert problem in said and "take --adapter, or use `fibecfed predict`" in said
    with pytest.raises(UserError, match="but a pipeline needs"):
        fibecfed.load_model(run)
    assert list(tmp_path.iterdir()) == []
    assert call(run, "--adapter", tmp_path / "out")[0] == 0 and (tmp_path / "out" / "labels.json").is_file()


def test_a_model_that_plain_transformers_would_read_otherwise_is_rejected(place: Path, tmp_path: Path) -> None:
    save_language_model(tmp_path / "backbone", masked=False)
    settings = json.loads((tmp_path / "backbone" / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["sep_token"]  # which each text ends with: a decoder's own call looks for the last other one
    (tmp_path / "backbone" / "tokenizer_config.json").write_text(json.dumps(settings))
    run = tmp_path / "run"
    session.start(run_config(place, model={"name": str(tmp_path / "backbone")}, method={"kind": "lora"}, federation={"rounds": 1}), run)
    assert "as where texts end with the padding token" in rejected(run, "--merged", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_nothing_is_overwritten_and_half_a_folder_is_not_left(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("used", "file"):
        assert "nothing is overwritten" in rejected(run, "--adapter", tmp_path / name)
    assert "there is no folder" in rejected(run, "--adapter", tmp_path / "no" / "out")
    assert "expected --merged OUT, --onnx OUT, --adapter OUT or --gguf OUT" in rejected(run)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_, "save_plain", full)
    with pytest.raises(RunFailed, match=r"--merged: .*No space left on device"):
        export_.export(run, None, {"merged": tmp_path / "out"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "used"]
    assert (tmp_path / "used" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"


def test_without_the_extra_it_says_what_to_install(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "run in a clone of fibecfed: pip install '.[onnx]'" in rejected(run, "--onnx", tmp_path / "out")


def test_a_card_that_somebody_wrote_anew_is_kept_whole() -> None:
    card = merged_card("# Mine\n\nWords.\n", "print(1)", onnx=False)
    assert card.startswith("# Merged model\n") and "print(1)" in card and card.endswith("# Mine\n\nWords.\n")
