"""The report on a terminal, and the tables that other commands show there."""

from __future__ import annotations

import io
from pathlib import Path

import made_runs
from rich.console import Console

from fibecfed.comparison.report import terminal
from fibecfed.comparison.report.comparison import read_report
from fibecfed.inspection import as_table, show

HOSTILE, WRITTEN_OUT = "evil\x1b]0;owned\a\u202e", r"evil\x1b]0;owned\x07\u202e"


def test_names_of_tasks_and_methods_out_of_files_steer_no_terminal(tmp_path: Path) -> None:
    for method in ("fibecfed", HOSTILE):
        made_runs.write_run(tmp_path / "runs" / HOSTILE / method / "0", task=HOSTILE, method="lora", kind="lora", clients=6, rounds=4)
    (tmp_path / "runs" / HOSTILE / "broken" / "0").mkdir(parents=True)
    (tmp_path / "runs" / HOSTILE / "broken" / "0" / "config.toml").write_text(HOSTILE)
    (tmp_path / "comparison.toml").write_text("")
    out = io.StringIO()
    terminal.show(read_report(tmp_path), Console(file=out, width=200))
    assert out.getvalue().count(WRITTEN_OUT) > 4 and not set("\x1b\a\u202e") & set(out.getvalue())


def test_class_names_are_shown_as_they_are_and_steer_no_terminal() -> None:
    out = io.StringIO()
    show([(HOSTILE, as_table(("client", "'[red]'", HOSTILE), [(HOSTILE, "1", "[bold]2")]))], Console(file=out, width=200))
    assert out.getvalue().count(WRITTEN_OUT) == 3 and "'[red]'" in out.getvalue() and "[bold]2" in out.getvalue()
    assert not set("\x1b\a\u202e") & set(out.getvalue())
