"""The benchmark beside other engines: its own arithmetic, its file of figures, and how a round is measured."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "peers"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("run", "workload", "environments")
    yield [importlib.import_module(name) for name in names]
    for name in names:
        sys.modules.pop(name, None)


def line(repetition: int, who: str, round_s: float, task: str = "lora") -> dict[str, Any]:
    return {"repetition": repetition, "task": task, "who": who, "round_s": round_s, "first_s": 2 * round_s, "rounds": 3}


def test_ratios_are_of_the_same_repetition(modules: list[ModuleType]) -> None:
    lines = [line(0, "fibecfed", 1.0), line(0, "pfl", 2.0), line(1, "fibecfed", 4.0), line(1, "pfl", 6.0), line(2, "pfl", 50.0)]
    assert modules[0].summary(lines, "lora", "pfl", "round_s") == (4.0, [1.5, 2.0])
    assert modules[0].summary(lines, "lora", "flower", "round_s") is None
    assert modules[0].summary(lines, "noop 10 x 1,000", "pfl", "round_s") is None


def test_the_table_has_a_row_for_whoever_was_measured(modules: list[ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    modules[0].show([line(0, "fibecfed", 1.0), line(0, "pfl", 2.0), line(0, "pfl", 3.0, "noop 10 x 1,000")])
    shown = capsys.readouterr().out
    assert "| pfl | 2 | 2.00 (2.00 to 2.00) | 4 | 2.00 (2.00 to 2.00) | 1 |" in shown
    assert "noop" not in shown and "nvflare" not in shown  # nothing of ours to compare with


def test_a_line_that_was_cut_off_is_measured_again(modules: list[ModuleType], tmp_path: Path) -> None:
    out = tmp_path / "figures.jsonl"
    whole = json.dumps(line(0, "pfl", 2.0)) + "\n"
    out.write_text(whole + whole[:20])
    assert modules[0].lines_of(out) == [line(0, "pfl", 2.0)]
    assert out.read_text() == whole
    assert modules[0].lines_of(tmp_path / "none.jsonl") == [] and not (tmp_path / "none.jsonl").exists()


def test_seconds_of_other_processes_count_where_they_take_part(
    modules: list[ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setenv("PEERS_ROOT", str(os.getpid()))
    monkeypatch.setenv("PEERS_START", "0")
    monkeypatch.setenv("PEERS_REPORT", str(tmp_path / "report.json"))
    own, tree = modules[1].Rounds(), modules[1].Rounds(tree=True)
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    own.done()
    tree.done()
    assert tree.cpu_s[0] > 0.25 > own.cpu_s[0]
    tree.report(memory_mb=1.0)
    assert json.loads((tmp_path / "report.json").read_text()) == {"cpu_s": tree.cpu_s, "first_s": tree.first_s, "memory_mb": 1.0}


def test_what_decides_the_numbers_is_pinned_in_every_environment(modules: list[ModuleType]) -> None:
    pinned = modules[2].pins()
    assert {name.split("==")[0] for name in pinned} == set(modules[2].SAME)
    assert "torch==2.13.0" in pinned
