"""What is still to be made of a comparison: what its folder holds is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fibecfed.comparison.runner.conduct import write_down
from fibecfed.comparison.runner.left import left
from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.plan import Job, job

Make = Callable[..., ComparisonOptions]


def done(one: Job) -> None:
    """A run has a summary once it is finished."""
    one.folder.mkdir(parents=True)
    (one.folder / "summary.json").write_text("{}")


def test_all_of_it_where_there_is_no_folder(compared: Make, tmp_path: Path) -> None:
    found = left(compared("seeds=0,1"), tmp_path / "none")
    assert dict(found.runs) == {("reviews", "fibecfed"): 2, ("reviews", "lora"): 2}
    assert not found.trials.total() and not found.more_trials.total() and not found.done


def test_runs_that_are_done_are_not_counted(compared: Make, tmp_path: Path) -> None:
    comparison = compared("seeds=0,1")
    write_down(comparison, tmp_path)
    done(job(comparison, tmp_path, "reviews", "lora", 1))
    found = left(comparison, tmp_path)
    assert (found.done, found.runs["reviews", "lora"], found.runs["reviews", "fibecfed"]) == (1, 1, 2)


def test_the_folder_of_another_comparison_counts_for_nothing(compared: Make, tmp_path: Path) -> None:
    comparison = compared()
    write_down(comparison, tmp_path)
    done(job(comparison, tmp_path, "reviews", "lora", 0))
    assert left(compared("base.federation.rounds=3"), tmp_path).done == 0


def test_trials_come_before_runs_and_one_of_them_is_a_run(compared: Make, tmp_path: Path) -> None:
    comparison = compared("tuning.trials=3", "seeds=0,1")
    write_down(comparison, tmp_path)
    found = left(comparison, tmp_path)
    assert dict(found.trials) == {("reviews", "fibecfed"): 3, ("reviews", "lora"): 3}
    assert dict(found.more_trials) == {("reviews", "fibecfed"): 1, ("reviews", "lora"): 1}
    assert dict(found.runs) == {("reviews", "fibecfed"): 1, ("reviews", "lora"): 1}  # that with seed 0 is one of the trials
    done(job(comparison, tmp_path, "reviews", "lora", 0, {"training.learning_rate": 2e-3}, "0.002"))
    assert left(comparison, tmp_path).trials["reviews", "lora"] == 2
    own = compared("tuning.trials=3", "method.lora.training.learning_rate=0.1")
    assert left(own, tmp_path / "none").trials["reviews", "lora"] == 0
