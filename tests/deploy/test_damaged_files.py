"""Files that a federation's commands read, damaged: a sentence that says what to do, and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fibecfed.cli import app
from fibecfed.core.files import CONFIG, SUMMARY
from fibecfed.deploy import again
from fibecfed.deploy.client import ABOUT
from fibecfed.deploy.folder import make

GOOD = {"run": "0123456789abcdef", "clients": ["a", "b"], "app": "fed", "connection": "production"}

DAMAGED = [b"", b"{", b"\xff\xfe\x00", b"[]", b'"run"', b"null", b"[" * 100_000]
"""Contents that are no table of JSON."""


def error_of(*arguments: str) -> str:
    """What a command says on standard error as it ends with the code of a user's mistake."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.stderr and not Path("traceback.txt").exists()
    return " ".join(result.stderr.split())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A federation's folder and the folder of a run that stopped."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "fed")
    out = tmp_path / "fed" / "runs" / "one"
    out.mkdir(parents=True)
    (out / CONFIG).write_text((tmp_path / "fed" / "federation.toml").read_text())
    (out / again.FLOWER).write_text(json.dumps({**GOOD, "app": str(tmp_path / "fed")}))
    return out


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_of_the_federation_is_named_with_what_to_do(run: Path, content: bytes) -> None:
    (run / again.FLOWER).write_bytes(content)
    said = error_of("resume", str(run))
    assert str(run / again.FLOWER) in said and "restore it from a backup, or write it again" in said


@pytest.mark.parametrize(
    "change",
    [
        {"run": 7},
        {"run": "../up"},
        {"run": None},
        {"clients": "a"},
        {"clients": []},
        {"clients": ["a\x1b[2J"]},
        {"app": 1},
        {"connection": []},
    ],
)
def test_what_the_federations_file_lacks_or_has_of_another_kind_is_refused(run: Path, change: dict[str, object]) -> None:
    (run / again.FLOWER).write_text(json.dumps({**GOOD, **change}))
    assert "got other keys or values than expected" in error_of("resume", str(run))


def test_a_connection_that_is_not_named_or_an_app_that_is_gone_is_told(run: Path) -> None:
    (run / again.FLOWER).write_text(json.dumps({**GOOD, "connection": ""}))
    assert "connection: not set, expected the name of a connection" in error_of("resume", str(run))
    (run / again.FLOWER).write_text(json.dumps({**GOOD, "app": str(run / "gone")}))
    assert "the federation's folder" in error_of("resume", str(run))


def test_a_file_of_the_federation_that_is_gone_is_named(run: Path) -> None:
    (run / again.FLOWER).unlink()
    assert "a run across machines without its flower.json" in error_of("resume", str(run))


def test_a_mistake_in_the_runs_configuration_is_told_before_flower_is_asked(run: Path) -> None:
    (run / CONFIG).write_text("rounds = ")
    assert CONFIG in error_of("resume", str(run))


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_summary_of_a_federation_is_named(run: Path, content: bytes) -> None:
    (run / SUMMARY).write_bytes(content)
    assert f"{run / SUMMARY}: " in error_of("resume", str(run))


def client(run: Path) -> str:
    data = run.parent / "own.csv"
    data.write_text("text,label\ngood,positive\n")
    return error_of("client", "--config", str(run / CONFIG), "--data", str(data), "--socket", str(run.parent / "x.sock"))


@pytest.mark.parametrize("content", [*DAMAGED, b'{"name": "a"}', b'{"name": 1, "identity": "x"}'])
def test_a_clients_damaged_name_file_is_named_with_what_to_do(run: Path, content: bytes) -> None:
    folder = run.parent / "x-client"
    folder.mkdir()
    (folder / ABOUT).write_bytes(content)
    said = client(run)
    assert str(folder / ABOUT) in said and "start again with the client's --name" in said
    assert (folder / ABOUT).read_bytes() == content


@pytest.mark.parametrize("name", ["lock", ABOUT])
def test_a_clients_folder_that_cannot_be_written_is_told(run: Path, name: str) -> None:
    (run.parent / "x-client" / name / "inside").mkdir(parents=True)
    assert "--folder: " in client(run)
