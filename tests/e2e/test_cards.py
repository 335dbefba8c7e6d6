"""The code of every kind of model card is run as it stands, in the adapter's folder, and answers what the run's own model answers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from made_gguf import write_gguf
from saved import run_config, save_backbone, save_language_model, write_reviews

from fibecfed import session
from fibecfed.build import read_inputs
from fibecfed.config import Config
from fibecfed.data.sources import TextSplit
from fibecfed.data.tokenise import tokenise
from fibecfed.models import packaged
from fibecfed.reading import max_length

TEXTS = {"good": "great story is great is witty", "bad": "bad the scene bad stale"}  # of reviews.csv


def code_of(adapter: Path) -> str:
    found = re.search(r"```python\n(.*?)\n```", (adapter / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def answer(adapter: Path, text: str, second: str = "") -> str:
    """What the card's code prints for another text than the one that stands there."""
    return ran(adapter, text, second)[0]


def ran(adapter: Path, text: str, second: str = "") -> tuple[str, list[int]]:
    """What the card's code prints, and the tokens that it gave to the model."""
    code = code_of(adapter)
    assert '"a text"' in code
    code = code.replace('"a text"', json.dumps(text)).replace('"its second text"', json.dumps(second))
    said = io.StringIO()
    with contextlib.chdir(adapter), contextlib.redirect_stdout(said):
        exec(compile(code, "card", "exec"), names := {})
    return said.getvalue().strip().strip("[]'"), names["batch"]["input_ids"][0].tolist()


def as_in_training(config: Config, text: str, second: str | None = None) -> list[int]:
    """The tokens of a text."""
    inputs = read_inputs(config)
    split = TextSplit([text], None if second is None else [second], torch.tensor([0]), None)
    return tokenise(inputs.tokenizer, split, max_length(config), inputs.prompt).ids.tolist()


def made(folder: Path, config: Config, backbone: Path | None = None) -> Path:
    """A run, with its backbone beside the adapters as a card of a local model asks for."""
    summary = session.start(config, folder / "run")
    if config.federation.rounds > 1:
        assert summary["scores"]["global"] > 0.9, "it has not learned to tell the texts below apart"
    adapters = [folder / "run" / "global", *(folder / "run").glob("clients/*")]
    for adapter in adapters if backbone is not None else []:
        (adapter / Path(str(backbone)).name).symlink_to(str(backbone))
    return folder / "run"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    write_reviews(tmp_path / "reviews.csv")
    return tmp_path


def test_a_local_folder(reviews: Path) -> None:
    save_backbone(reviews / "backbone")
    run = made(reviews, run_config(reviews), reviews / "backbone")
    for label, text in TEXTS.items():
        for adapter in (run / "global", *(run / "clients").iterdir()):
            assert answer(adapter, text) == label


def test_the_code_cuts_a_text_where_training_did(reviews: Path) -> None:
    save_backbone(reviews / "backbone")
    config = run_config(reviews, data={"max_length": 8})
    run = made(reviews, config, reviews / "backbone")
    long = f"{TEXTS['good']} {TEXTS['bad']} dull dull"
    assert ran(run / "global", long) == ("good", as_in_training(config, long))
    assert json.loads((run / "global" / "tokenizer_config.json").read_text())["model_max_length"] == 8


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "causal"])
@pytest.mark.parametrize("pair", [False, True], ids=["one text", "pair"])
def test_a_head_of_words(masked: bool, pair: bool, reviews: Path) -> None:
    save_language_model(reviews / "backbone", masked=masked)
    data: dict[str, Any] = {"template": "{x} . it was <mask> .", "label_words": ["dull", "great"], "max_length": 12}
    if pair:
        lines = (reviews / "reviews.csv").read_text().splitlines()
        (reviews / "reviews.csv").write_text("\n".join([f"more,{lines[0]}", *(f"the film,{line}" for line in lines[1:])]) + "\n")
        data |= {"template": "{a} . {b} it was <mask>", "text_column": "more", "pair_column": "review", "max_length": 16}
    learns = {"federation": {"rounds": 20, "clients": 2}, "method": {"kind": "lora"}, "training": {"learning_rate": 0.05}}
    config = run_config(reviews, model={"head": "label-words", "rank": 8}, data=data, **learns)
    run = made(reviews, config, reviews / "backbone")
    for label, text in TEXTS.items():
        texts = ("the film", text) if pair else (text,)
        assert answer(run / "global", *texts) == label
        long = (*texts[:-1], f"{text} the film a plot is the scene of the story")  # which is cut, and not the template behind it
        assert ran(run / "global", *long)[1] == as_in_training(config, *long) and len(as_in_training(config, *long)) == data["max_length"]
    if pair:
        both = ("the plot is a story the plot is a story", "great film the witty cast great the film a plot")
        assert ran(run / "global", *both)[1] == as_in_training(config, *both)


