"""A run on prompts with answers: from a file to adapters that plain transformers and PEFT ask, and what stops it before it starts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import CHATML, as_messages, chat_config, rows, save_chat_model, write_lines
from peft import PeftModel
from rich.console import Console
from saved import adapter_files, interrupted_at, save_backbone
from transformers import AutoModelForCausalLM, AutoTokenizer

import fibecfed
from fibecfed import check, session
from fibecfed.comparison.report.comparison import read_report, write_report
from fibecfed.comparison.report.one.report import show
from fibecfed.core.errors import UserError
from fibecfed.core.files import ANSWERS
from fibecfed.core.metrics import METRICS
from fibecfed.methods.catalogue import METHODS as METHOD_KINDS
from fibecfed.progress import show_summary
from fibecfed.trained.answers import load as load_answers
from fibecfed.trained.export import export

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "fibecfed": {"kind": "fibecfed", "score_after": 1, "layers": {"importance_clients": 2}},
    "fibecfed by loss": {"kind": "fibecfed", "score_after": 1, "curriculum": {"order": "nll"}},
    "fibecfed by alignment": {"kind": "fibecfed", "score_after": 1, "curriculum": {"order": "ira"}},
    "fibecfed among like lengths": {"kind": "fibecfed", "score_after": 1, "curriculum": {"normalise": "length-bins"}},
    "fibecfed, scored while training": {"kind": "fibecfed", "curriculum": {"scoring": "training"}, "layers": {"rule": "layer_gap"}},
    "scaffold": {"kind": "scaffold"},
}


UNFIT = ("self-evolution", "idpg", "attempt", "lpt")
OWN = ("adapter", "prompt-tuning", "fedprompt", "p-tuning-v2", "fedpeptao", "momd", "moms-adamw")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    save_chat_model(folder / "model")
    write_lines(folder / "rows.jsonl", rows())
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_run_lowers_the_loss_of_answers(method: str, folder: Path, tmp_path: Path) -> None:
    config = chat_config(folder, method=METHODS[method], federation={"rounds": 4}, evaluation={"every": 4})
    summary = session.start(config, tmp_path / "run")
    scores = summary["scores"]
    assert (summary["metric"], summary["higher_is_better"]) == ("nll", False) and "classes" not in summary
    assert scores["pooled_personalised"] < 0.9 * scores["untrained"]["pooled_personalised"]
    assert set(scores["metrics"]["global"]) == {"nll", "perplexity", "token_accuracy"}


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "a"
    session.start(chat_config(folder, method=METHODS["fibecfed"], evaluation={"every": 1}), out)
    return out


@pytest.mark.parametrize("kind", [kind for kind in METHOD_KINDS if kind not in UNFIT])
def test_every_method_on_lora_trains_on_answers(kind: str, folder: Path, tmp_path: Path) -> None:
    summary = session.start(chat_config(folder, method={"kind": kind}, federation={"rounds": 2}), tmp_path / "run", adapters=False)
    assert summary["scores"]["pooled_personalised"] < summary["scores"]["untrained"]["pooled_personalised"]


@pytest.mark.parametrize("kind", ["adapter", "prompt-tuning", "p-tuning-v2"])
def test_other_adapters_answer_by_their_card_and_by_generate_and_are_not_merged(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    session.start(chat_config(folder, method={"kind": kind}, evaluation={"generate": 2, "max_new_tokens": 6}), out)
    expected = load_answers(out).answer(["a prompt"], 16)[0]
    card = (out / "global" / "README.md").read_text()
    assert "LoRA" not in card and "peft" not in card.partition("## Use it")[0]
    code = card.partition("```python\n")[2].partition("```")[0]
    (out / "global" / "model").symlink_to(folder / "model")
    monkeypatch.chdir(out / "global")
    printed: list[str] = []
    exec(compile(code.replace("=256", "=16"), "card", "exec"), {"print": lambda text: printed.append(text)})
    assert printed == [expected.text]
    (out / "global" / "model").unlink()
    with pytest.raises(UserError, match=f"--merged: got an adapter of the method {kind}, which is no part of the weights"):
        export(out, None, {"merged": tmp_path / "merged"})
    with pytest.raises(
        UserError, match="it cannot be merged into the weights of the base model, but a pipeline needs that; use `fibecfed gen"
    ):
        fibecfed.load_model(out)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", UNFIT)
def test_every_other_method_is_refused(kind: str, folder: Path) -> None:
    with pytest.raises(UserError, match=f'method.kind: got "{kind}", wh'):
        chat_config(folder, method={"kind": kind})


def test_scores_are_those_of_the_saved_adapters_under_plain_peft(run: Path, folder: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    base: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, run / "global").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(run / "global")
    total = tokens = 0.0
    from fibecfed.build import read_inputs
    from fibecfed.config import load

    data = read_inputs(load(run / "config.toml").config).data
    for position in range(len(data.test)):
        batch = data.test.batch([position])
        with torch.no_grad():
            loss = float(model(**batch).loss)
        number = int((batch["labels"][:, 1:] >= 0).sum())
        total, tokens = total + loss * number, tokens + number
    assert summary["scores"]["global"] == pytest.approx(total / tokens, rel=1e-5)
    files = sorted(path.name for path in (run / "global").iterdir())
    assert "labels.json" not in files and {"README.md", "generation_config.json", "chat_template.jinja"} <= set(files)
    assert json.loads((run / "global" / "generation_config.json").read_text())["eos_token_id"] == [3]
    assert json.loads((run / "global" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert tokenizer.chat_template == CHATML


def test_the_card_holds_code_that_answers_and_no_text_of_the_clients(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (run / "global" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(run / "global")
    (run / "global" / "model").symlink_to(folder / "model")
    printed = io.StringIO()
    monkeypatch.setattr("builtins.print", lambda *values: printed.write(" ".join(map(str, values)) + "\n"))
    exec(compile(code.replace("max_new_tokens=256", "max_new_tokens=4"), "card", "exec"), {})
    assert printed.getvalue()
    assert "pipeline_tag: text-generation" in card and "list files" not in card


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(run: Path, folder: Path, tmp_path: Path) -> None:
    config = chat_config(folder, method=METHODS["fibecfed"], evaluation={"every": 1})
    with pytest.raises(KeyboardInterrupt):
        session.start(config, tmp_path / "b", interrupted_at(8))
    summary, finished = session.resume(tmp_path / "b")
    assert not finished and adapter_files(tmp_path / "b") == adapter_files(run) and summary["steps"]


def test_token_weights_and_example_weights_are_two_runs(folder: Path, tmp_path: Path) -> None:
    found = [
        session.start(chat_config(folder, training={"objective": objective}, method={"kind": "lora"}), tmp_path / objective)
        for objective in ("token", "example")
    ]
    assert found[0]["scores"]["global"] != found[1]["scores"]["global"]


def shown(config: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    check.report(config, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_check_shows_what_is_cut_and_three_texts_with_the_answers_marked(folder: Path, tmp_path: Path) -> None:
    text = shown(chat_config(folder, data={"max_length": 48}))
    assert "Answers, cut to 48 tokens at the end" in text and "prompts cut" in text
    assert "«ls<|im_end|>»" in text and text.count("<|im_start|>assistant") >= 3
    assert "The configuration is valid" in text and "examples lose the end of an answer to data.max_length = 48" in text


@pytest.mark.parametrize("chat_template", [None, "none", CHATML.replace("<|im_start|>", "")])
def test_the_shapes_and_templates_that_are_read(chat_template: str | None, folder: Path, tmp_path: Path) -> None:
    where = write_lines(tmp_path / "chats.jsonl", rows() if chat_template == "none" else [as_messages(row) for row in rows()])
    options = {"path": str(where), "chat_template": chat_template, "max_length": 120}
    options = {name: value for name, value in options.items() if value is not None}
    summary = session.start(chat_config(folder, data=options, training={"learning_rate": 0.01}, method={"kind": "lora"}), tmp_path / "run")
    assert METRICS["nll"].better(summary["scores"]["global"], summary["scores"]["untrained"]["global"])


def refused(folder: Path, said: str, **tables: Any) -> None:
    with pytest.raises(UserError, match=said):
        session.start(chat_config(folder, **tables), folder / "never")
    assert not (folder / "never").exists()


def test_what_cannot_be_trained_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    save_backbone(tmp_path / "bert")
    refused(folder, "is a bert model, which fills in masks, expected a causal language model", model={"name": str(tmp_path / "bert")})
    save_chat_model(tmp_path / "base", template=None)
    refused(folder, "data.chat_template: the tokenizer has no chat template", model={"name": str(tmp_path / "base")})
    save_chat_model(tmp_path / "stops", stops=2)
    refused(folder, r"row 1 .* expected a token at which the model stops \('<\|im_start\|>'\)", model={"name": str(tmp_path / "stops")})
    refused(folder, "data.chat_template: got 'nowhere.jinja', which cannot be read as a file", data={"chat_template": "nowhere.jinja"})
    refused(folder, "model.target_modules: got lm_head", model={"target_modules": ["lm_head"]})
    refused(folder, "evaluation.metric: accuracy cannot be had from what this task predicts", evaluation={"metric": "accuracy"})


RULES: list[tuple[dict[str, Any], str]] = [
    ({"data": {"labels": ["a", "b"]}}, r"data.labels: got \('a', 'b'\) with `data.kind` = \"instruction\", whose examples have answers"),
    (
        {"data": {"kind": "classification", "client_column": None, "system": "x"}},
        "data.system: got 'x' with `data.kind` = \"classification\"",
    ),
    ({"data": {"chat_template": "none", "system": "x"}}, "data.system: got 'x' with `data.chat_template` = \"none\""),
    ({"data": {"client_column": "prompt"}}, "data.client_column: got 'prompt', which is `data.prompt_column` already"),
    (
        {"federation": {"partition": "dirichlet"}, "data": {"client_column": None}},
        'federation.partition: got "dirichlet" for examples without',
    ),
    ({"method": {"kind": "lora", "head": "personal"}}, 'method.head: got "personal" with `data.kind` = "instruction"'),
    ({"method": {"kind": "self-evolution"}}, 'method.kind: got "self-evolution", which needs the probabilities of classes'),
    ({"method": {"kind": "idpg"}}, 'method.kind: got "idpg", which makes its prompt from the whole text, with'),
    ({"evaluation": {"generate": 2}, "data": {"loss_on": "all"}}, 'evaluation.generate: got 2 with `data.loss_on` = "all"'),
    ({"model": {"head": "last"}}, 'model.head: got "last" with `data.kind` = "instruction", which trains no head'),
    (
        {"method": {"curriculum": {"order": "ira", "scoring": "training"}}},
        'method.curriculum.order: got "ira" with `method.curriculum.scoring`',
    ),
]


@pytest.mark.parametrize(("tables", "said"), RULES)
def test_keys_that_do_not_go_with_answers_are_refused(tables: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(UserError, match=said):
        chat_config(folder, **tables)


def test_plain_text_has_no_prompts_to_answer(folder: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "text.jsonl", [{"text": row["completion"], "client": row["client"]} for row in rows()])
    data = {"path": str(tmp_path / "text.jsonl"), "chat_template": "none"}
    with pytest.raises(UserError, match=r"evaluation.generate: got 2 with plain text .*, which has no prompts to answer"):
        session.start(chat_config(folder, data=data, evaluation={"generate": 2}), tmp_path / "run")
    assert session.start(chat_config(folder, data=data, method=METHODS["lora"]), tmp_path / "other")["scores"]["global"] > 0


def test_answers_are_generated_after_the_last_round_and_only_sums_are_recorded(folder: Path, tmp_path: Path) -> None:
    plain = chat_config(folder, method=METHODS["fibecfed"])
    config = chat_config(folder, method=METHODS["fibecfed"], evaluation={"generate": 2, "max_new_tokens": 6})
    summary = session.start(config, tmp_path / "run")
    assert summary["adapters"] == session.start(plain, tmp_path / "plain")["adapters"]
    console = Console(file=io.StringIO(), width=80)
    show_summary(console, summary, tmp_path / "run")
    show(read_report(tmp_path / "run"), console)
    shown = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]
    for name, title in (("rouge_l", "Rouge-L"), ("stop_rate", "stop rate"), ("perplexity", "perplexity")):
        own, server = (METRICS[name].text(summary["scores"]["metrics"][whose][name]) for whose in ("personalised", "global"))
        assert f"{title} {own} {server} -" in shown and f"{title} {own} {server}" in shown
    assert not any("ost frequent class" in line for line in shown)
    metrics = summary["scores"]["metrics"]
    for whose in ("personalised", "global"):
        assert all(0 <= metrics[whose][name] <= 1 for name in ("exact_match", "rouge_l", "stop_rate"))
    last = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()][-1]
    assert last["pooled"]["generated"] == sum(sums["generated"] for sums in last["clients"].values()) == last["server"]["generated"] > 0
    assert all(sums["generated"] <= 2 for sums in last["clients"].values())
    assert set(last["pooled"]) == {
        "token_nll",
        "tokens",
        "correct_tokens",
        "examples",
        "generated",
        "exact",
        "stopped",
        "new_tokens",
        "rouge_l",
    }


def test_some_answers_of_three_models_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    config = chat_config(folder, method={"kind": "local"}, evaluation={"generate": 2, "max_new_tokens": 6, "examples": 2})
    session.start(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / ANSWERS).read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 == len({line["client"] for line in lines})
    data = {(row["prompt"], row["completion"]) for row in rows()}
    for line in lines:
        assert any(said in line["prompt"] and done == line["expected"] for said, done in data)
        said = line["prompt"].removeprefix("user\n").removesuffix("\nassistant\n")
        for name, client in (("global", None), ("personalised", line["client"])):
            assert load_answers(tmp_path / "run", client).answer([said], 6)[0].text == line[name]
    assert any(line["personalised"] != line["global"] == line["untrained"] for line in lines)  # nobody trains the global model
    write_report(tmp_path / "run")
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert (
        "Answers side by side" in text and f"| {lines[0]['expected']} |" in text and "Answers side by side" not in plain(tmp_path / "run")
    )


def plain(run: Path) -> str:
    """What the report of a run shows on a terminal."""
    console = Console(file=io.StringIO(), width=200)
    show(read_report(run), console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("evaluation", "privacy"),
    [
        ({"generate": 0}, {}),
        ({"generate": 2, "examples": 0}, {}),
        ({"generate": 2}, {"unit": "client", "noise_multiplier": 1.0, "clip_norm": 1.0, "delta": 1e-3, "evaluation": "exact"}),
    ],
)
def test_no_text_is_written_without_a_wish_or_by_a_private_run(
    evaluation: dict[str, Any], privacy: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    federation = {"rounds": 1, "on_failure": "drop"}
    tables = {"federation": federation, "evaluation": {"max_new_tokens": 3, **evaluation}, "method": {"kind": "lora"}, "privacy": privacy}
    session.start(chat_config(folder, **tables), tmp_path / "run")
    assert not (tmp_path / "run" / ANSWERS).exists()


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        ({"metric": "rouge_l"}, 'evaluation.metric: got "rouge_l", which is of generated answers, with `evaluation.generate` = 0; set'),
        ({"metric": "stop_rate", "generate": 1, "save": "best"}, 'evaluation.metric: got "stop_rate" with `evaluation.save` = "best", but'),
    ],
)
def test_a_primary_metric_of_answers_that_nobody_generates_is_rejected(evaluation: dict[str, Any], sentence: str, folder: Path) -> None:
    refused(folder, sentence, evaluation=evaluation)


def test_a_run_may_be_judged_by_the_answers_that_are_generated_at_its_end(folder: Path, tmp_path: Path) -> None:
    summary = session.start(chat_config(folder, evaluation={"metric": "rouge_l", "generate": 2, "max_new_tokens": 6}), tmp_path / "run")
    scores = summary["scores"]
    assert (summary["metric"], summary["higher_is_better"]) == ("rouge_l", True)
    assert scores["pooled_personalised"] == scores["metrics"]["personalised"]["rouge_l"] and scores["untrained"]["global"] is None


def test_answers_for_which_the_model_has_no_room_are_refused(folder: Path) -> None:
    refused(
        folder,
        "evaluation.max_new_tokens: got 500 beside test examples of [0-9]+ tokens",
        evaluation={"generate": 1, "max_new_tokens": 500},
    )
