"""The same trials for every method, the best by validation, one more step where it is at an edge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import made_runs
import pytest

from fibecfed.comparison.runner.options import ComparisonOptions, TuningOptions
from fibecfed.comparison.runner.tuning import (
    best,
    beyond,
    choose,
    fixed,
    grid,
    has_diverged,
    is_tuned,
    label,
    left_open,
    metric_of,
    rates,
    read_tuning,
    trial,
    validation_score,
    worth,
    write_tuning,
)
from fibecfed.core.errors import UserError
from fibecfed.core.metrics import METRICS
from fibecfed.methods.catalogue import CATALOGUE


def test_every_method_gets_the_same_steps_around_the_rate_that_a_run_of_it_has() -> None:
    assert grid(TuningOptions(trials=3)) == (-1, 0, 1) and grid(TuningOptions(trials=5)) == (-2, -1, 0, 1, 2)
    assert grid(TuningOptions(trials=1)) == (0,)
    for kind, row in CATALOGUE.items():
        found = [rates(kind, step, 3.0)["training.learning_rate"] for step in (-1, 0, 1)]
        assert found == pytest.approx([row.learning_rate / 3, row.learning_rate, row.learning_rate * 3], rel=0.005)
    assert label(rates("lora", -1, 3.0)) == "0.000667"


def test_a_server_rate_keeps_the_size_of_the_step_or_its_proportion_to_the_clients_as_the_catalogue_says() -> None:
    with_server_rate = {kind for kind in CATALOGUE if "method.server_learning_rate" in rates(kind, 0, 3.0)}
    assert {kind: CATALOGUE[kind].server_rate_power for kind in with_server_rate} == {"fedpeptao": 1, "moms-adamw": -1}
    for kind in with_server_rate:
        low, middle, high = ({key.rsplit(".")[-2]: value for key, value in rates(kind, step, 3.0).items()} for step in (-1, 0, 1))
        for one in (low, high):
            factor = one["training"] / middle["training"]
            assert one["method"] / middle["method"] == pytest.approx(factor ** CATALOGUE[kind].server_rate_power, rel=0.02)


def test_the_best_is_the_highest_and_of_equals_the_papers() -> None:
    assert best({-1: 0.5, 0: 0.6, 1: 0.7}) == 1
    assert best({-1: 0.7, 0: 0.7, 1: 0.7}) == 0
    assert best({-1: 0.7, 0: 0.6, 1: 0.7}) == -1


def test_one_more_step_is_tried_beyond_an_edge_only() -> None:
    assert beyond({-1: 0.5, 0: 0.6, 1: 0.7}) == 2
    assert beyond({-1: 0.8, 0: 0.6, 1: 0.7}) == -2
    assert beyond({-1: 0.5, 0: 0.6, 1: 0.5}) is None


def test_the_choice_is_by_the_mean_over_tasks_and_a_divergence_counts_against_a_rate() -> None:
    trials = (
        trial(0, {"training.learning_rate": 1.0}, {"a": 0.5, "b": 0.6}),
        trial(1, {"training.learning_rate": 3.0}, {"a": 0.9, "b": None}),
        trial(-1, {"training.learning_rate": 0.3}, {"a": 0.7, "b": 0.3}),
    )
    found = choose("paper", trials, METRICS["accuracy"])
    assert (found.step, found.rates) == (0, {"training.learning_rate": 1.0}) and [one.step for one in found.tried] == [-1, 0, 1]
    assert trials[1].score is None and trials[0].score == pytest.approx(0.55)
    lost = choose("paper", (trial(0, {"training.learning_rate": 1.0}, {"a": None}),), METRICS["accuracy"])
    assert lost.chosen is None and lost.step is None and lost.rates == {}


def test_where_a_lower_score_is_better_the_lowest_is_chosen_and_a_divergence_is_still_the_worst() -> None:
    losses = {-1: 0.9, 0: 0.4, 1: 0.2, 2: None}
    trials = tuple(trial(step, {"training.learning_rate": 3.0**step}, {"a": loss}) for step, loss in losses.items())
    assert choose("paper", trials, METRICS["loss"]).step == 1 and choose("paper", trials, METRICS["accuracy"]).step == -1
    assert beyond({step: worth(one, METRICS["loss"]) for step, one in zip(losses, trials[:3], strict=False)}) == 2


def test_a_trials_score_is_the_primary_metric_of_its_run(tmp_path: Path) -> None:
    for metric in ("accuracy", "loss", "macro_f1"):
        made_runs.write_run(tmp_path / metric, final=0.8, metric=metric, clients=6, rounds=4)
    scores = {metric: validation_score(tmp_path / metric) for metric in ("accuracy", "loss", "macro_f1")}
    assert scores["accuracy"] == pytest.approx(0.8) and scores["loss"] == pytest.approx(0.2)
    assert scores["macro_f1"] not in (None, pytest.approx(0.8))


def test_the_metric_that_rates_are_chosen_by_is_the_comparisons(compared: Callable[..., ComparisonOptions]) -> None:
    assert metric_of(compared()).name == "accuracy" and metric_of(compared("base.evaluation.metric=loss")).name == "loss"
    assert metric_of(compared("base.evaluation.metric=f1:spam")).higher_is_better


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"why": "stopped"}', '{"why": "killed"}', None])
def test_only_a_trial_that_diverged_is_not_made_again(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "failure.json").write_text(text)
    assert not has_diverged(tmp_path)
    (tmp_path / "failure.json").write_text('{"why": "diverged"}')
    assert has_diverged(tmp_path)


def test_what_was_tuned_is_read_back_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    tuned = {"lora": choose("paper", (trial(0, {"training.learning_rate": 1.0}, {"a": 0.5, "b": None}),), METRICS["accuracy"])}
    write_tuning(tmp_path, tuned)
    assert read_tuning(tmp_path) == tuned and read_tuning(tmp_path / "none") == {}
    row = json.loads((tmp_path / "tuning.json").read_text())["lora"]
    assert (row["chosen"], row["tried"][0]["rate"], row["tried"][0]["score"]) == (1.0, 1.0, None)
    (tmp_path / "tuning.json").write_text('{"methods":\n {"lora": 3}')
    with pytest.raises(UserError, match=r"tuning\.json, line 2: not what"):
        read_tuning(tmp_path)


def test_a_method_whose_table_names_its_rate_is_not_tuned(compared: Callable[..., ComparisonOptions]) -> None:
    both = compared("tuning.trials=3", "method.lora.training.learning_rate=0.25")
    assert is_tuned(both, "fibecfed") and not is_tuned(both, "lora") and not is_tuned(compared(), "fibecfed")
    assert fixed(both, "lora").rates == {"training.learning_rate": 0.25} and fixed(both, "lora").source == "given by the comparison"
    assert fixed(compared(), "lora").source == CATALOGUE["lora"].rate_source
    assert fixed(compared(), "lora").rates == {"training.learning_rate": 0.002}


def test_a_server_rate_in_a_methods_own_table_is_left_as_it_is(compared: Callable[..., ComparisonOptions]) -> None:
    both = compared("methods=moms-adamw,slow", "method.slow.method.kind=moms-adamw", "method.slow.method.server_learning_rate=0.7")
    values = rates("moms-adamw", 1, 3.0)
    assert values == {"training.learning_rate": 0.12, "method.server_learning_rate": 0.1}
    assert left_open(both, "moms-adamw", values) == values and left_open(both, "slow", values) == {"training.learning_rate": 0.12}
