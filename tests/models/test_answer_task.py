"""Generated answers: those of transformers' own greedy decoding, whatever the batch, and the module is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from answering import CAUSAL, CausalFamily, answer_model
from texts import noisy
from torch.func import functional_call

from fibecfed.core.task import DELTA
from fibecfed.core.written import rouge_l
from fibecfed.models.answer_task import AnswerTask
from fibecfed.models.answers import Answers, Writing

PROMPTS = [[5, 9, 4, 7], [8], [11, 6, 13, 3, 9, 9, 5], [4, 4], [7, 12, 9], [6, 5], [14, 3, 8, 8, 5], [10]]


def made(family: CausalFamily = "llama") -> tuple[AnswerTask, dict[str, torch.Tensor]]:
    task = AnswerTask(answer_model(family), objective=Answers())
    with torch.no_grad():
        whole: Any = task.model
        whole.get_base_model().get_output_embeddings().weight.normal_(generator=torch.Generator().manual_seed(1))
        for name, weight in whole.named_parameters():
            weight.mul_(30 if "wpe" in name else 1)  # GPT-2's absolute positions count: what padding moves would show
    return task, {name: 5 * value for name, value in noisy(task).items()}


def own(task: AnswerTask, params: dict[str, torch.Tensor], prompt: list[int], stops: list[int], number: int) -> list[int]:
    """transformers' own, with one prompt and without a cache."""
    ids = torch.tensor([prompt])
    found: list[int] = []
    for _ in range(number):
        with torch.no_grad():
            logits: Any = functional_call(task.model, params, (), {"input_ids": ids}, tie_weights=False).logits
        token = int(logits[0, -1].argmax())
        found.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        if token in stops:
            break
    return found


@pytest.mark.parametrize("family", CAUSAL)
def test_tokens_are_the_most_likely_ones_of_the_whole_text_so_far_for_batches_of_1_2_and_8(family: CausalFamily) -> None:
    task, params = made(family)
    expected = [own(task, params, prompt, [2], 12) for prompt in PROMPTS]
    assert len({tuple(one) for one in expected}) > 2
    for size in (1, 2, 8):
        batches = [PROMPTS[start : start + size] for start in range(0, 8, size)]
        found = [row for batch in batches for row in task.generate(params, batch, stop_ids=[2], max_new_tokens=12)]
        assert found == expected


def test_an_answer_ends_at_its_stop_token_and_others_go_on() -> None:
    task, params = made()
    free = [own(task, params, prompt, [], 10) for prompt in PROMPTS]
    stops = [free[0][3], free[2][1]]
    found = task.generate(params, PROMPTS, stop_ids=stops, max_new_tokens=10)
    for row, whole in zip(found, free, strict=True):
        end = next((place for place, token in enumerate(whole) if token in stops), 9)
        assert row == whole[: end + 1]
    assert len({len(row) for row in found}) > 1


def test_the_module_is_not_left_written_and_deltas_count() -> None:
    task, params = made()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    first = task.generate(params, PROMPTS, stop_ids=[2], max_new_tokens=6)
    weight, value = next(iter(task.adapted_weights().items()))
    draw = torch.Generator().manual_seed(2)
    moved = task.generate({**params, weight + DELTA: torch.randn(value.shape, generator=draw)}, PROMPTS, stop_ids=[2], max_new_tokens=6)
    assert moved != first
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())
    with pytest.raises(KeyError):
        task.generate({}, PROMPTS, stop_ids=[2], max_new_tokens=1)


def test_nothing_is_asked_for_nothing() -> None:
    task, params = made()
    assert task.generate(params, [], stop_ids=[2], max_new_tokens=4) == []
    assert task.generate(params, [[4], [5]], stop_ids=[2], max_new_tokens=0) == [[], []]


def test_scores_of_tokens_are_in_float32_under_bf16() -> None:
    task, params = made()
    task.precision = "bf16"
    seen: list[torch.dtype] = []
    whole: Any = task.model
    handle = whole.get_base_model().get_output_embeddings().register_forward_hook(lambda _m, _a, out: seen.append(out.dtype))
    task.generate(params, PROMPTS[:2], stop_ids=[2], max_new_tokens=3)
    handle.remove()
    assert seen and set(seen) == {torch.float32}


def test_sums_of_written_answers_are_those_of_a_loop_over_texts() -> None:
    _, params = made()
    writing = Writing(lambda tokens: " ".join(map(str, tokens)), (2,), 12, 3, "whitespace")
    task = AnswerTask(answer_model("llama"), objective=Answers(writing))
    task.model.load_state_dict(made()[0].model.state_dict())
    texts = [(prompt, [*own(task, params, prompt, [2], 3), 2] if place % 2 else [9, 2]) for place, prompt in enumerate(PROMPTS[:3])]

    class Given:
        def __len__(self) -> int:
            return len(texts)

        def batch(self, positions: list[int]) -> dict[str, torch.Tensor]:
            prompt, answer = texts[positions[0]]
            ids = torch.tensor([[*prompt, *answer]])
            labels = ids.clone()
            labels[:, : len(prompt)] = -100
            return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}

    found = task.written(params, Given())  # pyright: ignore[reportArgumentType]
    rows = [own(task, params, prompt, [2], 12) for prompt, _ in texts]
    rouge = sum(rouge_l(writing.decode(row), writing.decode(answer)) for row, (_, answer) in zip(rows, texts, strict=True))
    assert float(found.pop("rouge_l")) == rouge > 0
    assert {name: int(value) for name, value in found.items()} == {
        "generated": 3,
        "exact": sum(row == answer for row, (_, answer) in zip(rows, texts, strict=True)),
        "stopped": sum(row[-1] == 2 for row in rows),
        "new_tokens": sum(map(len, rows)),
    }
    texts[0] = (PROMPTS[0], rows[0] if rows[0][-1] == 2 else [*rows[0], 2])
    texts[1] = (PROMPTS[1], [9, 9])  # cut: it has no end token
    assert int(task.written(params, Given())["generated"]) == 2  # pyright: ignore[reportArgumentType]
