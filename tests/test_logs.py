"""The package's log: what is in it, that it is shown to nobody who did not ask, and that no name can forge a line of it."""

from __future__ import annotations

import logging
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved import interrupted_at, run_config, save_backbone, write_reviews
from typer.testing import CliRunner

import fibecfed
from fibecfed import cli, session
from fibecfed.config import load
from fibecfed.core.metrics import METRICS
from fibecfed.engine.events import Evaluated, Event, RoundDone, Started, Warned, logged

SUMMARY = {
    "method": "fibecfed",
    "scores": {"pooled_personalised": 0.82, "global": 0.8, "worst_decile": 0.7},
    "bytes_up": 1_500_000,
    "bytes_down": 2_000_000,
    "steps": 12,
    "examples": 96,
    "seconds": 75.0,
    "selected": {},
}


def test_importing_the_package_adds_a_null_handler_and_nothing_else() -> None:
    program = (
        "import logging, fibecfed, fibecfed.session; log = logging.getLogger('fibecfed'); "
        "print([type(handler).__name__ for handler in log.handlers], log.level, logging.root.handlers); "
        "logging.getLogger('fibecfed.session').warning('nobody asked for this')"
    )
    source = str(Path(fibecfed.__file__).parents[1])
    ended = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": source}, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("['NullHandler'] 0 []\n", "")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Runs that say a few things and log one more."""

    def start(config: Any, out: Path, on_event: Callable[[Event], None]) -> dict[str, Any]:
        say = logged(on_event)
        say(Started(out, (("tune", 1),)))
        say(Warned("client a\n2026-01-01 INFO all is well \x1b[2J"))
        logging.getLogger("fibecfed.engine.states").debug("paged")
        say(RoundDone("tune", 0, 1, 0.5, 10, 10, 0.1))
        return SUMMARY

    monkeypatch.setitem(sys.modules, "fibecfed.session", types.SimpleNamespace(start=start))
    monkeypatch.setattr(fibecfed, "session", types.SimpleNamespace(start=start), raising=False)
    monkeypatch.chdir(tmp_path)
    Path("a.toml").write_text('[data]\ntask = "sst2"\n')


def called(*options: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error."""
    ended = CliRunner().invoke(cli.app, ["run", "a.toml", "--out", "r", *options])
    return ended.exit_code, ended.stdout, ended.stderr.splitlines()


@pytest.mark.usefixtures("fake")
def test_a_command_shows_the_log_only_where_it_is_asked_to() -> None:
    code, plain, said = called()
    assert (code, said) == (0, []) and "warning: client a" in plain and "personalised" in plain
    code, shown, said = called("-v")
    assert (code, shown) == (0, plain)  # the log goes elsewhere
    assert [line.split(" INFO ")[1].split(":")[0] for line in said] == ["fibecfed.engine.events"] * 2  # the warning is shown already
    _, _, said = called("-vv")
    assert any("DEBUG fibecfed.engine.states: paged" in line for line in said)
    assert [type(handler).__name__ for handler in logging.getLogger("fibecfed").handlers] == ["NullHandler"]


@pytest.mark.usefixtures("fake")
def test_quiet_leaves_warnings_each_on_one_line() -> None:
    code, shown, said = called("--quiet")
    assert (code, shown) == (0, "")
    (line,) = said
    assert line.endswith(r"WARNING fibecfed.engine.events: client a\n2026-01-01 INFO all is well \x1b[2J")


@pytest.mark.usefixtures("fake")
def test_quiet_and_verbose_together_are_a_mistake() -> None:
    assert called("-q", "-v") == (2, "", ["error: got --quiet and --verbose, expected one of them; take one out"])


def test_every_event_is_in_the_log_and_goes_on_to_who_listens(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []
    say = logged(heard.append)
    events = (
        Started(Path("r"), (("tune", 3),), 2),
        RoundDone("tune", 2, 3, None, 1, 2, 0.5),
        Evaluated(3, METRICS["accuracy"], 0.5, 0.25, None, {}),
        Warned("late"),
    )
    with caplog.at_level(logging.INFO, logger="fibecfed"):
        for event in events:
            say(event)
    assert heard == list(events)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "INFO", "WARNING"]
    assert [record.getMessage() for record in caplog.records][:2] == [
        "r: 3 rounds, 2 of them done before",
        "tune round 2: nobody trained, 1 bytes up, 2 bytes down, 0.50 s",
    ]


def test_what_a_run_and_its_resumption_put_up_with_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_backbone(tmp_path / "backbone")
    write_reviews(tmp_path / "reviews.csv", 80)
    out = tmp_path / "run"
    with caplog.at_level(logging.DEBUG, logger="fibecfed"), pytest.raises(KeyboardInterrupt):
        session.start(run_config(tmp_path), out, interrupted_at(7))
    first = [(record.levelname, record.name, record.getMessage()) for record in caplog.records]
    newest = max((out / "checkpoints").glob("checkpoint-*.json"))
    assert any(level == "WARNING" and name == "fibecfed.engine.events" for level, name, _ in first)  # of the data
    assert any(name == "fibecfed.models.base_models" and text.endswith("backbone on cpu in float32") for _, name, text in first)
    assert any(name == "fibecfed.engine.checkpoint" and text.startswith(f"{newest} written") for _, name, text in first)
    caplog.clear()
    newest.write_text("{}")
    with caplog.at_level(logging.INFO, logger="fibecfed"):
        session.resume(out)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert any(level == "WARNING" and "an older checkpoint is used instead" in text for level, text in told)
    assert any("of them done before" in text and ": 5 rounds" in text for level, text in told)
    assert told[-1] == ("INFO", f"{out}: finished")


def test_what_a_change_of_method_drops_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[data]\ntask = "mr"\n[method]\nkind = "fibecfed"\nscore_after = 2\n')
    with caplog.at_level(logging.INFO, logger="fibecfed"):
        loaded = load(file, ["method.kind=lora"])
    assert [record.getMessage() for record in caplog.records] == [f"{file}: {note}" for note in loaded.notes] != []
