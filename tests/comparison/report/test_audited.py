"""An audit's file as a part of the report of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from made_runs import write_run

from fibecfed.comparison.report.audited import audited
from fibecfed.comparison.report.comparison import read_report
from fibecfed.comparison.report.one import report
from fibecfed.comparison.report.tables import to_csv, to_markdown
from fibecfed.core.files import AUDIT

FOUND: dict[str, Any] = {
    "rounds": [0],
    "method": "lora",
    "views": ["round 0: one update", "final model"],
    "rows": [
        {
            "name": "members by loss", "unit": "AUC", "guessing": 0.5, "why_empty": None,
            "views": {"round 0: one update": {"value": 0.65, "low": 0.62, "high": 0.68, "better_than_guessing": True}},
        },
        {"name": "words", "unit": "AUC of words", "guessing": 0.5, "views": {}, "why_empty": "the first block is not sent"},
    ],
    "note": "This run is private.",
    "warning": "These attacks are simple.",
}  # fmt: skip


def test_a_run_that_was_not_audited_has_no_part(tmp_path: Path) -> None:
    assert audited(tmp_path) == ((), ())


def test_each_attack_is_a_row_with_its_views(tmp_path: Path) -> None:
    (tmp_path / AUDIT).write_text(json.dumps(FOUND))
    lines, (table,) = audited(tmp_path)
    assert lines == ("This run is private.", "words: not measured, the first block is not sent.")
    assert table.header == ("attack", "measured", "guessing reaches", "round 0: one update", "final model")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["members by loss", "AUC", "0.50", "0.65 ± 0.03*", "-"],
        ["words", "AUC of words", "-", "-", "-"],
    ]
    assert "0.65 ± 0.03" in to_markdown(table) and "members by loss,AUC,0.5,0.65," in to_csv(table) and "simple" in table.note


def test_a_damaged_audit_is_a_sentence(tmp_path: Path) -> None:
    for text, sentence in (("{", "expected"), (json.dumps({**FOUND, "views": 3}), "views: got 3"), (json.dumps({}), "without views, rows")):
        (tmp_path / AUDIT).write_text(text)
        (line,), found = audited(tmp_path)
        assert found == () and sentence in line and "make it anew with: fibecfed audit" in line


def test_the_report_of_the_run_has_it_as_a_part(tmp_path: Path) -> None:
    write_run(tmp_path / "run", clients=8, rounds=6, final=0.8)
    assert "audit" not in [one.name for one in report.parts(read_report(tmp_path / "run"))]
    (tmp_path / "run" / AUDIT).write_text(json.dumps(FOUND))
    found = read_report(tmp_path / "run")
    (part,) = [one for one in report.parts(found) if one.name == "audit"]
    assert [one.name for one in part.tables] == ["audit"] and part.lines[0] == "This run is private."
    assert "members by loss" in report.to_html(found) and "0.65 ± 0.03" in report.to_markdown(found)
