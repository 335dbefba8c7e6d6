"""`fibecfed watch`: records are read as they grow, a resumed run is noticed, it ends when the run ends, and it changes nothing."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import made_runs
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fibecfed.cli import app
from fibecfed.core.errors import UserError
from fibecfed.watch import REFRESH_S, Seen, Tail, parsed, view, watch, writer


class Going:
    """A run whose records grow by some lines at each look, as its process would write them; then it ends, or its process dies."""

    def __init__(self, folder: Path, done: bool = True, each: int = 3) -> None:
        self.folder, self.done, self.each = folder, done, each
        made_runs.write_run(folder, clients=6, rounds=10, every=4, method="lora", final=0.8)
        self.summary = (folder / "summary.json").read_bytes()
        self.lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "summary.json").unlink()
        (folder / "records.jsonl").unlink()
        (folder / "lock").write_text(f"{os.getpid()}\n")
        self.pages: list[str] = []

    def __call__(self, seconds: float) -> None:
        """In place of waiting."""
        page = self.folder / "report.html"
        self.pages += [page.read_text()] if page.exists() else []
        now, self.lines = self.lines[: self.each], self.lines[self.each :]
        with (self.folder / "records.jsonl").open("ab") as file:
            file.write(b"".join(now))
        if not self.lines and self.done:
            (self.folder / "summary.json").write_bytes(self.summary)
        elif not self.lines:
            (self.folder / "lock").write_text(f"{_dead()}\n")


def _dead() -> int:
    """The number of a process that is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def plain(width: int = 80) -> tuple[Console, Callable[[], list[str]]]:
    out = io.StringIO()
    return Console(file=out, width=width, highlight=False), lambda: out.getvalue().splitlines()


def test_a_log_gets_a_line_for_each_evaluation_and_ten_rounds_and_the_summary_at_the_end(tmp_path: Path):
    going = Going(tmp_path / "run")
    console, lines = plain()
    summary = watch(going.folder, console, sleep=going)
    assert summary is not None and summary["scores"]["pooled_personalised"] == pytest.approx(0.8, abs=0.01)
    assert lines()[0] == f"{going.folder}: lora for sst2 on 6 clients, 10 training rounds"
    assert [line.split(":")[0] for line in lines()[1:6]] == [
        "after round 0",
        "after round 4",
        "after round 8",
        "round 10 (tune)",
        "after round 10",
    ]
    assert "MB" in lines()[4] and "personalised 80.0 %" in lines()[5]
    assert any(line.startswith("last round") for line in lines())
    assert {path.name for path in going.folder.iterdir()} == {"config.toml", "records.jsonl", "summary.json", "lock"}


def test_a_run_whose_process_is_gone_ends_without_a_summary(tmp_path: Path):
    going = Going(tmp_path / "run", done=False)
    console, lines = plain()
    assert watch(going.folder, console, sleep=going) is None
    assert any("round 10 of 10" in line for line in lines())


def test_a_terminal_of_80_columns_holds_it_and_names_steer_nothing(tmp_path: Path):
    going = Going(tmp_path / "run")
    header, records = going.lines[0], going.lines[1:]
    hostile = header.replace(b'"sst2"', b'"evil\\u001b[2J' + b"x" * 90 + b'"')
    seen = Seen()
    parsed(seen, [hostile, *(line.replace(b'"00"', b'"a\\u001bb"') for line in records[:7])], tmp_path)
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=False).print(view(seen, Path("run"), Console(file=out, width=80)))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    assert "\x1b" not in out.getvalue() and r"evil\x1b[2J" in out.getvalue()
    assert "untrained" in out.getvalue() and "after round 4" in out.getvalue()


def test_on_a_terminal_it_is_drawn_in_place(tmp_path: Path):
    going = Going(tmp_path / "run", each=1)
    out = io.StringIO()
    assert watch(going.folder, Console(file=out, width=80, force_terminal=True), sleep=going) is not None
    assert "tune, round 3 of 10" in out.getvalue() and "\x1b[" in out.getvalue()


