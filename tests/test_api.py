"""`fibecfed.run`: rows of a program in, scores and models out."""

from __future__ import annotations

import json
import sys
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from saved import run_config, save_inputs

import fibecfed
from fibecfed import api
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.trained.run import FinishedRun


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("api"))


def table(place: Path) -> dict[str, Any]:
    return {
        "model": {"name": str(place / "backbone"), "rank": 8},
        "data": {"text_column": "review", "label_column": "verdict"},
        "federation": {"clients": 4, "clients_per_round": 2, "rounds": 3},
        "training": {"batch_size": 4, "learning_rate": 0.02, "precision": "float32", "device": "cpu"},
    }


@pytest.fixture(scope="module")
def frame(place: Path) -> pd.DataFrame:
    return pd.read_csv(place / "reviews.csv")


@pytest.fixture(scope="module")
def finished(place: Path, frame: pd.DataFrame) -> FinishedRun:
    """A run on a DataFrame."""
    return fibecfed.run(table(place), place / "run", data=frame)


def test_a_frame_gives_the_numbers_of_the_file_with_its_rows(finished: FinishedRun, place: Path) -> None:
    by_path = fibecfed.run({**table(place), "data": {**table(place)["data"], "path": str(place / "reviews.csv")}}, place / "by-path")
    assert finished["adapters"] == by_path["adapters"] and finished.scores == by_path.scores


def test_it_is_the_summary_and_can_be_opened_again(finished: FinishedRun) -> None:
    assert isinstance(finished, Mapping)
    assert dict(finished) == json.loads((finished.folder / "summary.json").read_text())
    again = FinishedRun.open(finished.folder)
    assert again.scores == finished.scores and repr(again) == repr(finished)
    assert "fibecfed, accuracy: personalised" in repr(finished)


def test_it_predicts_with_the_global_model_and_with_a_clients(finished: FinishedRun) -> None:
    texts = ["great story is great is witty", "bad the scene bad stale"]
    client = sorted(path.name for path in (finished.folder / "clients").iterdir())[0]
    for who in (None, client):
        found, plain = finished.predict(texts, client=who), finished.model(who)(texts)
        assert [one["label"] for one in found] == [one["label"] for one in plain]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in plain], abs=1e-5)
        assert all(sum(one["probabilities"].values()) == pytest.approx(1) for one in found)
    assert finished.predict(texts) != finished.predict(texts, client=client)


@pytest.mark.parametrize(("texts", "problem"), [("one", "a list of them"), ([("a", "b")], "got a tuple"), ([1], "got a int")])
def test_what_are_no_texts_is_a_sentence(texts: Any, problem: str, finished: FinishedRun) -> None:
    with pytest.raises(UserError, match=problem):
        finished.predict(texts)


def test_rows_lie_in_the_folder_so_that_the_run_can_be_resumed(place: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text((place / "run" / "config.toml").read_text())
    seen = []

    def stop(event: object) -> None:
        seen.append(event)
        if len(seen) == 6:
            raise RunFailed("stopped")

    with pytest.raises(RunFailed):
        fibecfed.run(tmp_path / "my.toml", tmp_path / "run", stop, data=frame.iloc[:90].to_dict("records"), test_data=frame.iloc[90:])
    data = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["data"]
    assert (data["path"], data["test_path"]) == (str(tmp_path / "run" / "train.parquet"), str(tmp_path / "run" / "test.parquet"))
    summary, was_finished = fibecfed.resume(tmp_path / "run")
    assert not was_finished and summary["scores"]["pooled_personalised"] is not None


def test_a_mistake_leaves_nothing_behind(place: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    wrong = {**table(place), "data": {"text_column": "text", "label_column": "verdict"}}
    with pytest.raises(UserError, match="there is no column 'text'"):
        fibecfed.run(wrong, tmp_path / "run", data=frame)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "train.parquet").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        fibecfed.run(table(place), tmp_path / "there", data=frame)
    with pytest.raises(UserError, match="give data as well"):
        fibecfed.run(table(place), tmp_path / "run", test_data=frame)
    with pytest.raises(UserError, match=r"data\.(task|path)"):
        fibecfed.run({**table(place), "data": {"task": "sst2"}}, tmp_path / "run", data=frame)
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and (tmp_path / "there" / "train.parquet").read_text() == "mine"


def test_in_a_notebook_the_progress_is_shown_unless_somebody_listens(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(place, method={"kind": "lora"}, federation={"rounds": 1})
    fibecfed.run(config, tmp_path / "quiet")
    assert capsys.readouterr().out == ""
    shell = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(config={"IPKernelApp": {}}))
    monkeypatch.setitem(sys.modules, "IPython", shell)  # pyright: ignore[reportArgumentType]
    fibecfed.run(config, tmp_path / "shown")
    assert "loading model and data" in capsys.readouterr().out
    fibecfed.run(config, tmp_path / "listened", lambda event: None)
    assert capsys.readouterr().out == ""
    shell.get_ipython = lambda: None
    assert not api._in_notebook()
