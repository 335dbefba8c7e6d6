"""What needs classes asks for them, and rejects a task or data without in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from next_tokens import next_token_task, texts

from fibecfed.core.classification import classes_of, classification
from fibecfed.core.errors import UserError
from fibecfed.core.task import Task
from fibecfed.core.types import Round
from fibecfed.local.batches import weighed
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.parts import SelfEvolution
from fibecfed.models.tiny import tiny_task


def test_a_task_of_classes_is_handed_on_and_any_other_refused_in_a_sentence() -> None:
    task: Task = tiny_task("bert", num_classes=3)
    assert classification(task, "x", "y") is task and classification(task, "x", "y").num_classes == 3
    with pytest.raises(UserError) as rejection:
        classification(next_token_task(), "method.fancy", "choose another")
    assert str(rejection.value) == "method.fancy needs a task that predicts classes, which this one does not; choose another"


def test_examples_with_classes_give_them_and_others_are_refused_in_a_sentence() -> None:
    train = texts(classes=True).train
    assert train.labels is not None and torch.equal(classes_of(train, "x", "y"), train.labels)
    with pytest.raises(UserError) as rejection:
        classes_of(texts().train, "data.fancy", "remove it")
    assert str(rejection.value) == "data.fancy needs examples with classes, which these do not have; remove it"


def test_a_fisher_pass_over_the_models_own_classes_is_refused_for_other_tasks() -> None:
    task, train = next_token_task(), texts().train
    with pytest.raises(UserError, match=r'labels = "model" needs a task that predicts classes, .*; set "true"'):
        fisher_pass(task, task.params(), [train.batch([0, 1])], labels="model")
    assert fisher_pass(task, task.params(), [train.batch([0, 1])]).trace.gt(0).all()


@pytest.mark.parametrize("weights", ["balanced", (1.0, 2.0)])
def test_class_weights_are_refused_for_examples_without_classes(weights: Any) -> None:
    train, options = texts().train, TrainingOptions(class_weights=weights)
    with pytest.raises(UserError, match=r"training\.class_weights needs examples with classes, which these do not have; remove it"):
        weighed(train, options)
    assert weighed(train, TrainingOptions()) is None


def test_self_evolution_is_refused_from_the_round_on_in_which_it_asks_for_probabilities() -> None:
    part, task = SelfEvolution(after=0.5, smoothing=0.1, weight=2.0), next_token_task()
    assert part.beside(task, task.params(), texts().train, Round("tune", 0, 2, 0)) == {}
    with pytest.raises(UserError, match="self-evolution needs a task that predicts classes"):
        part.beside(task, task.params(), texts().train, Round("tune", 1, 2, 1))
    classes = tiny_task("bert")
    with pytest.raises(UserError, match="self-evolution needs examples with classes"):
        part.beside(classes, classes.params(), texts().train, Round("tune", 1, 2, 1))
