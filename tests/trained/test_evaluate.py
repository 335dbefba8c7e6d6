"""`fibecfed evaluate`: the figures follow from what `fibecfed predict` answers for the same rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fibecfed import cli
from fibecfed.core.metrics import metric_named
from fibecfed.trained.evaluate import Evaluation, show_evaluation


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture
def mixed(place: Path, tmp_path: Path) -> Path:
    """Reviews of which every third has the other label than it should."""
    rows = list(csv.reader((place / "reviews.csv").open()))
    other = {"good": "bad", "bad": "good"}
    for row in rows[1::3]:
        row[1] = other[row[1]]
    with (tmp_path / "mixed.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "mixed.csv"


@pytest.mark.parametrize("client", [None, "1"])
def test_its_figures_are_those_of_the_predictions(client: str | None, run: Path, mixed: Path) -> None:
    who = [] if client is None else ["--client", client]
    rows = list(csv.DictReader(io.StringIO(call("predict", run, mixed, *who)[1])))
    code, out, _ = call("evaluate", run, mixed, *who, "--json")
    found = json.loads(out)
    names = ["bad", "good"]
    confusion = [[sum(row["verdict"] == a and row["predicted_label"] == b for row in rows) for b in names] for a in names]
    assert code == 0 and found["confusion"] == confusion and all(map(all, confusion)), "every kind of answer occurs"
    right = sum(row["verdict"] == row["predicted_label"] for row in rows)
    assert found["scores"]["accuracy"] == right / 120 and (found["examples"], found["metric"]) == (120, "accuracy")
    assert found["majority"] == max(map(sum, confusion)) / 120
    for place, row in enumerate(found["classes"]):
        predicted = confusion[0][place] + confusion[1][place]
        assert (row["class"], row["examples"], row["predicted"]) == (names[place], sum(confusion[place]), predicted)
        assert row["precision"] == confusion[place][place] / predicted
        assert row["recall"] == confusion[place][place] / sum(confusion[place])
        assert row["f1"] == pytest.approx(2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"]))


def test_tables_show_the_same(run: Path, mixed: Path) -> None:
    found = json.loads(call("evaluate", run, mixed, "--json")[1])
    code, out, said = call("evaluate", run, mixed)
    assert (code, said) == (0, "")
    text = [line.split() for line in out.splitlines()]
    assert ["bad", *map(str, found["confusion"][0])] in text and ["good", *map(str, found["confusion"][1])] in text
    for row in found["classes"]:
        shares = [f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1")]
        assert [row["class"], str(row["examples"]), str(row["predicted"]), *shares] in text
    assert ["accuracy", f"{100 * found['scores']['accuracy']:.1f}", "%"] in text


def test_integers_stand_for_words_as_in_training(run: Path, place: Path, tmp_path: Path) -> None:
    text = (place / "reviews.csv").read_text().replace(",good", ",1").replace(",bad", ",0")
    (tmp_path / "numbers.csv").write_text(text)
    expected = json.loads(call("evaluate", run, place / "reviews.csv", "--json")[1])["confusion"]
    assert json.loads(call("evaluate", run, tmp_path / "numbers.csv", "--json")[1])["confusion"] == expected


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (
            ["good", "Good", "fine"],
            "row 2 (the first row of data is 1): got the label 'Good', which the model does not know, and so have 1 more",
        ),
        (["good", "Good", "good"], "Is it the same as 'good'?"),
        (["0", "1", "2"], "row 3 (the first row of data is 1): got the label '2'"),
        (["good", "", "bad"], "row 2 (the first row of data is 1): the label is missing"),
    ],
)
def test_a_label_that_the_model_does_not_know_is_named_with_its_row(labels: list[str], problem: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("review,verdict\n" + "".join(f"text,{label}\n" for label in labels))
    code, out, said = call("evaluate", run, tmp_path / "a.csv")
    assert (code, out) == (2, "") and problem in said


def test_a_file_without_labels_says_which_columns_it_has(run: Path, made: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("review,stars\ngood,1\n")
    code, _, said = call("evaluate", run, tmp_path / "a.csv")
    assert code == 2 and "there is no column 'verdict'; the file has 'review', 'stars'. Set --label-column." in said
    assert call("evaluate", run, tmp_path / "a.csv", "--label-column", "stars")[0] == 0


def shown(found: Evaluation) -> str:
    text = io.StringIO()
    show_evaluation(found, Console(file=text, width=200))
    return text.getvalue()


def test_many_classes_show_the_most_frequent_mistakes() -> None:
    names = tuple(f"class {n}" for n in range(13))
    confusion = [[5 * (a == b) for b in range(13)] for a in range(13)]
    confusion[3][7], confusion[1][0] = 4, 2
    found = Evaluation(names, {"confusion": confusion, "nll": 1.0, "calibration": [0.0] * 15}, metric_named("accuracy"), ())
    assert found.mistakes() == [(4, "class 3", "class 7"), (2, "class 1", "class 0")]
    text = shown(found)
    assert "Most frequent mistakes" in text and "Confusion matrix" not in text
    assert ["4", "class", "3", "class", "7"] in [line.split() for line in text.splitlines()]


def test_a_score_that_is_no_better_than_one_answer_is_said() -> None:
    sums = {"confusion": [[0, 3], [0, 7]], "nll": 1.0, "calibration": [0.0] * 15}
    assert "accuracy only equals what always predicting the most frequent class gives" in shown(
        Evaluation(("a", "b"), sums, metric_named("accuracy"), ())
    )
    better = {**sums, "confusion": [[2, 1], [0, 7]]}
    assert "note:" not in shown(Evaluation(("a", "b"), better, metric_named("accuracy"), ()))
