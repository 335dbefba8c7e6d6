"""Answers with a bottleneck, a soft prompt or a prefix: generated as the whole text so far says, trained and saved like LoRA's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from answering import CAUSAL, CausalFamily, answer_model
from peft import PromptTuningConfig, get_peft_model
from texts import noisy
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

from fibecfed.adapters.options import BottleneckAdapter, PrefixAdapter, PromptAdapter
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.models.answer_task import AnswerTask
from fibecfed.models.answers import Answers
from fibecfed.models.own_adapters import add_adapter, load_answers, save_own_adapter

OPTIONS = {"bottleneck": BottleneckAdapter(size=4), "prompt": PromptAdapter(num_tokens=3), "prefix": PrefixAdapter(num_tokens=3)}
PROMPTS = [[5, 9, 4, 7], [8], [11, 6, 13, 3, 9, 9, 5], [4, 4], [7, 12, 9], [6, 5], [14, 3, 8, 8, 5], [10]]


def plain(family: CausalFamily) -> Any:
    """The same each time, without an adapter, whose words and absolute positions count."""
    whole: Any = answer_model(family)
    whole = whole.unload()
    with torch.no_grad():
        whole.get_output_embeddings().weight.normal_(generator=torch.Generator().manual_seed(1))
        for name, weight in whole.named_parameters():
            weight.mul_(30 if "wpe" in name else 1)
    return whole


def made(kind: str, family: CausalFamily) -> tuple[AnswerTask, dict[str, torch.Tensor]]:
    model = plain(family)
    add_adapter(model, OPTIONS[kind], head=None, key=Key(3))
    task = AnswerTask(model, objective=Answers())
    strength = 0.05 if kind == "bottleneck" else 5  # more of it and every text goes on in one way
    moved = {name: strength * value for name, value in noisy(task).items() if name.startswith("adapter.")}
    return task, {**task.params(), **moved}


def scores_of_next(task: AnswerTask, params: dict[str, torch.Tensor], ids: list[int], words: int) -> torch.Tensor:
    """-log p of every word behind a text, by the loss of training: one pass over the text with each word at its end."""
    rows = torch.tensor([[*ids, word] for word in range(words)])
    labels = torch.full_like(rows, -100)
    labels[:, -1] = rows[:, -1]
    batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": labels}
    return task.losses(params, batch)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("kind", OPTIONS)
def test_tokens_are_those_that_training_finds_most_likely_for_batches_of_1_2_and_8(kind: str, family: CausalFamily) -> None:
    task, params = made(kind, family)
    words = task.model.get_input_embeddings().num_embeddings  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    expected = []
    for prompt in PROMPTS:
        found = list[int]()
        while len(found) < 6 and (not found or found[-1] != 2):
            found.append(int(scores_of_next(task, params, [*prompt, *found], words).argmin()))
        expected.append(found)
    assert len({tuple(one) for one in expected}) > 2
    for size in (1, 2, 8):
        batches = [PROMPTS[start : start + size] for start in range(0, 8, size)]
        assert [row for batch in batches for row in task.generate(params, batch, stop_ids=[2], max_new_tokens=6)] == expected
    zero = {name: torch.zeros_like(value) for name, value in params.items() if name.startswith("adapter.")}
    moved = scores_of_next(task, params, PROMPTS[0], words) - scores_of_next(task, {**params, **zero}, PROMPTS[0], words)
    assert float(moved.abs().max()) > 1e-2  # the adapter has a part in it


@pytest.mark.parametrize("family", CAUSAL)
def test_a_soft_prompt_is_pefts(family: CausalFamily) -> None:
    task, params = made("prompt", family)
    other: Any = get_peft_model(plain(family), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with torch.no_grad():
        other.prompt_encoder["default"].embedding.weight.copy_(params["adapter.prompt"])
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        logits = other(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 3:]
    expected = -log_softmax(logits[0, :-1].double(), -1).gather(1, ids[0, 1:, None]).sum()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.cat([torch.full((1, 1), -100), ids[:, 1:]], 1)}
    assert float(task.losses(params, batch)[0]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_saved_one_is_loaded_into_the_same_answers(kind: str, tmp_path: Path) -> None:
    task, params = made(kind, "llama")
    save_own_adapter(task.model, params, tmp_path, base="a model", revision=None)
    loaded = load_answers(plain("llama"), tmp_path)
    said: Callable[[AnswerTask, Any], Any] = lambda one, of: one.generate(of, PROMPTS, stop_ids=[2], max_new_tokens=6)  # noqa: E731
    assert said(loaded, loaded.params()) == said(task, params)
    with pytest.raises(UserError, match=r"got tensors that do not fit this .*; load that model$"):
        load_answers(AutoModelForCausalLM.from_config(_wider(task)), tmp_path)


def _wider(task: AnswerTask) -> Any:
    config: Any = type(task.model.config)(**task.model.config.to_dict())  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    config.hidden_size, config.intermediate_size = 2 * config.hidden_size, 2 * config.intermediate_size
    config.head_dim = config.hidden_size // config.num_attention_heads
    return config
