"""Workers share the jobs, and whatever happens to one, the others go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workers import obedient

from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.plan import Clock, Job, job
from fibecfed.comparison.runner.pool import Pool


@pytest.fixture
def jobs(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> Callable[..., list[Job]]:
    def make(*hows: str) -> list[Job]:
        found = []
        reviews = compared().task["reviews"]
        comparison = compared().model_copy(update={"task": {f"task{n}": reviews for n in range(len(hows))}})
        for n, how in enumerate(hows):
            one = job(comparison, tmp_path, f"task{n}", "lora", 0)  # a task each, whose folder says how it ends
            one.folder.parent.mkdir(parents=True)
            (one.folder.parent / "how.txt").write_text(how)
            found.append(one)
        return found

    return make


def test_a_failure_a_kill_and_a_second_kill_do_not_stop_the_others(jobs: Callable[..., list[Job]], listener: Any) -> None:
    wanted = jobs("done", "refused", "killed-once", "killed", "done")
    with Pool(2, listener, Clock(), obedient) as pool:
        outcomes = pool.run(wanted)
        more = pool.run([])
    whys = [outcomes[one].why for one in wanted]
    assert whys == [None, "refused", None, "killed", None] and more == {}
    assert outcomes[wanted[1]].reason == "no such backbone" and "signal 9" in outcomes[wanted[3]].reason
    assert [len((one.folder.parent / "tries.txt").read_text().splitlines()) for one in wanted] == [1, 1, 2, 2, 1]
    assert len(listener.warnings) == 2 and all("tried once more" in text for text in listener.warnings)
    assert json.loads((wanted[3].folder / "failure.json").read_text())["why"] == "killed"
    assert (wanted[0].name, 1, 2) in listener.rounds


def test_a_worker_killed_at_any_byte_of_a_message_ends_nothing(jobs: Callable[..., list[Job]], listener: Any) -> None:
    wanted = jobs("killed-at-1", "killed-at-3", "killed-at-4", "killed-at-5", "killed-at-600000", "done")
    with Pool(2, listener, Clock(), obedient) as pool:
        outcomes = pool.run(wanted)
    assert [outcomes[one].why for one in wanted] == [None] * 6
    assert [len((one.folder.parent / "tries.txt").read_text().splitlines()) for one in wanted] == [2, 2, 2, 2, 2, 1]
    assert len(listener.warnings) == 5 and all("signal 9" in text for text in listener.warnings)


def test_a_worker_is_kept_for_the_next_jobs(jobs: Callable[..., list[Job]], listener: Any) -> None:
    wanted = jobs("done", "refused", "done")
    with Pool(1, listener, Clock(), obedient) as pool:
        first = pool.run(wanted[:2])
        (wanted[1].folder.parent / "how.txt").write_text("done")
        second = pool.run(wanted[1:])
    pids = {outcome.summary["pid"] for outcome in (first | second).values() if outcome.summary}
    assert len(pids) == 1
    assert not (wanted[1].folder / "failure.json").exists()  # its second attempt was no failure


def test_an_interruption_stops_the_runs_under_way(jobs: Callable[..., list[Job]], listener: Any) -> None:
    wanted = jobs("slow", "slow")

    def interrupt(one: Job, done: int, of: int, score: float | None = None) -> None:
        listener.rounds.append(one)
        if len(listener.rounds) == 2:
            raise KeyboardInterrupt

    listener.round = interrupt
    with pytest.raises(KeyboardInterrupt), Pool(2, listener, Clock(), obedient) as pool:
        pool.run(wanted)
    assert all((one.folder.parent / "stopped.txt").exists() for one in wanted)
    assert not any((one.folder / "failure.json").exists() for one in wanted)


def test_workers_take_turns_at_the_gpus_and_leave_this_process_its_own(
    jobs: Callable[..., list[Job]], listener: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    wanted = jobs(*["brief"] * 8)
    with Pool(4, listener, Clock(), obedient, gpus=["1", "3"]) as pool:
        outcomes = pool.run(wanted)
    used = {(summary["gpu"], summary["pid"]) for summary in (outcomes[one].summary for one in wanted) if summary}
    assert sorted(gpu for gpu, _ in used) == ["1", "1", "3", "3"]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
