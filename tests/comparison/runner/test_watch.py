"""What a user sees while a comparison is made."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fibecfed.comparison.runner.command import show_results
from fibecfed.comparison.runner.conduct import Results
from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.plan import Clock, job
from fibecfed.comparison.runner.pool import Outcome
from fibecfed.comparison.runner.watch import Watch

HOSTILE, WRITTEN_OUT = "evil\x1b]0;owned\a\u202e", r"evil\x1b]0;owned\x07\u202e"
SUMMARY = {"scores": {"pooled_personalised": 0.815}, "seconds": 60.0, "evaluation": {"seconds": 40.0}}


def test_a_log_has_a_line_for_each_run_that_ends_with_what_is_left(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    one, two, three, four = (job(compared(), tmp_path, "reviews", "lora", seed) for seed in range(4))
    console, clock = Console(file=io.StringIO(), width=200), Clock()
    with Watch(console, clock, workers=2) as watch:
        watch.started(one)
        watch.started(two)
        watch.tick([three, four])
        watch.round(two, 1, 2)
        clock.learn(one, SUMMARY)
        watch.ended(one, Outcome(SUMMARY))
        watch.warned(two, "an older checkpoint is used instead")
        watch.ended(two, Outcome(None, "diverged", "the loss is nan"))
    lines = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    # half of the second, and two more, at 100 s each, on two workers
    assert lines[0].startswith("reviews/lora/seed 0: personalised 81.5 %") and lines[0].endswith("(1/4 done, 2 min 5 s left)")
    assert lines[1].startswith("warning: reviews/lora/seed 1: an older checkpoint is used instead")
    assert lines[2].startswith("reviews/lora/seed 1: failed: the loss is nan (2/4 done, 1 min 40 s left)")


def test_what_files_say_steers_no_terminal(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    one = replace(job(compared(), tmp_path, "reviews", "lora", 0), task=HOSTILE)
    log, live = io.StringIO(), io.StringIO()
    for out in (log, live):
        console = Console(file=out, width=200, force_terminal=out is live)
        with Watch(console, Clock(), workers=1) as watch:
            watch.started(one)
            watch.tick([])
            watch.warned(one, HOSTILE)
            watch.ended(one, Outcome(None, "failed", HOSTILE))
        # nothing can be read there, so that the reasons are all that is shown
        show_results(console, Results(done={}, failed={}, rejected={}, unusable={one: HOSTILE}, new=0), tmp_path / HOSTILE, 1.0)
        text = out.getvalue()
        assert text.count(WRITTEN_OUT) >= 6 and "\x1b]" not in text and "\a" not in text and "\u202e" not in text


def test_a_run_that_begins_before_the_next_tick_is_counted_once(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    one, two = (job(compared(), tmp_path, "reviews", "lora", seed) for seed in range(2))
    console = Console(file=io.StringIO(), width=200)
    with Watch(console, Clock(), workers=2) as watch:
        watch.started(one)
        watch.tick([two])
        watch.started(two)
        watch.ended(one, Outcome(SUMMARY))
    assert "(1/2 done" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_trials_are_counted_apart_from_the_runs_that_follow(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    first, second = (job(compared(), tmp_path, "reviews", "lora", 0, {"training.learning_rate": rate}, f"{rate}") for rate in (0.1, 0.2))
    run = job(compared(), tmp_path, "reviews", "lora", 0)
    console, clock = Console(file=io.StringIO(), width=200), Clock()
    with Watch(console, clock, workers=1) as watch:
        watch.started(first)
        watch.tick([second])
        clock.learn(first, SUMMARY)
        watch.ended(first, Outcome(SUMMARY))
        watch.started(second)
        watch.tick([])
        watch.ended(second, Outcome(SUMMARY))
        watch.started(run)
        watch.ended(run, Outcome(SUMMARY))
    states = [line.rpartition("(")[2] for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]
    assert states == [
        "1/2 of the trials done, 1 min 40 s left for them)",
        "2/2 of the trials done, 0.0 s left for them)",
        "1/1 done, 0.0 s left)",
    ]


def test_a_terminal_shows_the_running_jobs_with_their_round(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    one = job(compared(), tmp_path, "reviews", "lora", 0)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Watch(console, Clock(), workers=1) as watch:
        watch.started(one)
        watch.round(one, 3, 7, "62.5 %")
        watch.round(one, 4, 7)  # the score of the last evaluation stays
        watch.tick([])
        assert watch._live is not None
        watch._live.refresh()
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "0/1 done" in text and "reviews/lora/seed 0: round 4/7, personalised 62.5 %" in text
