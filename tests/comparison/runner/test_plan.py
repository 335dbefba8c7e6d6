"""Which runs there are, what is done, and which is next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.plan import Clock, Held, Job, job, look, move_aside, units
from fibecfed.config import to_toml
from fibecfed.core.errors import UserError
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import CATALOGUE


def test_a_runs_configuration_is_the_base_under_the_task_under_the_method(
    compared: Callable[..., ComparisonOptions], tmp_path: Path
) -> None:
    over = ("task.reviews.training.batch_size=2", "method.lora.training.batch_size=3", "method.lora.method.finetune=true")
    both = compared("base.training.batch_size=1", *over)
    fibecfed, lora = (job(both, tmp_path, "reviews", method, 4).config for method in ("fibecfed", "lora"))
    assert (fibecfed.training.batch_size, lora.training.batch_size) == (2, 3)
    assert lora.method.model_dump()["finetune"] is True and fibecfed.method.model_dump()["finetune"] == "validated" and lora.seed == 4
    assert lora.training.learning_rate == TrainingOptions().learning_rate  # as that of a single run


def test_the_learning_rate_is_the_tuned_one_or_the_one_given_and_while_it_is_sought_that_of_the_paper(
    compared: Callable[..., ComparisonOptions], tmp_path: Path
) -> None:
    given = compared("base.training.learning_rate=0.25")
    assert job(given, tmp_path, "reviews", "lora", 0).config.training.learning_rate == 0.25
    trial = job(compared(), tmp_path, "reviews", "lora", 0, {"training.learning_rate": 0.125}, "0.125")
    sought = job(compared("tuning.trials=3"), tmp_path, "reviews", "lora", 0)
    assert sought.config.training.learning_rate == CATALOGUE["lora"].learning_rate
    assert trial.config.training.learning_rate == 0.125 and trial.folder == tmp_path / "tuning/reviews/lora/0.125"
    assert job(compared(), tmp_path, "reviews", "lora", 3).folder == tmp_path / "runs/reviews/lora/3"


def test_a_table_of_a_method_can_be_a_variant_of_another(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    both = compared("methods=fibecfed,masks", "method.masks.method.kind=fibecfed", "method.masks.method.preset=paper")
    plain, variant = (job(both, tmp_path, "reviews", method, 0) for method in both.methods)
    assert variant.folder.parent.name == "masks" and both.kind("masks") == "fibecfed"
    assert (plain.config.method.neurons.rule, variant.config.method.neurons.rule) == ("all", "share")  # pyright: ignore[reportAttributeAccessIssue]


def begun(one: Job) -> None:
    one.folder.mkdir(parents=True)
    (one.folder / "config.toml").write_text(to_toml(one.config))


def test_what_is_done_is_known_by_its_summary_and_its_whole_records(
    compared: Callable[..., ComparisonOptions], finished: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    nothing, half, whole, odd = (job(compared(), tmp_path, "reviews", "lora", seed) for seed in range(4))
    begun(half)
    summary = finished(whole)
    assert look(nothing) == look(half) == Held() and look(whole) == Held(summary)
    finished(odd)
    for other, sentence in (
        ({"scores": {}}, "got a summary without seconds, evaluation"),
        ({**summary, "seconds": None}, "seconds: got nothing, expected a valid number"),
        ([], "a summary: got [], expected a table"),
        (None, "a summary: got nothing, expected a table"),
    ):
        (odd.folder / "summary.json").write_text(json.dumps(other))
        assert look(odd) == Held(damaged=f"{odd.folder}/summary.json, line 1: {sentence}")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("records.jsonl", lambda text: text[:-40], "records.jsonl, line 3: not JSON"),
        ("records.jsonl", lambda text: text[: text.rindex("\n{") + 1], "records.jsonl, line 2: got the end after 1 round,"),
        ("records.jsonl", lambda text: text.replace('"seed":0', '"seed":1', 1), "records.jsonl, line 1: the records of another run"),
        ("records.jsonl", None, "got no records.jsonl beside summary.json"),
        ("config.toml", None, "got no config.toml beside records.jsonl and summary.json"),
        ("summary.json", lambda text: "", "summary.json, line 1: not JSON"),
        ("summary.json", lambda text: '{"seconds":\n 3', "summary.json, line 2: not JSON"),
    ],
)
def test_a_finished_run_that_is_damaged_does_not_count_as_done(
    name: str, change: Any, reason: str, compared: Callable[..., ComparisonOptions], finished: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    one = job(compared(), tmp_path, "reviews", "lora", 0)
    finished(one)
    path = one.folder / name
    path.unlink() if change is None else path.write_text(change(path.read_text()))
    held = look(one)
    assert (held.summary, held.unusable) == (None, None) and reason in str(held.damaged) and "run it again" not in str(held.damaged)


def test_what_is_moved_aside_is_kept(
    compared: Callable[..., ComparisonOptions], finished: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    one = job(compared(), tmp_path, "reviews", "lora", 0)
    places = []
    for right in (60, 70):
        finished(one, right)
        places.append(move_aside(one))
    assert places == [tmp_path / "damaged/runs/reviews/lora/0", tmp_path / "damaged/runs/reviews/lora/0-2"]
    assert not one.folder.exists() and all((place / "records.jsonl").is_file() for place in places)


def test_a_run_of_another_comparison_is_refused_by_its_keys(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    begun(job(compared("base.federation.rounds=9"), tmp_path, "reviews", "lora", 0))
    with pytest.raises(UserError, match=r"config\.toml is a run of another comparison: federation\.rounds differ"):
        look(job(compared(), tmp_path, "reviews", "lora", 0))


def test_a_run_that_trained_other_blocks_is_not_sent_to_another_preset(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    one = job(compared(), tmp_path, "reviews", "fibecfed", 0)
    begun(one)
    file = one.folder / "config.toml"  # as of a version whose default trained every block
    file.write_text(file.read_text().replace("depth = 0.83\n", "").replace('depth_rule = "last"', 'depth_rule = "fisher"'))
    with pytest.raises(UserError, match=r"method\.depth, method\.depth_rule differ; set them back, move"):
        look(one)


def test_a_run_whose_data_were_moved_counts_as_done_and_its_old_place_is_said(
    compared: Callable[..., ComparisonOptions], finished: Callable[..., dict[str, Any]], inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    before = tmp_path / "old/reviews.csv"
    before.write_text((inputs / "reviews.csv").read_text())
    old = job(compared(f"task.reviews.data.path={before}"), tmp_path, "reviews", "lora", 0)
    summary = finished(old)
    before.unlink()
    one = job(compared(), tmp_path, "reviews", "lora", 0)
    assert look(one) == Held(summary, moved=(f"data.path was {before}, now {inputs / 'reviews.csv'}",))
    (old.folder / "config.toml").write_text((old.folder / "config.toml").read_text().replace("old/reviews.csv", "old/others.csv"))
    with pytest.raises(UserError, match=r"config\.toml is a run of another comparison: data\.path differ"):
        look(one)


def test_a_run_that_was_tracked_otherwise_counts_as_done(
    compared: Callable[..., ComparisonOptions], finished: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    summary = finished(job(compared('base.tracking=["tensorboard"]'), tmp_path, "reviews", "lora", 0))
    assert look(job(compared(), tmp_path, "reviews", "lora", 0)) == Held(summary)


def test_the_cheapest_run_is_next_by_its_size_then_by_the_seconds_of_its_task(
    compared: Callable[..., ComparisonOptions], tmp_path: Path
) -> None:
    long = compared("tasks=sst2,rte", "base.data.max_train=500")
    sst2, rte = (job(long, tmp_path, task, "lora", 0) for task in long.tasks)
    assert units(rte.config) == 2 * units(sst2.config) == 500 * (2 / 4) * 2 * 2 * 128
    clock = Clock()
    assert clock.seconds(rte) is None and clock.cheapest([rte, sst2]) is sst2
    took = {"seconds": 90.0, "evaluation": {"seconds": 10.0}}
    clock.learn(sst2, took)
    assert clock.seconds(sst2) == pytest.approx(100) and clock.seconds(rte) == pytest.approx(200)
    clock.learn(rte, {"seconds": 1.0, "evaluation": {"seconds": 1.0}})
    other = job(long, tmp_path, "rte", "fibecfed", 0)
    assert clock.seconds(other) == pytest.approx(2) and clock.cheapest([sst2, other]) is other
