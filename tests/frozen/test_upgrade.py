"""Upgrading and going back, as docs/operating.md says: what an earlier version left is used by this one and stays as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from fibecfed.cli import app
from fibecfed.deploy import client

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "message.bin").is_file())


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_earlier_version_still_finds_every_file_as_it_left_it_after_this_one_has_used_them(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = shutil.copytree(HERE / version, tmp_path / "left")
    monkeypatch.chdir(left)
    before = hashes(left)
    run = next(iter(sorted((left / "finished").iterdir())))
    report = ["report", str(left / "comparison"), "--out", str(tmp_path / "report")]
    for words in (["resume", str(run)], report, ["predict", str(run), "reviews.csv", "--out", str(tmp_path / "p.csv")]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (words, done.output)
    assert hashes(left) == before
    assert (tmp_path / "p.csv").is_file() and (tmp_path / "report" / "report.html").is_file()


def test_a_client_keeps_name_and_identity_of_its_folder_whatever_version_made_it(tmp_path: Path) -> None:
    (tmp_path / client.ABOUT).write_text(json.dumps({"name": "hospital-a", "identity": "0123456789abcdef"}))
    before = hashes(tmp_path)
    options = client.ClientArguments(tmp_path / "f.toml", (), tmp_path / "c.sock", tmp_path, None)
    config = cast(Any, SimpleNamespace(federation=SimpleNamespace(client_names=None), privacy=SimpleNamespace(helped=False)))
    assert client.who(options, config) == ("hospital-a", "0123456789abcdef")
    assert hashes(tmp_path) == before
