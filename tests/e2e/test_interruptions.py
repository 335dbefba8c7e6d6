"""Whatever stops a run, it goes on to the adapters of the one that nothing stopped, bit for bit."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from draws import drawn
from resumed import as_if_nothing_had_happened, begun
from safetensors import SafetensorError
from saved import run_config

from fibecfed import provenance, saving, session
from fibecfed.config import to_toml
from fibecfed.core import files
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.records import RoundRecord, read
from fibecfed.engine import log, packs
from fibecfed.engine.events import Evaluated, Finished, RoundDone, Started, Warned


def test_a_finished_run_says_so_and_nothing_is_written(whole: Any) -> None:
    out, summary, _ = whole
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert session.resume(out) == (summary, True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


@pytest.mark.parametrize("number", [0, 1, 3, 4, 6, 8, 10])
def test_ctrl_c_at_any_event_leaves_a_run_that_goes_on(number: int, inputs: Path, whole: Any, tmp_path: Path) -> None:
    assert len(whole[2]) == 12
    begun(inputs, tmp_path, number)
    assert not (tmp_path / "summary.json").exists()
    summary, was_finished = session.resume(tmp_path)
    assert not was_finished and as_if_nothing_had_happened(tmp_path, summary, whole)


def test_a_run_can_be_interrupted_again_and_again(inputs: Path, whole: Any, tmp_path: Path) -> None:
    begun(inputs, tmp_path, 3)
    completed = []
    for _ in range(3):
        rounds = iter(range(2))  # of two rounds the first is saved

        def listen(event: object, rounds: Any = rounds) -> None:
            if isinstance(event, Started):
                completed.append(event.completed)
            if isinstance(event, RoundDone) and next(rounds) == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.resume(tmp_path, listen)
    assert completed == [0, 1, 2]
    summary, _ = session.resume(tmp_path)
    assert as_if_nothing_had_happened(tmp_path, summary, whole)


def test_a_run_stopped_before_its_first_checkpoint_starts_again_from_its_recorded_configuration(
    inputs: Path, whole: Any, tmp_path: Path
) -> None:
    begun(inputs, tmp_path, 1)
    assert not list((tmp_path / "checkpoints").glob("*.json"))
    events: list[Any] = []
    summary, _ = session.resume(tmp_path, events.append)
    assert events[0] == Started(tmp_path, (("importance", 1), ("tune", 4)), 0)
    assert as_if_nothing_had_happened(tmp_path, summary, whole)


def test_a_resumed_run_tells_where_it_goes_on(inputs: Path, tmp_path: Path) -> None:
    begun(inputs, tmp_path, 6)  # in the second round of tuning: the first is saved
    events: list[Any] = []
    session.resume(tmp_path, events.append)
    assert events[0].completed == 2
    assert [(e.phase, e.index) for e in events if isinstance(e, RoundDone)] == [("tune", 1), ("tune", 2), ("tune", 3)]
    assert isinstance(events[-1], Finished) and not [e for e in events if isinstance(e, Warned)]


@pytest.mark.parametrize("what", ["manifest", "server", "pack"])
def test_a_corrupt_checkpoint_gives_way_to_the_one_before_it_and_the_adapters_are_the_same(
    what: str, inputs: Path, whole: Any, tmp_path: Path
) -> None:
    begun(inputs, tmp_path, 9)  # in the last round: those after 3 and 4 are saved
    folder = tmp_path / "checkpoints"
    path = {
        "manifest": folder / "checkpoint-00000004.json",
        "server": next(folder.glob("server-00000004-*.state")),
        "pack": max((folder / "clients").glob("*.pack")),
    }[what]
    blob = bytearray(path.read_bytes())
    blob[-20] ^= 1
    path.write_bytes(blob)
    events: list[Any] = []
    summary, _ = session.resume(tmp_path, events.append)
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    assert "checkpoint-00000004.json cannot be used" in warning and "an older checkpoint is used instead" in warning
    assert events[0].completed == 3
    assert as_if_nothing_had_happened(tmp_path, summary, whole)


def test_checkpoints_that_are_all_corrupt_are_refused_by_name(inputs: Path, tmp_path: Path) -> None:
    begun(inputs, tmp_path, 9)
    for path in (tmp_path / "checkpoints").glob("*.json"):
        path.write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint can be used.*00000004\.json.*00000003\.json"):
        session.resume(tmp_path)


def test_records_that_were_cut_short_are_refused(inputs: Path, tmp_path: Path) -> None:
    begun(inputs, tmp_path, 6)
    records = tmp_path / "records.jsonl"
    records.write_bytes(records.read_bytes()[:50])
    with pytest.raises(UserError, match=r"records\.jsonl: got 50 bytes, expected at least"):
        session.resume(tmp_path)


def test_damaged_records_are_named_with_the_line_and_what_to_do(inputs: Path, tmp_path: Path) -> None:
    begun(inputs, tmp_path, 6)
    records = tmp_path / "records.jsonl"
    blob = bytearray(records.read_bytes())
    blob[blob.index(b"\n") + 1] ^= 1
    records.write_bytes(blob)
    with pytest.raises(UserError, match=r"records\.jsonl, line 2: not JSON .*restore the file from a backup, or start a new run"):
        session.resume(tmp_path)


def test_a_summary_that_was_cut_short_is_named_and_made_anew_without_it(inputs: Path, whole: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    (out / "summary.json").write_text((out / "summary.json").read_text()[:50])
    with pytest.raises(UserError, match=r"summary\.json: not JSON .*remove it, and `fibecfed resume`"):
        session.resume(out)
    (out / "summary.json").unlink()
    assert as_if_nothing_had_happened(out, session.resume(out)[0], whole)


def test_other_versions_or_threads_than_before_are_said(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(inputs, tmp_path, 6)
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "1.0"})
    events: list[Any] = []
    session.resume(tmp_path, events.append)
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    assert warning.startswith("versions: this run started with") and "'torch': '1.0'" in warning


@pytest.mark.parametrize("written", [1, 3, 7, 12, 20, 26])
def test_a_full_disk_leaves_a_run_that_goes_on_and_says_the_command(
    written: int, inputs: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes so many writes, and then only a part of the next one."""
    out, count, write_all = tmp_path / "my run", iter(range(10**6)), files.write_all

    def full(file: int, data: bytes, offset: int) -> None:
        if next(count) < written:
            return write_all(file, data, offset)
        write_all(file, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        for module in (files, packs, log):
            patch.setattr(module, "write_all", full)
        with pytest.raises(RunFailed, match=r"No space left on device.*fibecfed resume '.*/my run'"):
            session.start(run_config(inputs), out)
    summary, _ = session.resume(out)
    assert as_if_nothing_had_happened(out, summary, whole)


def test_a_disk_that_is_full_from_the_start_is_the_users_to_mend(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        with pytest.raises(UserError, match=r"No space left on device; nothing was trained"):
            session.start(run_config(inputs), tmp_path / "run")
    session.start(run_config(inputs, federation={"rounds": 1}), tmp_path / "run")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")])
def test_a_run_stopped_while_its_adapters_are_written_writes_them_all(
    error: Exception, inputs: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = saving.save_adapter, iter(range(100))

    def stopped(*args: Any, **more: Any) -> None:
        if next(calls) == 2:
            raise error
        save(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_adapter", stopped)
        with pytest.raises(RunFailed, match=r"No space left on device.* fibecfed resume"):
            session.start(run_config(inputs), tmp_path)
    assert not (tmp_path / "summary.json").exists()
    summary, _ = session.resume(tmp_path)
    assert as_if_nothing_had_happened(tmp_path, summary, whole)


_STARTER = """
import os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from fibecfed import session
from fibecfed.config import load
from fibecfed.engine.events import Started

def say(event):
    if isinstance(event, Started):
        print(os.getpid(), event.completed, flush=True)

config, out = load(Path(sys.argv[1])).config, Path(sys.argv[2])
print("ready", flush=True)
for _ in sys.stdin:  # a process for each line; what takes long to import is imported once
    if not (child := os.fork()):
        if (out / "config.toml").exists():
            session.resume(out, say)
        else:
            session.start(config, out, say)
        os._exit(0)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_killed_at_ten_random_points_it_ends_with_the_adapters_of_the_run_that_was_not(inputs: Path, whole: Any, tmp_path: Path) -> None:
    draw, out, killed = drawn(), tmp_path / "run", 0
    (tmp_path / "run.toml").write_text(to_toml(run_config(inputs)))
    environment = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _STARTER, str(tmp_path / "run.toml"), str(out)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as starter:
        assert starter.stdin is not None and starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
        for _ in range(10):
            starter.stdin.write("go\n")
            said = starter.stdout.readline()
            if said == "dead\n":
                break  # it was faster
            time.sleep(draw.uniform(0.0, 0.15))
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(said.split()[0]), signal.SIGKILL)
            killed += 1
            assert starter.stdout.readline() == "dead\n"
        starter.stdin.close()
    assert killed >= 5
    summary, _ = session.resume(out)
    assert summary["adapters"]["sha256"] == whole[1]["adapters"]["sha256"]
    assert as_if_nothing_had_happened(out, summary, whole)


def test_the_whole_run_has_rounds_and_scores_to_be_lost(whole: Any) -> None:
    out, _, events = whole
    assert sum(isinstance(event, Evaluated) for event in events) == 3
    assert sum(isinstance(record, RoundRecord) for record in read(out / "records.jsonl")[1]) == 5
    assert json.loads(max((out / "checkpoints").glob("*.json")).read_text())["number"] == 5


def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_again(inputs: Path, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, RoundDone) and event.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs), tmp_path / "run", stop)
    for file in (tmp_path / "run" / "checkpoints").glob("checkpoint-*.json"):
        file.unlink()
    heard: list[object] = []
    summary, _ = session.resume(tmp_path / "run", heard.append)
    said = [event.text for event in heard if isinstance(event, Warned)]
    assert any("has no checkpoint: the run starts again, and its 4 recorded rounds are repeated" in text for text in said), said
    assert summary["adapters"] == session.start(run_config(inputs), tmp_path / "whole")["adapters"]
