"""Difficulty without a gradient, and ranks among answers of like length."""

from __future__ import annotations

import pytest
import torch
from answering import answer_task
from chats import chat_tokenizer
from texts import noisy

from fibecfed.data.answers import Encoder
from fibecfed.data.conversations import Conversation, Message, Rows
from fibecfed.data.rendering import Template
from fibecfed.data.text import TableExamples
from fibecfed.local.difficulty import in_length_bins, losses_per_token, misalignment

VOCABULARY = len(chat_tokenizer())


def examples(prompts: list[str], answers: list[str]) -> TableExamples:
    tokenizer = chat_tokenizer()
    made = [Conversation((Message("user", p), Message("assistant", a)), (1,)) for p, a in zip(prompts, answers, strict=True)]
    encoder = Encoder(tokenizer, Template(tokenizer), (3,), 100, bare=True)
    return encoder.encode(Rows("made", made, None, range(len(made)), "")).table.view()


SOME = examples(["one", "a longer one", "x", "y"], ["ls", "a long answer", "b", "ccc"])


def test_losses_are_those_of_each_example_alone_per_labelled_token() -> None:
    task = answer_task(dtype=torch.float64, vocab=VOCABULARY)
    params = noisy(task)
    found = losses_per_token(task, params, SOME)
    for row in range(4):
        batch = SOME.batch([row])
        assert float(found[row]) == pytest.approx(float(task.losses(params, batch) / (batch["labels"] >= 0).sum()), rel=1e-5)


def test_misalignment_is_the_loss_behind_the_prompt_minus_that_behind_none() -> None:
    task = answer_task(dtype=torch.float64, vocab=VOCABULARY)
    params = noisy(task)
    empty = examples([""] * 4, ["ls", "a long answer", "b", "ccc"])
    expected = losses_per_token(task, params, SOME) - losses_per_token(task, params, empty)
    torch.testing.assert_close(misalignment(task, params, SOME), expected)
    assert expected.abs().max() > 1e-4
    half = SOME.select(torch.tensor([3, 1]))
    torch.testing.assert_close(misalignment(task, params, half), expected[[3, 1]])


def test_examples_that_were_not_made_for_it_say_so() -> None:
    with pytest.raises(ValueError, match="not there without their prompts"):
        SOME.without_prompts().without_prompts()


def test_ranks_among_like_lengths_have_every_length_at_every_pace() -> None:
    lengths = torch.arange(100).flip(0)
    difficulty = lengths.double().float() ** 2  # longer is harder
    order = torch.argsort(in_length_bins(difficulty, lengths), stable=True)
    for share in (20, 50):
        assert abs(float(lengths[order[:share]].double().mean()) - 49.5) < 6
    assert float(lengths[torch.argsort(difficulty)[:20]].double().mean()) < 10
    inside = in_length_bins(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([5, 5, 5]), bins=1)
    assert torch.equal(inside, torch.tensor([2 / 3, 0.0, 1 / 3])) and len(in_length_bins(torch.empty(0), torch.empty(0))) == 0
