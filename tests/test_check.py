"""What the dry run says is what the run then does."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from published import published
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from fibecfed import check, session
from fibecfed.build import prepare
from fibecfed.check import plan_traffic, report
from fibecfed.config import Config, from_table
from fibecfed.core.errors import UserError
from fibecfed.effort import plan_effort
from fibecfed.engine import worker_count
from fibecfed.engine.options import ResourceOptions
from fibecfed.engine.traffic import Span
from fibecfed.models.tiny import tiny_config

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "great", "dull")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of four layers, and 120 reviews of which every fourth is longer than four tokens."""
    place = tmp_path_factory.mktemp("check")
    AutoModelForSequenceClassification.from_config(tiny_config("bert", layers=4)).save_pretrained(place / "model")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(place / "model")
    rows = [f"{WORDS[4 + n % 2]} film{' plot great dull' * (n % 4 == 0)},{('positive', 'negative')[n % 2]}" for n in range(120)]
    (place / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return place


def config(folder: Path, **method: Any) -> Config:
    """Every client takes part in every round, so that means over clients are what happens."""
    return from_table(
        {
            "model": {"name": str(folder / "model"), "rank": 2},
            "data": {"path": str(folder / "reviews.csv"), "max_length": 4},
            "federation": {"clients": 6, "clients_per_round": 6, "rounds": 3, "partition": "dirichlet"},
            "training": {"batch_size": 4, "precision": "float32"},
            "method": published(method),
        }
    )


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "fibecfed", "layers": {"rule": "coverage"}, "closing_round": True},
        {"kind": "fibecfed", "depth": 2, "closing_round": True, "layers": {"rule": "first", "value": 1}},
        {"kind": "lora", "finetune": True},
        {"kind": "fibecfed", "layers": {"rule": "last", "value": 1, "mean_every": 2, "pull": 0.5}, "finetune": True},
        {"kind": "fibecfed", "preset": None, "layers": {"rule": "agreement"}},
    ],
    ids=lambda method: method.get("layers", {}).get("rule") or method["kind"],
)
def test_bytes_and_steps_are_those_of_the_run(folder: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    wanted = config(folder, **method)
    prepared = prepare(wanted)
    traffic, effort = plan_traffic(prepared), plan_effort(prepared)
    summary = session.start(wanted, tmp_path / "run")
    assert effort.steps == summary["steps"]
    together = sum((row.total for row in traffic), Span())
    assert together.least <= summary["bytes_up"] + summary["bytes_down"] <= together.most
    assert (together.least < together.most) == (method.get("layers", {}).get("rule") in ("coverage", "agreement"))
    assert [(row.phase, row.num_rounds) for row in traffic] == [(phase.name, phase.num_rounds) for phase in prepared.method.phases]


def test_the_report_shows_model_data_messages_and_estimates_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    console = Console(file=io.StringIO(), width=200)
    report(config(folder), console)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]
    # rank 2, hidden size 16, query and value: 2 x (2 x 16 + 16 x 2) values a layer; the head: 16 x 2 + 2
    assert "layer 3 4 128 512 bytes" in lines and "head 2 34 136 bytes" in lines and "together 18 546 2.2 kB" in lines
    (train,) = (line for line in lines if line.startswith("train 8"))
    assert "negative" in train and "positive" in train
    assert any(line.startswith("tune 3 6") for line in lines) and any(line.startswith("time about") for line in lines)
    assert lines[-1] == "The configuration is valid. Nothing was trained or written."
    assert sorted(folder.rglob("*")) == before


def test_layers_that_are_not_trained_are_marked(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    report(config(folder, depth=3, depth_rule="last", finetune="validated"), console)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]
    assert "layer 0, not trained 4 128 512 bytes" in lines and "layer 1 4 128 512 bytes" in lines
    assert "together 18 546 2.2 kB" in lines and "of these trained 14 418 1.7 kB" in lines


def test_a_preset_is_shown_with_the_values_that_it_stands_for(folder: Path, tmp_path: Path) -> None:
    wanted = config(folder, preset="best", neurons={"rule": "random"})
    console = Console(file=io.StringIO(), width=200)
    report(wanted, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    lines = [line.split() for line in text.partition("Preset: best")[2].splitlines()]
    assert ["method.layers.rule", '"agreement"'] in lines and ["method.neurons.rule", '"random"', "set", "beside", "it"] in lines
    said = session.start(wanted, tmp_path / "run")["preset"]
    assert said["name"] == "best" and said["beside"] == {"method.neurons.rule": "random"}


def test_the_time_is_of_the_cpu_with_what_a_step_takes(folder: Path) -> None:
    (line,) = (line for line in lines_of(config(folder)) if line.startswith("time about"))
    assert re.fullmatch(r"time about .+ of CPU time, of which evaluation .+; a step takes \d+ ms here", line)


def test_the_number_of_workers_is_said_with_its_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_count, "cores", lambda: 3)
    monkeypatch.setattr(check, "PAYS_AFTER_S", 0.0)

    def said(number: int | None, pays_from_s: float) -> str:
        monkeypatch.setattr(check, "PAYS_FROM_S", pays_from_s)
        wanted = config(folder).model_copy(update={"resources": ResourceOptions(workers=number)})
        return next(line for line in lines_of(wanted) if line.startswith("workers "))

    assert said(1, 0.0) == "workers 1"
    assert re.fullmatch(r"workers 3; about .+ together", said(3, 1e9))
    assert said(None, 1e9) == "workers 1 by default (resources.workers)"
    assert re.fullmatch(r"workers 3 by default \(resources\.workers\); about .+ together", said(None, 0.0))


def test_cut_texts_are_counted(folder: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    report(config(folder), console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    cut = [int(line.split()[-1]) for line in text.splitlines() if line.startswith(("train  ", "validation  ", "test  ")) and "," in line]
    assert "cut to 4 at the end" in text and sum(cut) == 30


def test_mistakes_that_only_the_data_show_are_sentences(folder: Path) -> None:
    right = config(folder)
    wrong = right.model_copy(update={"data": right.data.model_copy(update={"text_column": "txt"})})
    with pytest.raises(UserError, match="txt"):
        report(wrong, Console())


def lines_of(config: Config) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    report(config, console)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]


def test_up_to_twenty_clients_have_a_row_each_and_more_are_summed_up(folder: Path) -> None:
    few = config(folder)
    rows = prepare(few).inputs.data.partition.table()
    lines = lines_of(few)
    assert "client train validation test train: negative train: positive" in lines
    for client, parts in rows.items():
        numbers = [*(sum(parts[part]) for part in ("train", "validation", "test")), *parts["train"]]
        assert " ".join(map(str, (client, *numbers))) in lines
    many = few.model_copy(update={"federation": few.federation.model_copy(update={"clients": 21})})
    lines = lines_of(many)
    assert "least middle most" in lines and not any(line.startswith("client train") for line in lines)


def test_lengths_before_the_cut_and_warnings_are_shown(folder: Path) -> None:
    lines = lines_of(config(folder))
    # every fourth of the reviews has five words
    (header,) = (line for line in lines if "length in tokens: median, 95 %, maximum" in line)
    assert header.endswith("length in tokens: median, 95 %, maximum cut to 4 at the end")
    (test,) = (line for line in lines if line.startswith("test 24"))
    assert "2, 5, 5" in test
    assert any(line.startswith("- 30 of 120 texts are longer than 4 tokens") for line in lines[lines.index("Warnings") :])
