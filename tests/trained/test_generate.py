"""`fibecfed generate`: answers as plain transformers and PEFT give them, and a sentence for whatever cannot be answered."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from answer_runs import save_chats, trained
from chats import CHATML, SAID
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fibecfed import cli
from fibecfed.core.errors import UserError
from fibecfed.trained.answers import load, messages_of

TALKS = json.dumps(
    [{"role": "user", "content": "list files"}, {"role": "assistant", "content": "ls"}, {"role": "user", "content": "go home"}]
)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    save_chats(folder)
    return folder


@pytest.fixture(scope="module")
def run(chats: Path) -> Path:
    return trained(chats, "run")


def call(*arguments: str | Path, given: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["generate", *map(str, arguments)], input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def rejected(*arguments: str | Path, given: str | None = None) -> str:
    code, out, said = call(*arguments, given=given)
    assert (code, out) == (2, ""), said
    assert said.count("error: ") == 1
    return said


def plain(chats: Path, adapter: Path, prompts: list[str], **settings: Any) -> list[str]:
    """What plain transformers and PEFT make of prompts, in one batch padded on the left."""
    base: Any = AutoModelForCausalLM.from_pretrained(chats / "model", dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, adapter).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(adapter, padding_side="left")
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": one}], tokenize=False, add_generation_prompt=True) for one in prompts
    ]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, **settings)
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("whose", ["global", "clients/c1"])
def test_texts_are_those_of_the_adapter_under_plain_transformers_for_batches_of_1_2_and_8(whose: str, run: Path, chats: Path) -> None:
    prompts = [*SAID, "go", "list files and go home and print a file"]
    model = load(run, None if whose == "global" else "c1")
    ours = [one.text for one in model.answer(prompts, 24)]
    assert len(set(ours)) > 2
    for size in (1, 2, 8):
        batches = [prompts[start : start + size] for start in range(0, 8, size)]
        assert [text for batch in batches for text in plain(chats, run / whose, batch, max_new_tokens=24)] == ours
        assert [one.text for batch in batches for one in model.answer(batch, 24)] == ours


def test_a_prompt_comes_as_an_argument_or_on_standard_input_and_clients_answer_otherwise(run: Path, chats: Path) -> None:
    code, out, said = call(run, "list files", "--max-new-tokens", "24")
    assert (code, out) == (0, plain(chats, run / "global", ["list files"], max_new_tokens=24)[0] + "\n")
    assert call(run, "--max-new-tokens", "24", given="list files\n")[1] == out
    own = {call(run, "list files", "--client", name, "--max-new-tokens", "24")[1] for name in ("c0", "c1", "c2")}
    assert len(own | {out}) > 1
    assert ("stopped after 24 tokens" in said) == (not load(run).answer(["list files"], 24)[0].ended)


def test_a_conversation_goes_through_the_chat_template_and_the_system_message_of_the_run(run: Path, chats: Path) -> None:
    model = load(run)
    text = model.tokenizer.decode(model.tokens(messages_of(TALKS)))
    assert (
        text
        == "".join(
            f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in (("user", "list files"), ("assistant", "ls"), ("user", "go home"))
        )
        + "<|im_start|>assistant\n"
    )
    assert call(run, TALKS, "--messages", "--max-new-tokens", "4")[0] == 0
    polite = load(trained(chats, "polite", data={"system": "be brief"}, federation={"rounds": 1}))
    assert polite.tokenizer.decode(polite.tokens("hi")).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi")


def test_a_template_of_the_configuration_lies_beside_the_adapter_and_is_used(chats: Path) -> None:
    template = CHATML.replace("<|im_start|>", "")
    run = trained(chats, "other", data={"chat_template": template}, federation={"rounds": 1})
    assert AutoTokenizer.from_pretrained(run / "global").chat_template == template
    model = load(run)
    assert model.tokenizer.decode(model.tokens("hi")) == "user\nhi<|im_end|>\nassistant\n"


def test_prompts_are_read_as_they_are_without_a_template(chats: Path) -> None:
    run = trained(chats, "joined", data={"chat_template": "none"}, federation={"rounds": 1})
    assert not AutoTokenizer.from_pretrained(run / "global").chat_template
    model = load(run)
    assert model.tokenizer.decode(model.tokens("list")) == "list"
    assert 'this run has `data.chat_template` = "none"' in rejected(run, TALKS, "--messages")


def test_lines_of_a_terminal_are_prompts_one_by_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["list files", "", "x" * 600, "go home"])

    def line(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", line)

    class Terminal:
        stdin = type("Stdin", (), {"isatty": staticmethod(lambda: True)})()

    import fibecfed.cli_trained as module

    monkeypatch.setattr(module, "sys", Terminal)
    code, out, said = call(run, "--max-new-tokens", "8")
    expected = [load(run).answer([prompt], 8)[0].text for prompt in ("list files", "go home")]
    assert code == 0 and out == "".join(f"{text}\n" for text in expected) + "\n"
    assert "error: prompt: got" in said and sys.stdin is not None


def test_what_cannot_be_answered_is_a_sentence(run: Path, chats: Path, made: Callable[[str], Path], tmp_path: Path) -> None:
    assert "prompt: got 619 tokens, but the model reads 512, its answer included, expected at most 511" in rejected(run, "x" * 600)
    said = rejected(run, "x" * 400, "--max-new-tokens", "100")
    assert "--max-new-tokens: got 100 behind a prompt of 419 tokens, but the model reads 512 in all, expected at most 93" in said
    assert "expected at least 1" in rejected(run, "x", "--max-new-tokens", "0")
    assert "did you mean 'c0'" in rejected(run, "x", "--client", "c00") or "expected a client of the run" in rejected(
        run, "x", "--client", "c00"
    )
    assert "got a model that predicts classes, but generate needs one that writes answers" in rejected(made("lora"), "x")
    assert "expected the folder of a run" in rejected(tmp_path / "nowhere", "x")
    for text, reason in (
        ("{", "--messages: got no JSON"),
        ("[]", "got an empty list"),
        ('{"a": 1}', "got dict, expected a JSON list"),
        ('[{"role": "user"}]', "message 1 is no object with the strings role and content"),
        ('[{"role": "tool", "content": "x"}]', "message 1 has the role 'tool'"),
        ('[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]', "the last message is of the role assistant"),
    ):
        assert reason in rejected(run, text, "--messages")


@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_an_empty_prompt_is_not_answered(prompt: str, run: Path) -> None:
    assert "prompt: got an empty text, expected at least one character" in rejected(run, prompt)
    with pytest.raises(UserError, match="prompt: got an empty text"):
        load(run).answer([[]], 4)


def test_a_damaged_adapter_and_other_base_weights_are_sentences(run: Path, chats: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "global" / "adapter_model.safetensors").write_bytes(b"x")
    assert "the adapter could not be loaded" in rejected(tmp_path / "run", "x")
    shutil.copytree(chats / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes((chats / "model" / "model.safetensors").read_bytes()[:-1] + b"\0")
    assert "has other weights than the run was trained on" in rejected(run, "x", "--base", str(tmp_path / "model"))


def test_nothing_but_the_prompt_is_left_to_write_where_the_room_is_small(run: Path) -> None:
    [answer] = load(run).answer(["x" * 480])
    assert len(answer.tokens) <= 512 - 499
