"""Comparisons by other metrics than accuracy: which score is better, in which unit it is shown, and what it is compared with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_runs
import pytest

from fibecfed.comparison.report import curves, figures, overview
from fibecfed.comparison.report.compact import from_lines, to_lines
from fibecfed.comparison.report.comparison import read_comparison, write_report
from fibecfed.comparison.report.html import to_html
from fibecfed.comparison.report.results import ComparisonResults, Point, Run, SelectionRecord
from fibecfed.comparison.report.scores import ComparedMetric
from fibecfed.comparison.report.standing import Standings, standings
from fibecfed.comparison.report.tables import to_markdown
from fibecfed.comparison.report.verdict import defeats, verdict
from fibecfed.core.clock import Network
from fibecfed.core.errors import UserError
from fibecfed.core.metrics import METRICS, metric_named

LOSS = METRICS["loss"]


def run(task: str, method: str, curve: list[float], seed: int = 0, **more: Any) -> Run:
    """A run evaluated after every round, each of which takes 10 bytes and 2 seconds; its loss begins at 0.7."""
    points = tuple(Point(i, 10 * i, 2.0 * i, value, value) for i, value in enumerate([0.7, *curve]))
    fields: dict[str, Any] = {
        "task": task, "method": method, "seed": seed, "kind": method, "points": points, "majority": 0.7, "worst_decile": None,
        "usual": None, "usual_personalised": None, "bytes_up": 5, "bytes_down": 5, "steps": 7, "examples": 56, "trainable": 3,
        "measured_s": 1.0, "clients": (0.1, 0.2, 0.9), "selection": SelectionRecord(), "conditions": {"learning_rate": 0.1}, "metric": LOSS,
    }  # fmt: skip
    return Run(**{**fields, **more})


@pytest.fixture
def lost() -> Standings:
    """FibecFed ends at the loss of 0.3, lora at 0.2 and sooner, voc at 0.6."""
    runs = [run("t", "fibecfed", [0.5, 0.4, 0.3]), run("t", "lora", [0.25, 0.2]), run("t", "voc", [0.65, 0.6])]
    return standings(ComparisonResults("made", tuple(runs), Network()))


def test_the_lowest_loss_is_ranked_first_sets_the_target_and_reaches_it(lost: Standings) -> None:
    assert list(lost.ranks) == ["lora", "fibecfed", "voc"] and lost.ranks["lora"].mean == 1.0
    target = lost.targets["t"]
    assert (target.best, target.counted) == ("lora", True) and target.score == pytest.approx(0.7 + 0.8 * (0.2 - 0.7))
    assert lost.first("t") == ["lora"] and lost.seconds("t", "lora") == 2.0 and lost.seconds("t", "fibecfed") == 6.0
    assert not lost.reaches("t", "voc")


def test_a_loss_hardly_below_the_baseline_is_not_counted() -> None:
    made = [run("t", "a", [0.66]), run("u", "a", [0.64])]
    assert [one.task for one in standings(ComparisonResults("made", tuple(made), Network())).counted] == ["u"]


def test_sentences_and_tables_show_a_loss_in_its_unit_and_call_the_lower_one_better(lost: Standings) -> None:
    assert "Its personalised score is 0.300 nat as a mean over tasks, 0.100 nat worse than the best other (lora)." in verdict(lost)
    assert "Another method has the better personalised score on 1 of 1 task: t (lora by 0.100 nat)." in defeats(lost)
    table = overview.methods(lost)
    at = table.header.index("personalised, nat")
    assert [(row[at].text, row[at].best) for row in table.rows] == [("0.200", True), ("0.300", False), ("0.600", False)]
    text = "\n".join(to_markdown(table) for table in overview.all_tables(lost))
    assert "Loss in nat after the last round" in text and "Target = untrained model + 0.8" in text and "0.05 nat better than" in text
    assert not re.search(r"per cent|majority|(personalised|global|target|score) %", text)


def test_a_difference_below_the_digits_that_are_shown_is_level() -> None:
    def of(difference: float) -> Standings:
        return standings(ComparisonResults("made", (run("t", "fibecfed", [0.3]), run("t", "lora", [0.3 - difference])), Network()))

    level, behind = of(0.0004), of(0.0006)
    assert "Its personalised score is 0.300 nat as a mean over tasks, level with the best other (lora)." in verdict(level)
    assert defeats(level)[0].startswith("Nowhere on its 1 task") and not overview.losses(level).rows
    assert "Its personalised score is 0.300 nat as a mean over tasks, 0.001 nat worse than the best other (lora)." in verdict(behind)
    assert "t (lora by 0.001 nat)" in defeats(behind)[0] and overview.losses(behind).rows


def test_an_axis_says_that_lower_is_better_where_it_is(lost: Standings) -> None:
    shares = tuple(replace(one, metric=METRICS["accuracy"]) for one in lost.comparison.runs)
    for found, times in ((lost, 1), (standings(replace(lost.comparison, runs=shares)), 0)):
        drawn = [curves.curves(found, "t"), figures.trade(found), figures.clients(found, "t")]
        assert all(drawing.count("lower is better") == times for figure in drawn if figure for drawing in figure.drawings)


def test_the_page_and_its_figures_show_a_loss_in_its_unit(lost: Standings) -> None:
    figure = curves.curves(lost, "t")
    assert figure is not None and "lora: 0.200 nat after 2 rounds" in figure.drawings[0] and "untrained model" in figure.drawings[0]
    page = to_html(lost, overview.all_tables(lost))
    assert "Both are the loss after the last round" in page and "worst decile 0.76 nat, best decile 0.12 nat" in page


def test_a_comparison_by_another_metric_is_exported_and_read_back_with_its_own(lost: Standings, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(to_lines(lost.comparison, tmp_path), encoding="utf-8")
    back = from_lines(tmp_path / "c.jsonl")
    assert back.scores == ComparedMetric(LOSS) and list(standings(back).ranks) == ["lora", "fibecfed", "voc"]
    one = run("t", "lora", [0.8], metric=metric_named("f1:spam", ["ham", "spam"]))
    (tmp_path / "c.jsonl").write_text(to_lines(ComparisonResults("made", (one,), Network()), tmp_path), encoding="utf-8")
    assert from_lines(tmp_path / "c.jsonl").scores.what == "F1 of spam in per cent"


@pytest.mark.parametrize(("metric", "share"), [("loss", False), ("macro_f1", True)])
def test_folders_of_runs_are_compared_by_the_metric_of_their_records(tmp_path: Path, metric: str, share: bool) -> None:
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora", "voc"), ("rte", "sst2"), (0, 1), metric=metric, clients=8, rounds=6)
    found = write_report(tmp_path / "c", targets={"rte": 70 if share else 0.2})
    assert {one.metric.name for one in found.comparison.runs} == {metric}
    finals = {method: found.mean(method, "personalised") for method in found.ranks}
    means = [rank.mean for rank in found.ranks.values()]
    assert means == sorted(means) and next(iter(found.ranks)) == (max if share else min)(finals, key=lambda method: finals[method])
    assert found.targets["rte"].score == (0.7 if share else 0.2)
    if share:  # of always predicting the first class: 15 of 25 examples
        assert found.targets["sst2"].majority == pytest.approx(0.5 * (2 * 15 / (15 + 25)))
    else:
        assert found.targets["sst2"].majority == pytest.approx(0.5) and found.targets["sst2"].prior is None
    assert ("per cent" in (tmp_path / "c/report.md").read_text()) == share


def test_runs_of_another_metric_than_most_are_left_out_and_told(tmp_path: Path) -> None:
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora"), ("rte",), (0, 1), clients=6, rounds=4)
    made_runs.write_run(tmp_path / "c/runs/rte/voc/0", task="rte", method="voc", metric="loss", clients=6, rounds=4)
    found = read_comparison(tmp_path / "c")
    assert len(found.runs) == 4 and found.scores.metric.name == "accuracy"
    assert found.problems[0] == (
        "left out: 1 run scored by loss, where most are scored by accuracy: voc on rte; "
        "set the same evaluation.metric for all, or write a report of each"
    )


@pytest.mark.parametrize("score", [0.8, 850.0])
def test_a_target_in_per_cent_is_above_1_and_at_most_100(tmp_path: Path, score: float) -> None:
    made_runs.write_run(tmp_path / "run", clients=6, rounds=4)
    with pytest.raises(UserError, match=rf"--target: got sst2={score:g}, expected a score in per cent, above 1 and at most 100"):
        read_comparison(tmp_path / "run", targets={"sst2": score})


def test_the_report_of_one_run_has_scores_by_class_and_the_confusion_matrix(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "run", clients=6, rounds=4, final=0.8)
    found = write_report(tmp_path / "run")
    tables = {table.name: table for table in overview.all_tables(found)}
    by_class, personalised, server = (tables[name] for name in ("classes", "confusion-personalised", "confusion-global"))
    classes = found.comparison.runs[0].classes
    assert classes is not None and [row[0].text for row in by_class.rows] == ["no", "yes"]
    for table, matrix in ((personalised, classes.personalised), (server, classes.server)):
        assert [[cell.value for cell in row[1:]] for row in table.rows] == matrix
        assert table.header == ("true class", "predicted no", "predicted yes")
    (hit, missed), (false, right) = classes.personalised
    cells = dict(zip(by_class.header, by_class.rows[0], strict=True))
    assert cells["personalised: examples"].value == hit + missed
    assert cells["personalised: precision %"].value == pytest.approx(100 * hit / (hit + false))
    assert cells["personalised: recall %"].value == pytest.approx(100 * hit / (hit + missed))
    assert cells["personalised: F1 %"].value == pytest.approx(100 * 2 * hit / (2 * hit + missed + false)) and right
    assert "Confusion matrix, personalised" in (tmp_path / "run/report.html").read_text()


def test_classes_are_shown_of_a_single_run_alone(tmp_path: Path) -> None:
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora"), ("rte",), (0,), clients=6, rounds=4)
    assert not any(table.name == "classes" for table in overview.all_tables(standings(read_comparison(tmp_path / "c"))))
