"""Runs on disk whose rounds end before everybody has answered: the same bits whatever stops them, and what users read of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from resumed import as_if_nothing_had_happened
from saved import interrupted_at, run_config

from fibecfed import session
from fibecfed.build import prepare
from fibecfed.check import plan_traffic
from fibecfed.comparison.report.conditions import conditions
from fibecfed.comparison.report.results import ComparisonResults
from fibecfed.comparison.report.runs import read_run
from fibecfed.config import Config, to_toml
from fibecfed.core.clock import Network
from fibecfed.core.errors import UserError
from fibecfed.core.process import cores
from fibecfed.core.records import RoundRecord, read

SLOW = {"speeds": {"tokens_per_s": 1000.0, "factors": [3.0, 1.0, 1.0, 1.5, 1.0, 6.0]}, "links": {"up_mbit": 1.0, "latency_ms": 10.0}}
SHAPES = {
    "buffered": {"schedule": "buffered", "buffer_size": 2, **SLOW},
    "over-select": {"schedule": "over-select", "over_selection": 1.4, **SLOW},
}


def configured(inputs: Path, name: str, **more: Any) -> Config:
    federation = {"clients": 6, "clients_per_round": 3, "rounds": 6, "alpha": 50.0, **SHAPES[name]}
    return run_config(inputs, federation=federation, method={"layers": {"importance_clients": 2}}, **more)


def rounds(out: Path) -> list[RoundRecord]:
    return [record for record in read(out / "records.jsonl")[1] if isinstance(record, RoundRecord)]


@pytest.fixture(scope="module")
def wholes(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By schedule: folder, summary and no events of a run that nothing stopped."""

    @cache
    def make(name: str) -> tuple[Path, dict[str, Any], list[Any]]:
        out = tmp_path_factory.mktemp(name) / "run"
        return out, session.start(configured(inputs, name), out), []

    return make


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("number", [4, 6, 8, 11])
def test_a_run_that_is_stopped_with_answers_under_way_ends_with_the_same_bits(
    name: str, number: int, inputs: Path, wholes: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        session.start(configured(inputs, name), tmp_path, interrupted_at(number))
    summary, _ = session.resume(tmp_path)
    assert as_if_nothing_had_happened(tmp_path, summary, wholes(name))


def test_answers_are_late_and_clients_dropped_in_these_runs(wholes: Any) -> None:
    """Else the tests above would show nothing."""
    late = [record for record in rounds(wholes("buffered")[0]) if any(record.staleness.values())]
    dropped = [record for record in rounds(wholes("over-select")[0]) if record.dropped]
    assert late and dropped
    assert any(set(record.dropped) & record.bytes_up.keys() for record in dropped)
    for record in (*late, *dropped):
        assert sum(record.bytes_up.values()) == sum(record.fields_up.values())


def test_a_checkpoint_interval_of_several_rounds_loses_nothing(inputs: Path, wholes: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        session.start(configured(inputs, "buffered", resources={"checkpoint_every": 3}), tmp_path, interrupted_at(9))
    summary, _ = session.resume(tmp_path)
    assert as_if_nothing_had_happened(tmp_path, summary, wholes("buffered"))


@pytest.mark.skipif(sys.platform != "linux" or cores() < 2, reason="needs two cores")
def test_worker_processes_change_no_bit_and_no_time(inputs: Path, wholes: Any, tmp_path: Path) -> None:
    summary = session.start(configured(inputs, "buffered", resources={"workers": 2}), tmp_path / "run")
    assert as_if_nothing_had_happened(tmp_path / "run", summary, wholes("buffered"))


KILLED = """
import os, signal, sys
from pathlib import Path
from fibecfed import session
from fibecfed.config import load
from fibecfed.engine.checkpoint import Checkpoints
save, seen = Checkpoints.save, []
def killed(self, number, *more):
    path = save(self, number, *more)
    if number == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return path
Checkpoints.save = killed
session.start(load(Path(sys.argv[1])).config, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [3, 5])
def test_a_run_that_is_killed_with_answers_under_way_ends_with_the_same_bits(
    number: int, inputs: Path, wholes: Any, tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(to_toml(configured(inputs, "buffered")), encoding="utf-8")
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run.toml"), str(tmp_path / "out"), str(number)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()[-2000:]
    summary, _ = session.resume(tmp_path / "out")
    assert as_if_nothing_had_happened(tmp_path / "out", summary, wholes("buffered"))


@pytest.mark.parametrize("name", SHAPES)
def test_the_virtual_time_of_a_run_is_in_its_summary_and_in_the_report(name: str, wholes: Any) -> None:
    out, summary, _ = wholes(name)
    found = [record.virtual_s for record in rounds(out)]
    run = read_run(out, Network(tokens_per_s=1.0))
    assert found == sorted(found) and run.last.seconds == found[-1] == summary["virtual_s"]  # pyright: ignore[reportArgumentType]
    text = f", {name}, speeds: factors given, tokens_per_s 1000, links: up_mbit 1, latency_ms 10"
    assert run.conditions["federation"].endswith(text)
    told = dict(conditions(ComparisonResults("", (run,), Network(tokens_per_s=1.0))))
    assert told["Seconds of clients"].startswith("virtual time") and told["Network for modelled time"].startswith("the link of each client")


def test_a_method_that_cannot_serve_a_schedule_is_rejected_before_anything_is_written(inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, federation={"schedule": "buffered"}, method={"kind": "hetlora"})
    with pytest.raises(UserError, match="which the method hetlora cannot be run with"):
        session.start(config, tmp_path / "out")
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_the_default_of_fibecfed_is_not_buffered_and_says_what_is(inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, federation={"schedule": "buffered"}, method={"preset": None})
    with pytest.raises(UserError, match=r'set "synchronous" or "over-select", or `method.preset` = "paper"'):
        session.start(config, tmp_path / "out")


def test_a_factor_for_each_client_or_a_sentence(inputs: Path, tmp_path: Path) -> None:
    config = run_config(inputs, federation={"speeds": {"factors": [1.0, 2.0]}})
    with pytest.raises(UserError, match=r"federation.speeds.factors: got 2, expected 4, one for each client"):
        session.start(config, tmp_path / "out")


def test_check_counts_the_messages_of_a_schedule(inputs: Path) -> None:
    plans = {name: plan_traffic(prepare(configured(inputs, name), trial=True))[-1] for name in SHAPES}
    assert plans["over-select"].cohort == 5 and plans["over-select"].num_rounds == 6
    each = plans["buffered"].down.most
    assert plans["buffered"].total_down.most == (3 + 5 * 2) * each
