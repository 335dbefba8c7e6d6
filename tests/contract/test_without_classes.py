"""Methods train tasks that predict no classes, on data without classes, under the same laws."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from made import TRAINING, federation, made_method
from next_tokens import next_token_task, texts

from fibecfed.core.errors import UserError
from fibecfed.core.metrics import primary
from fibecfed.core.statistics import plain
from fibecfed.core.types import Params
from fibecfed.engine.evaluation import Evaluator
from fibecfed.engine.summary import summarise
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.testing.laws import LAWS, Subject

ROUNDS, CLIENTS = 3, 4
SHORT = TRAINING.model_copy(update={"batch_size": 3})
WEIGHTED = SHORT.model_copy(update={"class_weights": "balanced"})
MEASURERS = {"importance_clients": 2, "spectrum_clients": 1, "importance_examples": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "fibecfed": {"layers": MEASURERS, "score_after": 1},
    "fibecfed, scored while training": {"layers": MEASURERS, "curriculum": {"scoring": "training"}},
    "fibecfed, layers by curvature": {"layers": {**MEASURERS, "rule": "layer_gap"}, "aggregation": "exact"},
}
DATA = texts(CLIENTS, 6)


def method(variant: str, **more: Any) -> Any:
    return made_method(**{"rounds": ROUNDS, "clients": CLIENTS, "training": SHORT, **VARIANTS[variant], **more})


@cache
def subject(variant: str) -> Subject:
    return Subject(lambda: method(variant), next_token_task, DATA)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("variant", VARIANTS)
def test_law(law: Callable[[Subject], None], variant: str) -> None:
    law(subject(variant))


def loss(task: AdaptedModel, params: Params, examples: Any) -> float:
    with torch.no_grad():
        return float(task.losses(params, examples.batch(list(range(len(examples))))).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_of_new_texts_falls(variant: str) -> None:
    task, data = next_token_task(), texts(CLIENTS, 20, test_per_client=20)
    training = SHORT.model_copy(update={"learning_rate": 0.1})
    world = federation(method(variant, rounds=8, training=training), task, data, per_round=CLIENTS)
    before = loss(task, world.method.server_params(world.server), data.test)
    steps = world.finish()
    assert loss(task, world.method.server_params(world.server), data.test) < 0.95 * before
    assert all(step.record.steps for step in steps if step.record.phase == "tune")


@pytest.mark.parametrize("variant", ["lora", "fibecfed"])
def test_an_evaluation_adds_up_the_sums_of_the_tasks_own(variant: str) -> None:
    task = next_token_task()
    world = federation(method(variant), task, DATA)
    *_, last = world.run()
    evaluator = Evaluator(world.method, task, world.transport, DATA.clients, DATA.test, DATA.validation, 5)
    found, _ = evaluator.after(world.server, last.now, last.number)
    sizes = {client: len(DATA.client(client).test) for client in DATA.clients}
    assert {client: sums["examples"] for client, sums in found.clients.items()} == sizes
    expected = len(DATA.test) * loss(task, world.method.server_params(world.server), DATA.test)
    assert found.server["nll"] == pytest.approx(expected, rel=1e-5) and found.server["examples"] == len(DATA.test)


def test_a_summary_has_the_tasks_own_metric_and_no_majority_class() -> None:
    task = next_token_task()
    world = federation(method("lora"), task, DATA)
    *_, last = steps = world.finish()
    evaluator = Evaluator(world.method, task, world.transport, DATA.clients, DATA.test, DATA.validation, 5)
    found, _ = evaluator.after(world.server, last.now, last.number)
    metric = primary(None, plain(task.statistics.zero), task.statistics.metric)
    records = [*(step.record for step in steps), found]
    summary = summarise(records, metric=metric, selected={}, partition=DATA.partition.table())
    assert (summary["metric"], summary["higher_is_better"]) == ("loss", False)
    mean = loss(task, world.method.server_params(world.server), DATA.test)
    assert summary["scores"]["global"] == pytest.approx(mean, rel=1e-5) and "classes" not in summary
    assert set(summary["scores"]["metrics"]["global"]) == {"loss"} and summary["scores"]["validation_examples"] == len(DATA.validation)
    assert [one["test_examples"] for one in summary["clients"].values()] == [len(DATA.client(client).test) for client in DATA.clients]
    assert summary["scores"]["majority"] is summary["scores"]["own_majority"] is None
    assert all(one["majority"] is None for one in summary["clients"].values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "self-evolution", "after": 0.0}, "self-evolution needs a task that predicts classes, which this one does not; "),
        ({"layers": MEASURERS, "score_after": 0, "curriculum": {"labels": "model"}}, 'labels = "model" needs a task that predicts classes'),
        ({"kind": "lora", "training": WEIGHTED}, "training.class_weights needs examples with classes, which these do not have; "),
    ],
)
def test_what_needs_classes_is_refused_in_a_sentence(options: dict[str, Any], said: str) -> None:
    world = federation(made_method(**{"rounds": ROUNDS, "clients": CLIENTS, "training": SHORT, **options}), next_token_task(), DATA)
    with pytest.raises(UserError, match=said):
        world.finish()
