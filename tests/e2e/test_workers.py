"""Runs whose clients are computed by several processes: those of one process, to the last bit, whatever happens to the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from resumed import as_if_nothing_had_happened, facts
from saved import adapter_files, interrupted_at, run_config, write_reviews

from fibecfed import session
from fibecfed.build import prepare
from fibecfed.config import from_table
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.engine import worker_count, workers
from fibecfed.engine.events import Warned
from fibecfed.engine.runtime import ClientRuntime, NotFinite

HERE = os.getpid()


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_count, "cores", lambda: 4)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that were started."""
    pids = list[int]()

    class Noted(workers.Worker):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            pids.append(self.pid)

    monkeypatch.setattr(workers, "Worker", Noted)
    return pids


def config(inputs: Path, number: int | None, **tables: Any) -> Any:
    return run_config(inputs, **{"resources": {"workers": number, **tables.pop("resources", {})}, **tables})


@pytest.mark.parametrize("number", [2, 3])
def test_records_scores_states_and_adapters_are_those_of_one_process(
    number: int, inputs: Path, whole: Any, tmp_path: Path, used: list[int]
) -> None:
    summary = session.start(config(inputs, number), tmp_path)
    assert len(used) == number
    assert summary["adapters"] == whole[1]["adapters"] and adapter_files(tmp_path) == adapter_files(whole[0])
    assert facts(tmp_path) == facts(whole[0])
    here, there = (session.Checkpoints(folder / "checkpoints", 2).load_latest() for folder in (tmp_path, whole[0]))
    assert here is not None and there is not None and here.server == there.server and here.where.keys() == there.where.keys()


