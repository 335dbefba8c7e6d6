"""What a step minimises where examples have several tokens: transformers' own mean, with accumulation; and what each example counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from answering import CAUSAL, CausalFamily, answer_model, answer_task, answers
from texts import noisy
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch
from fibecfed.local.collect import Collect
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.local.tokens import amount_of, is_apart, step_loss

BATCHES = [answers(), answers((5, 11), (2, 9), seed=1), answers((8, 8, 4), (1, 2, 2), seed=2)]


def options(**more: Any) -> TrainingOptions:
    return TrainingOptions.model_validate({"optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, **more})


class Rows(Dataset[Any]):
    """Each item is a whole batch, so that they are those of the other side."""

    def __len__(self) -> int:
        return len(BATCHES)

    def __getitem__(self, number: int) -> Batch:
        return BATCHES[number]


class Losses(TrainerCallback):
    """The loss that is logged for a step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.found.append(logs["loss"])


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_step_is_that_of_transformers_trainer(family: CausalFamily, accumulated: int, tmp_path: Path) -> None:
    model, seen = answer_model(family), Losses()
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=accumulated, max_steps=1, learning_rate=1.0,
        optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0, logging_steps=1, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, remove_unused_columns=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    Trainer(model, arguments, train_dataset=Rows(), data_collator=lambda rows: dict(rows[0]), callbacks=[seen]).train()
    after = dict(model.named_parameters())
    task = answer_task(family)
    found = fit(task, task.params(), [BATCHES[:accumulated]], options(gradient_accumulation=accumulated), Key(0))
    for name, value in before.items():
        torch.testing.assert_close(found.params[name] - value, after[name].detach() - value, rtol=2e-4, atol=2e-6)
        assert (after[name] - value).abs().max() > 1e-3
    assert found.loss == pytest.approx(seen.found[0], rel=1e-5)


def test_the_mean_over_tokens_and_over_examples() -> None:
    losses, batch = torch.tensor([3.0, 2.0, 7.0, 4.0]), BATCHES[0]
    weighed = {**batch, "weights": torch.tensor([1.0, 0.0, 1.0, 2.0])}
    classes = {"labels": torch.tensor([0, 1, 0, 1])}
    expected: list[tuple[Batch, Any, float, float, bool]] = [
        (batch, "token", 16 / 15, 15.0, False),
        (batch, "example", (1 + 2 + 1 + 1) / 4, 4.0, True),
        (weighed, "token", (3 + 7 + 8) / (3 + 7 + 8), 18.0, True),
        (weighed, "example", (1 + 1 + 2) / 4, 4.0, True),
        (classes, "token", 4.0, 4.0, False),
        (classes, "example", 4.0, 4.0, False),
    ]
    for one, over, mean, amount, apart in expected:
        assert float(step_loss(losses, one, over)) == pytest.approx(mean)
        assert amount_of(one, 4, over) == amount and is_apart(one, over) == apart


@pytest.mark.parametrize("objective", ["token", "example"])
def test_an_accumulated_step_is_that_of_one_large_batch(objective: str) -> None:
    task = answer_task(dtype=torch.float64)
    whole = {name: torch.cat([batch[name] for batch in BATCHES]) for name in BATCHES[0]}
    parts = fit(task, task.params(), [BATCHES], options(gradient_accumulation=3, objective=objective), Key(0))
    once = fit(task, task.params(), [[whole]], options(objective=objective), Key(0))
    for name, value in once.params.items():
        torch.testing.assert_close(parts.params[name], value)
    assert parts.loss == pytest.approx(once.loss) and parts.steps == once.steps == 1


def test_the_two_means_are_two_steps() -> None:
    task = answer_task(dtype=torch.float64)
    token, example = (
        fit(task, task.params(), [BATCHES], options(objective=objective), Key(0)).params for objective in ("token", "example")
    )
    assert any((token[name] - example[name]).abs().max() > 1e-3 for name in token)


@pytest.mark.parametrize("normalise", ["token", "none", "mean"])
@pytest.mark.parametrize("objective", ["token", "example"])
@pytest.mark.usefixtures("norms_in_float64")
def test_information_from_training_is_that_of_a_pass(objective: str, normalise: Any) -> None:
    task = answer_task(dtype=torch.float64)
    params = noisy(task)
    found = fit(task, params, [BATCHES[:1]], options(objective=objective), Key(0), collect=Collect(traces=True, normalise=normalise))
    passed = fisher_pass(task, params, BATCHES[:1], normalise=normalise)
    assert found.traces is not None and found.neurons is not None
    torch.testing.assert_close(found.traces, passed.trace)
    for name, rows in passed.neurons.rows.items():
        torch.testing.assert_close(found.neurons.rows[name], rows)
