"""Answers side by side: what the methods write to one prompt stands together, whole examples at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import made_runs
import pytest

from fibecfed.comparison.report.answers import of_answers
from fibecfed.comparison.report.comparison import read_comparison
from fibecfed.comparison.report.recorded import WrittenExample

Made = Callable[[int], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A comparison of three methods with that many examples a run."""
    folder = tmp_path_factory.mktemp("answers") / "c"
    made_runs.write_comparison(folder, ("fibecfed", "lora", "voc"), ("cola", "sst2"), (0, 1))
    found = read_comparison(folder)

    def with_answers(number: int) -> Any:
        runs = [replace(run, answers=tuple(example(place, run.method) for place in range(number))) for run in found.runs]
        return replace(found, runs=tuple(runs))

    return with_answers


def example(place: int, method: str) -> WrittenExample:
    texts = {"untrained": "x", "global": f"{method} for all", "personalised": f"{method} own"}
    return WrittenExample.model_validate({"client": f"c{place:02}", "prompt": f"a\nb{place}", "expected": "e", **texts})


def test_methods_stand_together_by_prompt_and_only_the_first_seed_is_shown(made: Made) -> None:
    (table,) = of_answers(made(2))
    rows = [[cell.text for cell in row] for row in table.rows]
    assert table.header == ("task", "client", "prompt", "expected", "method", "untrained", "global", "personalised")
    wanted = [(task, client, method) for task in ("cola", "sst2") for client in ("c00", "c01") for method in ("fibecfed", "lora", "voc")]
    assert [(row[0], row[1], row[4]) for row in rows] == wanted
    assert rows[0][2:] == ["a ↵ b0", "e", "fibecfed", "x", "fibecfed for all", "fibecfed own"]


def test_an_example_is_shown_for_all_methods_or_for_none_and_the_others_are_counted(made: Made) -> None:
    (table,) = of_answers(made(25))
    assert len(table.rows) == 60 and "90 more are in the runs' answers.jsonl" in table.note
    assert {sum(row[:2] == other[:2] for other in table.rows) for row in table.rows} == {3}


def test_of_a_long_prompt_the_end_is_shown_and_of_a_long_answer_the_beginning(made: Made) -> None:
    found = made(1)
    long = found.runs[0].answers[0].model_copy(update={"prompt": "p" * 300 + "question", "expected": "answer" + "e" * 300})
    (table,) = of_answers(replace(found, runs=(replace(found.runs[0], answers=(long,)),)))
    prompt, expected = table.rows[0][2].text, table.rows[0][3].text
    assert prompt.startswith("... p") and prompt.endswith("question") and len(prompt) == 244
    assert expected.startswith("answer") and expected.endswith("e ...") and len(expected) == 244


def test_without_answers_there_is_no_table(made: Made) -> None:
    assert of_answers(made(0)) == []
