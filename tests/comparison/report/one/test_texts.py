"""Texts of the easiest and the hardest examples: shown of a simulation alone, only if asked, and only while its data are the same."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import made_runs
import pytest
from saved import run_config, save_inputs
from typer.testing import CliRunner

from fibecfed import session
from fibecfed.cli import app
from fibecfed.comparison.report.comparison import read_comparison
from fibecfed.comparison.report.one.examples import listed
from fibecfed.comparison.report.one.texts import with_texts
from fibecfed.core.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model on a file of reviews."""
    folder = save_inputs(tmp_path_factory.mktemp("texts"))
    session.start(run_config(folder), folder / "run")
    return folder


def test_each_text_is_that_of_the_example_that_was_scored(place: Path):
    comparison = with_texts(read_comparison(place / "run"))
    files = comparison.files
    assert files is not None and list(files.texts) == listed(files) and len(files.texts) == 10
    with (place / "reviews.csv").open() as file:
        rows = {tuple(row.values()) for row in csv.DictReader(file)}
    assert {(text, label) for label, text in files.texts.values()} <= {(row[0], row[1]) for row in rows}


def test_the_command_shows_them_only_if_asked(place: Path, tmp_path: Path):
    files = with_texts(read_comparison(place / "run")).files
    assert files is not None
    text = next(iter(files.texts.values()))[1]
    for options, is_there in ((), False), (("--texts",), True):
        out = tmp_path / str(is_there)
        result = CliRunner().invoke(app, ["report", str(place / "run"), "--out", str(out), *options])
        assert result.exit_code == 0
        assert (text in (out / "report.html").read_text()) is is_there
        assert (text in (out / "report.md").read_text()) is is_there


def test_other_data_other_machines_and_comparisons_are_sentences(place: Path, tmp_path: Path):
    found = read_comparison(place / "run")
    with pytest.raises(UserError, match="--texts: got the folder of a comparison"):
        with_texts(replace(found, files=None))
    shutil.copytree(place / "run", tmp_path / "run")
    records = tmp_path / "run" / "records.jsonl"
    first, *rest = records.read_text().splitlines(keepends=True)
    header = json.loads(first)
    records.write_text(json.dumps(header | {"data": {"sha256": "0" * 64}}) + "\n" + "".join(rest))
    with pytest.raises(UserError, match="are no longer those that it was trained on"):
        with_texts(read_comparison(tmp_path / "run"))
    (tmp_path / "run" / "flower.json").write_text("{}")
    with pytest.raises(UserError, match="lie on its clients' machines"):
        with_texts(read_comparison(tmp_path / "run"))
    made_runs.write_run(tmp_path / "lora", method="lora", clients=6, rounds=4)
    with pytest.raises(UserError, match="recorded no difficulty"):
        with_texts(read_comparison(tmp_path / "lora"))