def test_the_page_reads_itself_again_until_the_run_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fibecfed.watch.REFRESH_S", 0.0)
    monkeypatch.setattr("fibecfed.watch._SHARE", 0)
    going = Going(tmp_path / "run")
    watch(going.folder, plain()[0], page=True, sleep=going)
    assert len(going.pages) > 2 and all("data-refresh" in page.partition("<script>")[0] for page in going.pages)
    assert "unfinished, 4 of 10 training rounds" in going.pages[1] or "unfinished, 5 of 10 training rounds" in going.pages[1]
    last = (going.folder / "report.html").read_text()
    assert "data-refresh" not in last.partition("<script>")[0] and "80.0 %" in last
    assert REFRESH_S > 0


def test_half_a_line_waits_for_its_end_and_a_file_that_is_cut_is_read_again(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_bytes(b"one\ntw")
    assert tail.read() == [b"one\n"] and tail.read() == []
    with path.open("ab") as file:
        file.write(b"o\nthree\n")
    assert tail.read() == [b"two\n", b"three\n"] and tail.restarts == 0
    path.write_bytes(b"one\ntwo\nother\nfour\n")  # longer than before, but not the same
    assert tail.read() == [b"one\n", b"two\n", b"other\n", b"four\n"] and tail.restarts == 1
    path.write_bytes(b"one\n")
    assert tail.read() == [b"one\n"] and tail.restarts == 2


def test_a_resumed_run_is_counted_anew_from_its_checkpoint(tmp_path: Path):
    going = Going(tmp_path / "run", each=6)
    whole, looks = list(going.lines), iter(range(100))

    def resumed(seconds: float) -> None:
        if next(looks) == 1:  # what is behind the checkpoint is cut off and computed again
            (going.folder / "records.jsonl").write_bytes(b"".join(whole[:4]))
            going.lines = whole[4:]
        else:
            going(seconds)

    console, lines = plain()
    assert watch(going.folder, console, sleep=resumed) is not None
    assert sum(line.startswith("resumed from its last checkpoint") for line in lines()) == 1
    assert sum("round 10 (tune)" in line for line in lines()) == 1


def test_a_lock_is_read_and_never_taken(tmp_path: Path):
    from fibecfed.engine.checkpoint import run_lock

    assert writer(tmp_path) is None
    with run_lock(tmp_path):
        assert writer(tmp_path) == os.getpid()
    (tmp_path / "lock").write_text(f"{_dead()}\n")
    assert writer(tmp_path) is None
    (tmp_path / "lock").write_text("no number")
    assert writer(tmp_path) is None
    going = Going(tmp_path / "run")

    def held(seconds: float) -> None:
        with run_lock(going.folder):  # could not be had if it were held by who watches
            going(seconds)

    assert watch(going.folder, plain()[0], sleep=held) is not None


def test_a_run_that_ends_between_two_looks_at_its_folder_has_ended_with_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    going = Going(tmp_path / "run", each=100)
    going(0.0)
    (going.folder / "summary.json").unlink()

    def ends(folder: Path) -> int | None:
        (folder / "summary.json").write_bytes(going.summary)
        return None

    monkeypatch.setattr("fibecfed.watch.writer", ends)
    assert watch(going.folder, plain()[0], sleep=going) is not None


def test_a_lock_that_may_not_be_read_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lock").write_text(f"{os.getpid()}\n")

    def denied(path: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    assert writer(tmp_path) is None


def test_what_is_no_run_is_a_sentence_with_exit_code_2(tmp_path: Path):
    result = CliRunner().invoke(app, ["watch", str(tmp_path)])
    assert result.exit_code == 2 and "got no run, expected the folder of one that has begun" in result.stderr
    (tmp_path / "records.jsonl").write_text('{"kind":"header"}\n')
    with pytest.raises(UserError, match=r"records\.jsonl: cannot be read as the records of a run"):
        watch(tmp_path, plain()[0])


def test_the_command_shows_a_finished_run_at_once_and_resumable_ones_with_exit_code_1(tmp_path: Path):
    made_runs.write_run(tmp_path / "run", clients=6, rounds=4)
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "run")])
    assert result.exit_code == 0 and "fibecfed report" in result.stdout
    shutil.copytree(tmp_path / "run", tmp_path / "stopped")
    (tmp_path / "stopped" / "summary.json").unlink()
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "stopped")])
    assert result.exit_code == 1 and f"Resume with: fibecfed resume {tmp_path / 'stopped'}" in result.stderr
