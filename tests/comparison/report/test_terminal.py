"""The report on a terminal, and the tables that other commands show there."""

from __future__ import annotations

import io
import re
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


def shown(folder: Path, width: int) -> list[str]:
    """The lines of the tables at so many columns; sentences are left out."""
    out = io.StringIO()
    terminal.show(read_report(folder), Console(file=out, width=width))
    return [line.rstrip() for line in out.getvalue().splitlines() if "  " in line]


def test_no_word_and_no_number_is_broken_at_80_columns_and_every_column_is_there(tmp_path: Path) -> None:
    methods = ("fibecfed", "self-evolution", "prompt-tuning", "p-tuning-v2", "lora")
    made_runs.write_comparison(tmp_path, methods, made_runs.TASKS, (0, 1), clients=6, rounds=6)
    narrow, wide = shown(tmp_path, 80), shown(tmp_path, 400)
    assert max(map(len, narrow)) <= 80 < max(map(len, wide))
    assert {word for line in narrow for word in line.split()} == {word for line in wide for word in line.split()}
    for method in methods:  # each block names every method
        assert sum(line.startswith(f"{method} ") for line in narrow) > sum(line.startswith(f"{method} ") for line in wide)
    assert [line.split()[:2] for line in narrow].count(["method", "mean"]) == 2, "the mean of both scores stands first"


def test_sentences_are_broken_between_words_on_a_terminal_alone(tmp_path: Path) -> None:
    made_runs.write_comparison(tmp_path, ("fibecfed", "lora"), ("sst2",), (0,), clients=6, rounds=4)
    found, said = read_report(tmp_path), {}
    for is_terminal in (True, False):
        out = io.StringIO()
        terminal.show(found, Console(file=out, width=60, force_terminal=is_terminal, no_color=True, highlight=False))
        said[is_terminal] = re.sub(r"\x1b\[\d*m", "", out.getvalue())
    assert max(map(len, said[True].splitlines())) <= 60 < max(map(len, said[False].splitlines()))
    last = "All columns and more tables: report.html, report.md and the report-*.csv files."
    assert last in said[False] and last in " ".join(said[True].split())