def test_an_adapter_that_peft_cannot_load(reviews: Path) -> None:
    save_backbone(reviews / "backbone")
    run = made(reviews, run_config(reviews, method={"kind": "adapter"}, federation={"rounds": 30, "clients": 2}), reviews / "backbone")
    assert [answer(run / "global", text) for text in TEXTS.values()] == list(TEXTS)


def test_what_stands_beside_the_weights(reviews: Path) -> None:
    save_backbone(reviews / "backbone")
    run = made(reviews, run_config(reviews, method={"kind": "fedex-lora"}), reviews / "backbone")
    assert "add_delta(model, folder)" in code_of(run / "global") and (run / "global" / "delta.safetensors").is_file()
    assert [answer(run / "global", text) for text in TEXTS.values()] == list(TEXTS)


def test_two_texts(reviews: Path) -> None:
    save_backbone(reviews / "backbone")
    lines = (reviews / "reviews.csv").read_text().splitlines()
    (reviews / "reviews.csv").write_text("\n".join([f"more,{lines[0]}", *(f"the film,{line}" for line in lines[1:])]) + "\n")
    config = run_config(reviews, data={"text_column": "more", "pair_column": "review"}, federation={"rounds": 6})
    run = made(reviews, config, reviews / "backbone")
    assert [answer(run / "global", "the film", text) for text in TEXTS.values()] == list(TEXTS)
    assert json.loads((run / "global" / "labels.json").read_text())["pair"] is True


def test_a_gguf_file(reviews: Path) -> None:
    (reviews / "models").mkdir()
    write_gguf(reviews / "models" / "tiny.gguf")
    config = run_config(reviews, model={"name": str(reviews / "models" / "tiny.gguf")}, federation={"rounds": 6})
    run = made(reviews, config, reviews / "models")
    assert [answer(run / "global", text) for text in TEXTS.values()] == list(TEXTS)
    assert "the weights in `tiny.gguf`" in (run / "global" / "README.md").read_text()


def test_a_packaged_model(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = reviews / "site" / "carried_model"
    save_backbone(package / "model")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(reviews / "site"))
    assert importlib.util.find_spec("carried_model")
    row = packaged.Packaged("carried_model", "model", "owner/published", "pip install carried", "tiny")
    monkeypatch.setitem(packaged.PACKAGED, "carried", row)
    run = made(reviews, run_config(reviews, model={"name": "carried"}))
    assert 'fibecfed.model_folder("carried")' in code_of(run / "global")
    assert [answer(run / "global", text) for text in TEXTS.values()] == list(TEXTS)


def test_a_model_of_the_hub_in_the_very_revision_that_was_trained_on(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    stored = reviews / "hub" / "models--owner--model"
    save_backbone(stored / "snapshots" / commit)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    for module in ("huggingface_hub.constants", "huggingface_hub.file_download", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(reviews / "hub"), raising=False)
    run = made(reviews, run_config(reviews, model={"name": "owner/model"}))
    assert f'"owner/model",\n    revision="{commit}",' in code_of(run / "global")
    (stored / "refs" / "main").write_text("f" * 40)  # the model was published anew since
    assert [answer(run / "global", text) for text in TEXTS.values()] == list(TEXTS)
    adapter = json.loads((run / "global" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("owner/model", commit)


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_everything_in_an_adapters_folder_can_be_read_by_whoever_may_read_the_run(kind: str, reviews: Path) -> None:
    save_backbone(reviews / "backbone")
    before = os.umask(0o027)
    try:
        run = made(reviews, run_config(reviews, method={"kind": kind}, federation={"rounds": 1}))
    finally:
        os.umask(before)
    modes = {str(path.relative_to(run)): stat.S_IMODE(path.stat().st_mode) for path in run.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o640}, modes


def test_no_file_beside_an_adapter_says_where_things_lie_on_this_machine(reviews: Path) -> None:
    save_backbone(reviews / "backbone")
    run = made(reviews, run_config(reviews, federation={"rounds": 1}))
    for path in (run / "global").iterdir():
        assert str(reviews).encode() not in path.read_bytes(), path


def test_the_saved_tokenizer_gives_the_tokens_of_the_training(reviews: Path) -> None:
    from transformers import AutoTokenizer

    save_backbone(reviews / "backbone")
    config = run_config(reviews, data={"max_length": 6}, federation={"rounds": 1})
    run, examples = made(reviews, config), read_inputs(config).data.test
    rows = (reviews / "reviews.csv").read_text().splitlines()[1:]
    tokenizer = AutoTokenizer.from_pretrained(run / "global")
    ours = {tuple(tokenizer(row.rpartition(",")[0], truncation=True)["input_ids"]) for row in rows}
    for row in range(len(examples)):
        ids = examples.batch([row])["input_ids"][0, : int(examples.lengths[row])]
        assert tuple(ids.tolist()) in ours and torch.numel(ids) <= 6
