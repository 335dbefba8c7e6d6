"""The short file of a comparison gives the same tables as the runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import made_runs
import pytest

from fibecfed.comparison.report import overview, tables
from fibecfed.comparison.report.compact import from_lines, to_lines
from fibecfed.comparison.report.comparison import read_comparison, write_report
from fibecfed.comparison.report.conditions import conditions
from fibecfed.comparison.report.markdown import section
from fibecfed.comparison.report.recorded import TuningRow
from fibecfed.comparison.report.results import ComparisonResults
from fibecfed.comparison.report.standing import standings
from fibecfed.core.clock import Network


def shown(comparison: object) -> list[str]:
    return [tables.to_markdown(table) for table in overview.all_tables(standings(comparison))]  # type: ignore[arg-type]


def test_every_table_written_from_the_export_equals_that_of_the_runs(tmp_path: Path):
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora", "without masks"), ("cola", "sst2"), (0, 1), clients=6, rounds=4)
    network, targets = Network(up_mbit=2.0), {"cola": 61}
    write_report(tmp_path / "c", network, targets, export=tmp_path / "c.jsonl")
    found = from_lines(tmp_path / "c.jsonl")
    assert shown(found) == shown(read_comparison(tmp_path / "c", network, targets))
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 1 + 12
    text = section(found)
    assert "### Personalised score" in text and "**Verdict**" in text and "All runs" not in text


def test_a_line_that_cannot_be_used_is_named(tmp_path: Path):
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora"), ("cola",), (0,), clients=6, rounds=4)
    path = tmp_path / "c.jsonl"
    write_report(tmp_path / "c", export=path)
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.raises(ValueError, match=r"c\.jsonl, line 3: no export"):
        from_lines(path)
    path.write_text(whole.replace('"version":3', '"version":9', 1))
    with pytest.raises(ValueError, match=r"line 1: .*version 9"):
        from_lines(path)


def test_tuning_is_told_by_what_was_tried_and_its_absence_too(tmp_path: Path):
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora"), ("cola",), (0,), clients=6, rounds=4)
    assert dict(conditions(read_comparison(tmp_path / "c")))["Tuning"].startswith("none recorded")
    row = {"tried": [{"rate": 0.0005, "score": 0.81}, {"rate": 0.0015, "score": None}], "chosen": 0.0005, "source": "a paper"}
    (tmp_path / "c/tuning.json").write_text(json.dumps({"fibecfed": row, "lora": {**row, "tried": row["tried"][:1]}}))
    found = read_comparison(tmp_path / "c")
    assert dict(conditions(found))["Tuning"] == "1 to 2 rates tried for each of 2 methods; see the table"
    assert {row[2].value for row in overview.tuning(standings(found)).rows} == {0.0005}  # so that a click sorts by it
    assert "| fibecfed | 0.0005: 81.0, 0.0015: diverged | 0.0005 | a paper |" in "\n".join(shown(found))


def test_a_server_rate_stands_beside_the_learning_rate_and_the_column_still_sorts_by_that():
    def rates(client: float, server: float) -> dict[str, float]:
        return {"training.learning_rate": client, "method.server_learning_rate": server}

    tried = [{"rate": 0.04, "score": 0.55, "rates": rates(0.04, 0.3)}, {"rate": 0.00444, "score": 0.61, "rates": rates(0.00444, 2.7)}]
    row = {"tried": tried, "chosen": 0.00444, "source": "a paper", "rates": rates(0.00444, 2.7)}
    plain = {"tried": [{"rate": 0.1, "score": 1}], "chosen": 0.1, "source": "a paper"}
    table = overview.tuning(
        standings(ComparisonResults("c", (), Network(), tuning={"moms-adamw": TuningRow(**row), "lora": TuningRow(**plain)}))
    )
    (_, all_tried, chosen, _), (_, one, other, _) = table.rows
    assert all_tried.text == "0.04 (server 0.3): 55.0, 0.00444 (server 2.7): 61.0"
    assert (chosen.text, chosen.value) == ("0.00444 (server 2.7)", 0.00444)
    assert (one.text, other.text, other.value) == ("0.1: 100.0", "0.1", 0.1)


def test_what_is_missing_is_exported_and_told_without_the_paths_of_a_machine(tmp_path: Path):
    made_runs.write_comparison(tmp_path / "c d", ("fibecfed", "lora"), ("cola",), (0, 1), clients=6, rounds=4)
    (tmp_path / "c d/runs/cola/lora/0/summary.json").unlink()
    (tmp_path / "c d/runs/cola/lora/1/summary.json").unlink()
    reason = f"ValueError: no; its traceback is in {tmp_path}/other/1.traceback.txt"
    (tmp_path / "c d/runs/cola/lora/1/failure.json").write_text(json.dumps({"why": "stopped", "reason": reason}))
    write_report(tmp_path / "c d", export=tmp_path / "c.jsonl")
    unfinished, stopped = from_lines(tmp_path / "c.jsonl").problems
    assert unfinished.startswith("runs/cola/lora/0: got no summary.json") and unfinished.endswith("fibecfed resume runs/cola/lora/0")
    assert stopped == "runs/cola/lora/1: no result, stopped: ValueError: no; its traceback is in 1.traceback.txt"
    assert f"**Missing from this report**\n\n- {unfinished}\n- {stopped}\n" in section(from_lines(tmp_path / "c.jsonl"))


def test_a_text_may_hold_any_character(tmp_path: Path):
    made_runs.write_run(tmp_path / "run", clients=6, rounds=4)
    odd = replace(read_comparison(tmp_path / "run"), title="one\u2028two\x85three\nfour\r")
    (tmp_path / "c.jsonl").write_text(to_lines(odd, tmp_path / "run"), encoding="utf-8")
    assert from_lines(tmp_path / "c.jsonl").title == odd.title


def test_numbers_that_are_not_there_come_back_as_nan(tmp_path: Path):
    made_runs.write_comparison(tmp_path / "c", ("lora",), ("cola",), (0,), clients=6, rounds=4)
    found = read_comparison(tmp_path / "c", Network(), {})
    first = found.runs[0].points[0]
    run = replace(found.runs[0], majority=math.nan, points=(replace(first, personalised=math.nan),))
    path = tmp_path / "c.jsonl"
    path.write_text(to_lines(replace(found, runs=(run,)), tmp_path), encoding="utf-8")
    assert "NaN" not in path.read_text(encoding="utf-8")
    (back,) = from_lines(path).runs
    assert math.isnan(back.majority) and math.isnan(back.points[0].personalised) and back.points[0].server == round(first.server, 12)
