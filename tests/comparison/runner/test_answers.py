"""A comparison of methods on examples with answers: which are taken, by which metric, and what its report has of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chats import rows, save_chat_model, write_lines
from rich.console import Console

from fibecfed.comparison.report.compact import to_lines
from fibecfed.comparison.report.comparison import read_comparison
from fibecfed.comparison.runner.command import compare_in
from fibecfed.comparison.runner.plan import job, primary_metric, table_of
from fibecfed.comparison.runner.price import price_comparison
from fibecfed.comparison.runner.read import load
from fibecfed.comparison.runner.tuning import metric_of
from fibecfed.core.errors import UserError

FILE = """
methods = ["fibecfed", "lora"]
tasks = ["nl2bash"]

[base]
model = {{ name = "{folder}/model", rank = 2 }}
data = {{ root = "{folder}", client_column = "client", max_length = 64 }}
federation = {{ clients_per_round = 2, rounds = 3, partition = "column" }}
training = {{ batch_size = 4, learning_rate = 0.05, precision = "float32", device = "cpu" }}
evaluation = {{ every = 1, generate = 2, max_new_tokens = 6 }}

[task.mine.data]
kind = "instruction"
path = "{folder}/rows.jsonl"

[resources]
workers = 1
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    save_chat_model(folder / "model")
    write_lines(folder / "rows.jsonl", rows())
    (folder / "nl2bash").mkdir()
    for part, count in (("train", 48), ("test", 18)):
        pq.write_table(
            pa.Table.from_pylist([{**row, "system": "Be short."} for row in rows(count)]), folder / "nl2bash" / f"{part}.parquet"
        )
    (folder / "compare.toml").write_text(FILE.format(folder=folder))
    return folder


def html_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_methods_are_compared_by_the_loss_of_answers_and_by_the_answers_that_they_write(inputs: Path, tmp_path: Path) -> None:
    comparison, console = load(inputs / "compare.toml"), Console(file=io.StringIO(), width=200)
    assert not compare_in(comparison, tmp_path, console).failed
    found = read_comparison(tmp_path)
    assert (found.scores.metric.name, len(found.runs), found.problems) == ("nll", 2, ())
    for run in found.runs:
        summary = json.loads((tmp_path / "runs" / run.task / run.method / "0" / "summary.json").read_text())
        assert run.last.personalised == summary["scores"]["pooled_personalised"] < run.majority == run.points[0].personalised
        assert run.written == {name: summary["scores"]["metrics"]["personalised"][name] for name in ("exact_match", "rouge_l", "stop_rate")}
    text = (tmp_path / "report.md").read_text()
    for heading in ("Personalised score", "Rouge-L of generated answers", "Exact match of generated answers", "MB to the target"):
        assert f"## {heading}\n" in text
    assert "NLL per token in nat after the last round" in text and "untrained model" in text
    assert all(len(run.answers) == 3 == len({one.client for one in run.answers}) for run in found.runs)
    one = found.runs[0].answers[0]
    assert f"| {one.expected} |" in text and "## Answers side by side\n" in text and ">Answers side by side<" in html_of(tmp_path)
    assert one.expected not in to_lines(found, tmp_path)  # what is handed on has no text
    best = min(found.runs, key=lambda run: run.last.personalised)
    ranked = next(line for line in text.splitlines() if line.startswith(f"| {best.method} | **1.00**"))
    assert f"{best.last.personalised:.3f}" in ranked


def test_a_published_set_is_named_alone_and_all_methods_are_those_that_train_on_answers(inputs: Path) -> None:
    found = load(inputs / "compare.toml", ["methods=all", "tasks=nl2bash,mine"])
    own = {"adapter", "prompt-tuning", "fedprompt", "p-tuning-v2", "fedpeptao", "momd", "moms-adamw"}
    lora = {"fibecfed", "lora", "lora-finetune", "fedprox", "fedadam", "fedalt", "slora", "voc", "slw", "shortformer"}
    assert set(found.methods) == own | lora
    assert table_of(found, "nl2bash", "lora", 0)["data"]["kind"] == "instruction"
    assert job(found, Path("out"), "mine", "lora", 0).config.data.kind == "instruction"
    assert primary_metric(found) == metric_of(found).name == "nll"


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (
            ["tasks=nl2bash,rte"],
            "tasks: got nl2bash, whose examples have answers, beside rte, whose examples have classes; a comparison has",
        ),
        (["tasks=nl2bsh"], 'tasks: got "nl2bsh", which is unknown; did you mean "nl2bash"'),
        (["methods=lora,idpg"], 'method.kind: got "idpg", which makes its prompt from the whole text'),
        (
            ["tuning.trials=3", 'tuning.tasks=["nl2bash"]', "base.training.learning_rate=", "base.evaluation.metric=rouge_l"],
            'base.evaluation.metric: got "rouge_l", which is of answers to test examples, but rates are tuned by validation ones',
        ),
    ],
)
def test_what_does_not_go_together_is_a_sentence(pairs: list[str], sentence: str, inputs: Path) -> None:
    with pytest.raises(UserError) as error:
        load(inputs / "compare.toml", pairs)
    assert sentence in str(error.value)


def test_the_price_of_a_comparison_on_answers_is_counted_from_its_data(inputs: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    total = price_comparison(load(inputs / "compare.toml"), console)
    assert total.runs > 0 and "not priced" not in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
