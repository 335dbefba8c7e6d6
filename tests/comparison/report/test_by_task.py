"""Tables of methods x tasks: what stands in a cell, with its spread over seeds, and which is the best of its column."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from fibecfed.comparison.report import overview, tables
from fibecfed.comparison.report.by_task import measure, own_metrics, scores, to_target
from fibecfed.comparison.report.results import ComparisonResults, Point, Run, SelectionRecord
from fibecfed.comparison.report.standing import Standings, standings
from fibecfed.comparison.report.tables import Cell, Column, Table
from fibecfed.core.clock import Network


def run(task: str, method: str, curve: list[float], seed: int = 0, **more: Any) -> Run:
    """A run evaluated after every round, each of which takes 10 MB and 2 seconds."""
    points = tuple(Point(i, 10_000_000 * i, 2.0 * i, value, value) for i, value in enumerate([0.5, *curve]))
    fields: dict[str, Any] = {
        "task": task, "method": method, "seed": seed, "kind": method, "points": points, "majority": 0.5, "worst_decile": None,
        "usual": None, "usual_personalised": None, "bytes_up": 5, "bytes_down": 5, "steps": 7, "examples": 56, "trainable": 3,
        "measured_s": 1.0, "clients": (), "selection": SelectionRecord(), "conditions": {"learning_rate": 0.1},
    }  # fmt: skip
    return Run(**{**fields, **more})


def stand(*runs: Run) -> Standings:
    return standings(ComparisonResults("made", runs, Network()))


def cell(table: Table, method: str, column: str) -> Cell:
    (row,) = [row for row in table.rows if row[0].text == method]
    return row[table.header.index(column)]


def bold(table: Table, column: str) -> set[str]:
    return {row[0].text for row in table.rows if row[table.header.index(column)].best}


def test_the_mean_of_a_score_table_has_the_deviation_of_the_seeds_means():
    made = [run("t", "a", [0.8]), run("t", "a", [0.9], 1), run("u", "a", [0.7]), run("u", "a", [0.62], 1)]
    table = scores(stand(*made, run("t", "b", [0.6]), run("u", "b", [0.6])), "personalised")
    deviation = 100 * statistics.stdev([0.75, 0.76])
    assert cell(table, "a", "mean").text == f"75.5 ± {deviation:.1f}" and cell(table, "b", "mean").text == "60.0"
    assert cell(table, "a", "t").text == "85.0 ± 7.1"
    assert bold(table, "mean") == bold(table, "t") == {"a"}


def test_a_seed_that_lacks_a_task_is_in_the_mean_but_not_in_its_deviation():
    made = [run("t", "a", [0.8]), run("t", "a", [0.9], 1), run("t", "a", [0.7], 2), run("u", "a", [0.7]), run("u", "a", [0.6], 1)]
    found = stand(*made).overall("a", "personalised")
    assert found is not None and found.count == 2
    assert found.mean == pytest.approx((0.8 + 0.65) / 2) and found.deviation == pytest.approx(0.0)
    assert stand(*made).overall("c", "personalised") is None


def test_costs_of_a_target_have_their_ends_over_seeds_where_they_differ():
    runs = [
        run("t", "a", [0.9, 0.9]),
        run("t", "a", [0.6, 0.9], 1),
        run("t", "a", [0.6, 0.6], 2),
        run("t", "b", [0.9]),
        run("t", "b", [0.9], 1),
    ]
    found = stand(*runs)
    assert cell(to_target(found, "rounds"), "a", "t").whole == "2 (1 to never)"
    assert cell(to_target(found, "bytes"), "a", "t").whole == "20.0 (10.0 to never)"
    assert cell(to_target(found, "time"), "a", "t").whole == "4.0 s (2.0 s to never)"
    assert cell(to_target(found, "rounds"), "b", "t").whole == "1"
    assert bold(to_target(found, "rounds"), "t") == {"b"}
    assert "2 (1 to never)" in tables.to_markdown(to_target(found, "rounds"))
    assert tables.to_csv(to_target(found, "rounds")) == "method,t\nb,1.0\na,2\n"


def test_bytes_steps_and_values_of_each_task_are_means_over_seeds():
    small = {"bytes_up": 1_000_000, "bytes_down": 0}
    made = [run("t", "a", [0.9], steps=10, bytes_up=2_000_000), run("t", "a", [0.9], 1, steps=14, bytes_up=4_000_000)]
    found = stand(*made, run("t", "b", [0.8], **small, trainable=9), run("t", "local", [0.7], bytes_up=1), run("u", "b", [0.8], steps=1234))
    deviation = statistics.stdev([10, 14])
    assert cell(measure(found, "steps"), "a", "t").text == f"12 ± {deviation:.0f}"
    assert cell(measure(found, "bytes"), "a", "t").text == "3.0 ± 1.4"
    assert cell(measure(found, "steps"), "b", "u").text == "1,234" and cell(measure(found, "steps"), "a", "u").text == "-"
    assert bold(measure(found, "bytes"), "t") == {"b"} and bold(measure(found, "steps"), "t") == {"b", "local"}
    assert cell(measure(found, "values"), "b", "t").text == "9" and bold(measure(found, "values"), "t") == set()


def test_tasks_with_a_metric_of_their_own_have_a_table_of_it():
    matthews, f1 = {"usual": "matthews", "usual_personalised": 0.5}, {"usual": "f1", "usual_personalised": 0.8}
    made = [run("cola", "a", [0.9], **matthews), run("cola", "b", [0.8], usual="matthews", usual_personalised=-0.1)]
    table = own_metrics(stand(*made, run("mrpc", "a", [0.8], **f1), run("t", "a", [0.8])))
    assert table.header == ("method", "cola, Matthews", "mrpc, F1")
    assert cell(table, "a", "cola, Matthews").text == "50.0" and cell(table, "b", "cola, Matthews").text == "-10.0"
    assert cell(table, "b", "mrpc, F1").text == "-" and bold(table, "cola, Matthews") == {"a"}
    assert own_metrics(stand(run("t", "a", [0.8]))).rows == ()


def test_the_best_of_each_column_of_all_methods_is_set_off_where_better_means_something():
    fast = {"bytes_up": 3_000_000, "bytes_down": 0, "steps": 5}
    made = [
        run("t", "fibecfed", [0.9], **fast),
        run("t", "lora", [0.5, 0.9], steps=9, bytes_up=4_000_000),
        run("t", "local", [0.6], steps=9),
    ]
    table = overview.methods(stand(*made))
    winners = {name: bold(table, name) for name in table.header}
    assert winners["mean rank"] == winners["personalised %"] == {"fibecfed", "lora"}
    assert (
        winners["first to target"]
        == winners["steps per run"]
        == winners["MB per run"]
        == winners["bytes relative to the smallest"]
        == {"fibecfed"}
    )
    assert winners["tasks"] == winners["parameters of adapter and head"] == winners["95 % interval"] == set()


BEST = (("method", None), ("p", max), ("q", max), ("r", min))


def test_nothing_is_set_off_in_a_column_of_equal_numbers_or_of_one():
    rows = tuple((Cell(name), Cell("1", 1.0), Cell("x", value), Cell("never", math.inf)) for name, value in (("a", 1.0), ("b", None)))
    columns = [Column(name, lambda row, place=place: row[place], best) for place, (name, best) in enumerate(BEST)]
    shown = tables.table("n", "", "", columns, rows)
    assert not any(one.best for row in shown.rows for one in row)