def test_the_seconds_of_a_round_are_those_of_all_processes(inputs: Path, tmp_path: Path) -> None:
    session.start(config(inputs, 2), tmp_path)
    for record in read(tmp_path / "records.jsonl")[1]:
        if isinstance(record, RoundRecord):
            assert record.cpu_s > 0.9 * sum(record.compute_s.values()) and record.compute_clock == "cpu"


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2)])
def test_an_interrupted_run_goes_on_with_another_number(
    before: int, after: int, inputs: Path, whole: Any, tmp_path: Path, used: list[int]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        session.start(config(inputs, before), tmp_path, interrupted_at(6))
    for pid in used:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    summary, _ = session.resume(tmp_path, overrides=[f"resources.workers={after}"])
    assert summary["adapters"] == whole[1]["adapters"] and facts(tmp_path) == facts(whole[0])


def dying(monkeypatch: pytest.MonkeyPatch, part: str, mark: Path) -> None:
    """The first process that is asked for a client in `part` is killed."""
    compute = getattr(ClientRuntime, part)

    def die(self: Any, *args: Any) -> Any:
        if os.getpid() != HERE:
            with contextlib.suppress(FileExistsError):
                mark.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return compute(self, *args)

    monkeypatch.setattr(ClientRuntime, part, die)


@pytest.mark.parametrize("part", ["train", "evaluate"])
def test_a_run_one_of_whose_processes_is_killed_ends_with_the_same_bits_and_says_so(
    part: str, inputs: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, part, tmp_path / "mark")
    events: list[Any] = []
    summary = session.start(config(inputs, 2), tmp_path / "run", events.append)
    assert summary["adapters"] == whole[1]["adapters"] and adapter_files(tmp_path / "run") == adapter_files(whole[0])
    records = read(tmp_path / "run" / "records.jsonl")[1]
    said = [record for record in records if record.recomputed]
    assert len(said) == 1 and isinstance(said[0], RoundRecord if part == "train" else EvalRecord) and len(said[0].recomputed) == 1
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    assert f"client {said[0].recomputed[0]} was computed again in " in warning
    lines = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert sum("recomputed" in line for line in lines) == 1  # nothing is written where there is nothing to say


def test_processes_that_die_again_and_again_stop_a_run_that_can_be_resumed(
    inputs: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ClientRuntime.train

    def die(self: Any, client: Any, blob: Any, now: Any) -> Any:
        if os.getpid() != HERE and now.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(self, client, blob, now)

    with monkeypatch.context() as patch:
        patch.setattr(ClientRuntime, "train", die)
        with pytest.raises(RunFailed, match=r"tune round 1: 3 worker processes .* Lower resources\.workers.* Resume with: fibecfed resume"):
            session.start(config(inputs, 2), tmp_path)
    summary, _ = session.resume(tmp_path, overrides=["resources.workers=1"])
    assert summary["adapters"] == whole[1]["adapters"] and facts(tmp_path) == facts(whole[0])


def test_failing_clients_are_dropped_as_in_one_process(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ClientRuntime.train

    def fail(self: Any, client: Any, blob: Any, now: Any) -> Any:
        if int(client) == now.number % 4:
            raise NotFinite(f"client {client}: not finite")
        return train(self, client, blob, now)

    monkeypatch.setattr(ClientRuntime, "train", fail)
    tables: dict[str, Any] = {"federation": {"on_failure": "drop", "round_attempts": 3, "quorum": 0.6, "clients_per_round": 3}}
    for number in (1, 2):
        session.start(config(inputs, number, method={"kind": "lora", "finetune": True}, **tables), tmp_path / str(number))
    assert facts(tmp_path / "1") == facts(tmp_path / "2") and adapter_files(tmp_path / "1") == adapter_files(tmp_path / "2")
    assert any(record.failures for record in read(tmp_path / "2" / "records.jsonl")[1])


def test_the_activation_cache_is_shared_out(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: dict[str, Any] = {"method": {"kind": "fibecfed", "depth": 1, "depth_rule": "last"}}
    budgets = tmp_path / "budgets"

    def spied(self: Any, budget: int) -> Any:
        with budgets.open("a") as file:
            file.write(f"{os.getpid() == HERE} {budget}\n")
        return keep(self, budget)

    kind = type(prepare(config(inputs, 1)).task)
    keep = kind.keep_activations
    monkeypatch.setattr(kind, "keep_activations", spied)
    session.start(config(inputs, 2, resources={"activation_cache_mb": 8}, **tables), tmp_path / "two")
    session.start(config(inputs, 1, **tables), tmp_path / "one")
    assert facts(tmp_path / "two") == facts(tmp_path / "one")
    assert budgets.read_text().splitlines() == ["True 8388608", "False 4194304", "False 4194304"]


def test_a_cache_whose_parts_hold_no_batch_is_a_sentence(inputs: Path, tmp_path: Path) -> None:
    write_reviews(tmp_path / "many.csv", 600)
    more: dict[str, Any] = {"method": {"kind": "fibecfed", "depth": 1, "depth_rule": "last"}, "data": {"path": str(tmp_path / "many.csv")}}
    wanted = config(inputs, 4, resources={"activation_cache_mb": 1}, training={"batch_size": 128}, **more)
    with pytest.raises(
        UserError, match=r"resources\.activation_cache_mb: got 1, expected at least \d, .* 4 times, for `resources\.workers` = 4"
    ):
        session.start(wanted, tmp_path / "run")


def test_more_workers_than_cores_are_a_sentence_before_anything_is_written(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resources\.workers: got 5, expected at most 4"):
        session.start(config(inputs, 5), tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_across_machines_there_are_none(inputs: Path) -> None:
    table = run_config(inputs).model_dump() | {
        "data": {"labels": ["bad", "good"]},
        "federation": {"partition": "machines", "clients": 3},
        "resources": {"workers": 2},
    }
    with pytest.raises(UserError, match=r'resources\.workers: got 2 with `federation\.partition` = "machines"'):
        from_table(table)


def test_a_short_run_starts_none_by_itself_and_a_longer_one_does(
    inputs: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: list[int]
) -> None:
    monkeypatch.setattr(workers, "PAYS_AFTER_S", 1000.0)
    session.start(config(inputs, None), tmp_path / "short")
    assert not used
    monkeypatch.setattr(workers, "PAYS_AFTER_S", 0.1)
    monkeypatch.setattr(workers, "PAYS_FROM_S", 0.0)
    summary = session.start(config(inputs, None), tmp_path / "long")
    assert used and as_if_nothing_had_happened(tmp_path / "long", summary, whole)
