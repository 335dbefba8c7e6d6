"""Each tracker for real, where it is installed: every step once, with the values of the records, whatever stopped the run between."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from saved import interrupted_at, run_config, save_inputs

from fibecfed import session
from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.tracking.contract import TrackedRun
from fibecfed.tracking.sinks import SINKS

Found = dict[str, list[tuple[int, float]]]


def tensorboard(out: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def mlflow(out: Path) -> Found:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED" and run.data.params["model.rank"] == "8"
    names = run.data.metrics.keys() - {"step"}
    return {name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)] for name in names}


def trackio(out: Path) -> Found:
    read_in_a_process_of_its_own = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as s; "
        "(run,) = s.get_run_records('fibecfed'); "
        "print(json.dumps(s.get_logs('fibecfed', run['name'], run_id=run['id'])))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(out / "trackio")}
    told = subprocess.run(
        [sys.executable, "-c", read_in_a_process_of_its_own], env=environment, capture_output=True, text=True, check=True
    ).stdout
    found: Found = {}
    for row in json.loads(told.splitlines()[-1]):
        for name in row.keys() - {"step", "timestamp"}:
            found.setdefault(name, []).append((row["step"], row[name]))
    return found


def wandb(out: Path) -> Found:
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    found: Found = {}
    files = sorted((out / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # under one id: `wandb sync` makes one run of them
    for file in files:
        for data in _log_records(file.read_bytes()[7:]):
            record = Record.FromString(data)
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name in row.keys() - {"_step", "_timestamp", "_runtime"}:
                found.setdefault(name, []).append((record.history.step.num, row[name]))
    return found


def _log_records(log: bytes, at: int = 7) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, the first `at` bytes of which are gone."""
    held, place = b"", 0
    while place + 7 <= len(log):
        left = 2**15 - (place + at) % 2**15
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", log[place : place + 7])
        held += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""


READERS: dict[str, Callable[[Path], Found]] = {"tensorboard": tensorboard, "mlflow": mlflow, "trackio": trackio, "wandb": wandb}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    if any(importlib.util.find_spec(package) is None for package in SINKS[request.param].needs):
        pytest.skip(f"{request.param} is not installed here")
    return request.param


def as_recorded(out: Path, found: Found) -> None:
    """Every step once and in order, with the values that the records have."""
    _, records = read(out / "records.jsonl")
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    scored = [record for record in records if isinstance(record, EvalRecord)]
    for values in found.values():
        steps = [step for step, _ in values]
        assert steps == sorted(set(steps))
    assert found["bytes/up"] == [(record.number + 1, sum(record.bytes_up.values())) for record in rounds]
    assert [step for step, _ in found["train/loss"]] == [
        record.number + 1 for record in rounds if record.steps and sum(record.steps.values())
    ]
    assert [step for step, _ in found["scores/pooled_personalised"]] == [record.rounds for record in scored]
    for (_, loss), record in zip(found["scores/metrics/global/loss"], scored, strict=True):
        assert math.isclose(loss, METRICS["loss"].of(record.server), rel_tol=1e-6)
    layers = [record.server["global_layers"] for record in rounds if record.server]
    assert layers and found["selected/global_layers"][0][1] == len(layers[0])


def test_a_run_is_written_once_whatever_stops_it(name: str, inputs: Path, tmp_path: Path) -> None:
    for number in (3, 4):  # in the first and then in the second round of tuning
        folder = tmp_path / str(number)
        with pytest.raises(KeyboardInterrupt):
            session.start(run_config(inputs, tracking=[name]), folder, interrupted_at(number))
        session.resume(folder)
        as_recorded(folder, READERS[name](folder))
    assert not (tmp_path / "3" / "mlruns").exists()


def test_a_process_that_is_killed_leaves_what_a_resumed_one_completes(name: str, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
from pathlib import Path
from saved import run_config
from fibecfed import session
from fibecfed.engine.events import RoundDone
seen = []
def listen(event):
    seen.append(isinstance(event, RoundDone))
    if sum(seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
session.start(run_config(Path({str(inputs)!r}), tracking=[{name!r}], resources={{"checkpoint_every": 2}}), Path({str(out)!r}), listen)
"""
    own = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # else it shares a helper process with this one
    assert subprocess.run([sys.executable, "-c", program], env=own, check=False, capture_output=True).returncode == -9
    session.resume(out)
    as_recorded(out, READERS[name](out))


def test_event_files_of_one_second_are_not_made(tmp_path: Path) -> None:
    """Their names would differ by the process alone, and TensorBoard would read a resumed process before the killed one."""
    pytest.importorskip("tensorboard")
    from fibecfed.tracking import to_tensorboard

    folder = tmp_path / "tensorboard"
    folder.mkdir()
    (folder / f"events.out.tfevents.{int(time.time()):010d}.zzz.99999.0").touch()
    to_tensorboard.start(TrackedRun(tmp_path, {}, 0)).close(finished=True)
    first, second = sorted(folder.iterdir())
    assert first.name.endswith("zzz.99999.0") and first.name.split(".")[3] < second.name.split(".")[3]


def test_one_that_joins_at_a_resumption_has_the_rounds_before(name: str, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs), tmp_path, interrupted_at(6))
    session.resume(tmp_path, overrides=[f"tracking={name}"])
    as_recorded(tmp_path, READERS[name](tmp_path))


def test_it_changes_no_bit_prints_nothing_and_looks_up_no_host(
    name: str, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = session.start(run_config(inputs), tmp_path / "plain")
    capfd.readouterr()
    sought: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: sought.append(arguments) or [])
    tracked = session.start(run_config(inputs, tracking=[name], tracking_by_client=True), tmp_path / "tracked")
    assert capfd.readouterr() == ("", "") and sought == []
    assert tracked["adapters"] == plain["adapters"] and tracked["scores"] == plain["scores"]
    found = READERS[name](tmp_path / "tracked")
    assert any(key.startswith("client/") and key.endswith("/loss") for key in found)
