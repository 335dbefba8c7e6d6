"""One table of exit codes for every command, whatever state its standard streams are in."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import made_runs
import pytest
from typer.testing import CliRunner

import fibecfed
from fibecfed import cli, exits
from fibecfed.core.errors import RunFailed, UserError

CONFIG, COMPARISON = '[data]\ntask = "sst2"\n', 'methods = ["lora"]\ntasks = ["sst2"]\n'
# command -> the function that does its work
COMMANDS = {
    ("run", "a.toml", "--out", "run"): "fibecfed.session:start",
    ("resume", "run"): "fibecfed.session:resume",
    ("resume", "federation"): "fibecfed.deploy.again:resume",
    ("compare", "c.toml"): "fibecfed.comparison.runner.command:compare_in",
    ("check", "a.toml"): "fibecfed.check:report",
    ("check", "c.toml"): "fibecfed.comparison.runner.price:price_comparison",
    ("report", "c"): "fibecfed.comparison.report.comparison:read_report",
    ("list", "methods"): "fibecfed.listing:methods",
    ("init",): "fibecfed.config:own_data_toml",
    ("client", "--config", "a.toml", "--data", "x.csv"): "fibecfed.deploy.client:run",
    ("flower", "init", "app"): "fibecfed.deploy.folder:make",
}
ENDS = {
    exits.FAILED: RunFailed("client 7: the loss is nan"),
    exits.MISTAKE: UserError("data.path: got nothing"),
    exits.INTERRUPTED: KeyboardInterrupt(),
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text(CONFIG)
    Path("c.toml").write_text(COMPARISON)
    Path("federation").mkdir()
    Path("federation/flower.json").write_text("{}")


def raising(error: BaseException) -> Callable[..., None]:
    def effect(*arguments: object, **keywords: object) -> None:
        raise error

    return effect


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_ends_by_the_table(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = COMMANDS[command].partition(":")
    for code, error in {**ENDS, -1: ZeroDivisionError("by zero"), -2: OSError(28, "No space left on device")}.items():
        monkeypatch.setattr(importlib.import_module(module), name, raising(error))
        ended = CliRunner().invoke(cli.app, list(command))
        assert ended.exit_code == (code if code > 0 else exits.FAILED), (error, ended.output)
        said = (
            "Interrupted." if code == exits.INTERRUPTED else f"error: {error}" if code > 0 else f"error: unexpected {type(error).__name__}"
        )
        assert said in ended.stderr and "Traceback" not in ended.output
        assert ended.stdout == "" or "error" not in ended.stdout
    assert Path("traceback.txt").read_text().count("Traceback") == 2


def test_the_table_stands_in_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs/configuration.md").read_text()
    for code in (exits.DONE, exits.FAILED, exits.MISTAKE, exits.INTERRUPTED):
        assert f"| {code} |" in page


STATES = {
    "closed": ">&- 2>&-",
    "full": ">/dev/full 2>/dev/full",
    "read by head": "2>&1 | head -n 1 >/dev/null; exit ${PIPESTATUS[0]}",
    "ascii": ">/dev/null 2>&1",
}
PROGRAM = """
import sys, types
fake = types.ModuleType("fibecfed.session")
def start(config, out, on_event):
    from fibecfed.engine.events import Started, RoundDone, Warned
    out.mkdir()
    on_event(Started(out, (("tune", 500),)))
    for i in range(500):
        on_event(Warned("± " * 200))
        on_event(RoundDone("tune", i, 500, 0.5, 10, 10, 0.1))
    (out / "trained").write_text("whole")
    raise SystemExit(0)
fake.start = start
sys.modules["fibecfed.session"] = fake
from fibecfed.cli import main
main()
"""


@pytest.mark.parametrize("state", STATES)
def test_the_exit_code_is_true_and_training_goes_on_without_its_lines(state: str, tmp_path: Path) -> None:
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora"), ("sst2",), (0,), rounds=4)
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(fibecfed.__file__).parents[1])}
    if state == "ascii":
        environment |= {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "COLUMNS": "1"}
    commands = {
        "run a.toml --out run": exits.DONE,
        "report c": exits.DONE,
        "list tasks": exits.DONE,
        "check none.toml": exits.MISTAKE,
    }
    for command, code in commands.items():
        line = f"'{sys.executable}' program.py {command} {STATES[state]}"
        ended = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == code, (command, ended.stderr[-2000:])
    assert (tmp_path / "run/trained").read_text() == "whole" and (tmp_path / "c/report.html").is_file()


def test_a_current_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(fibecfed.__file__).parents[1])}
    line = f"cd gone && rmdir ../gone && '{sys.executable}' -m fibecfed list paces"
    ended = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (exits.MISTAKE, "") and "error: the current folder no longer exists" in ended.stderr


@pytest.mark.parametrize(("columns", "width"), [(None, 160), ("", 160), ("72", 72)])
def test_a_pipe_is_as_wide_as_columns_says_else_160(columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert exits.console().width == width
