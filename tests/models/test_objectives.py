"""What a task predicts is exchangeable: the body's functions are right for an objective that is not of classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from next_tokens import NextTokens, next_token_task, texts
from texts import noisy
from torch import Tensor
from torch.func import functional_call

from fibecfed.core.types import Batch, Params
from fibecfed.local.fisher import per_example_fisher_trace
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.heads import UnsupportedModel
from fibecfed.models.label_words import LabelWords
from fibecfed.models.objectives import ClassHead
from fibecfed.models.tiny import tiny_model, tiny_words
from fibecfed.models.transformer_task import TransformerTask

BATCH: Batch = texts().train.batch([0, 1, 2, 3])


def own_loss(task: AdaptedModel, params: Params, row: int) -> Tensor:
    """The sum over a text's tokens, by transformers' own loss on this text alone, which is their mean in float32."""
    ids = BATCH["input_ids"][row, : int(BATCH["attention_mask"][row].sum())][None]
    loss: Any = functional_call(task.model, dict(params), (), {"input_ids": ids, "labels": ids}, tie_weights=False).loss
    return loss * (ids.shape[1] - 1)


def test_losses_are_transformers_own_for_each_text_alone() -> None:
    task = next_token_task(dtype=torch.float64)
    params = noisy(task)
    lengths = BATCH["attention_mask"].sum(1)
    assert len(lengths.unique()) > 1, "texts of one length would show nothing about padding"
    found = task.losses(params, BATCH)
    assert "labels" not in BATCH and found.shape == (4,)
    torch.testing.assert_close(found.float(), torch.stack([own_loss(task, params, row) for row in range(4)]), rtol=1e-5, atol=0.0)


def test_fisher_traces_are_those_of_one_text_at_a_time() -> None:
    task = next_token_task(dtype=torch.float64)
    params = {name: value.requires_grad_() for name, value in noisy(task).items()}
    expected = []
    for row in range(4):
        gradients = torch.autograd.grad(own_loss(task, params, row), list(params.values()))
        expected.append(sum(float(gradient.square().sum()) for gradient in gradients))
    torch.testing.assert_close(per_example_fisher_trace(task, params, [BATCH]), torch.tensor(expected), rtol=1e-5, atol=0.0)


def test_a_task_of_another_objective_is_no_classification_and_its_copy_neither() -> None:
    task = next_token_task()
    for one in (task, task.exact()):
        assert type(one) is AdaptedModel and one.objective == NextTokens()
        assert not any(hasattr(one, name) for name in ("num_classes", "logits", "predict"))


class Shifted(NextTokens):
    """Takes the scores of the wrong positions for the model's own."""

    def own_scores(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        return logits[:, 1:].flatten(0, 1)


def test_a_head_that_does_not_give_the_models_own_scores_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="does not reproduce its own"):
        AdaptedModel(tiny_model("llama", words=tiny_words("llama")), objective=Shifted())


def test_a_classifier_is_of_as_many_classes_as_its_model_and_words_of_as_many_as_there_are() -> None:
    assert TransformerTask(tiny_model("bert", num_classes=5)).objective == ClassHead(5)
    words = LabelWords((8, 9, 10), 4)
    assert TransformerTask(tiny_model("bert", words=words), objective=words).num_classes == 3


@pytest.mark.parametrize("objective", [ClassHead(3), LabelWords((8, 9, 10), None)])
def test_made_up_labels_are_classes_the_first_and_the_last_among_them(objective: ClassHead | LabelWords) -> None:
    assert objective.some_labels(torch.zeros(5, 4)).tolist() == [0, 2, 1, 0, 2]
