"""What models wrote, side by side, where runs have kept some of it: texts, which stand in the report's files alone."""

from __future__ import annotations

from itertools import groupby

from . import tables
from .recorded import WrittenExample
from .results import ComparisonResults, Run
from .tables import Column, Table, words

_LONGEST = 240
"""[C] Characters of a text that are shown."""
_ROWS = 60
"""[C] Rows that are shown, at most, but for those of the first example."""


def of_answers(comparison: ComparisonResults) -> list[Table]:
    """Prompts with the expected answer and those of the untrained, the global and the client's own model, of the runs with the first seed;
    what the methods answer to one prompt stands together. Nothing where no run has any."""
    found = [(run, one) for run in comparison.runs if run.seed == comparison.seeds[0] for one in run.answers]
    places = {task: place for place, task in enumerate(comparison.tasks)}
    rows = sorted(found, key=lambda row: (places[row[0].task], *_example(row)))
    columns = [
        Column("task", lambda row: words(row[0].task)),
        Column("client", lambda row: words(row[1].client)),
        Column("prompt", lambda row: words(_end(row[1].prompt))),
        Column("expected", lambda row: words(_beginning(row[1].expected))),
        Column("method", lambda row: words(row[0].method)),
        *(Column(name, lambda row, name=name: words(_beginning(getattr(row[1], name.replace("global", "global_"))))) for name in _MODELS),
    ]
    shown = list[tuple[Run, WrittenExample]]()
    for _, some in groupby(rows, key=lambda row: (row[0].task, *_example(row))):
        of_one = list(some)
        if shown and len(shown) + len(of_one) > _ROWS:
            break
        shown += of_one
    more = f"; {len(rows) - len(shown)} more are in the runs' answers.jsonl" if len(rows) > len(shown) else ""
    note = (
        f"Test examples of clients, with the most likely answer of each model{more}. Prompts are as the model reads them, without its "
        "special tokens. ↵ is the end of a line. evaluation.examples = 0 writes none."
    )
    return [tables.table("answers", "Answers side by side", note, columns, shown)] if shown else []


_MODELS = ("untrained", "global", "personalised")


def _example(row: tuple[Run, WrittenExample]) -> tuple[str, str, str]:
    """What is the same for all methods."""
    return row[1].client, row[1].prompt, row[1].expected


def _beginning(text: str) -> str:
    """In one line, its end cut off."""
    line = _line(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def _end(text: str) -> str:
    """In one line, its beginning cut off: the question is behind the system message and earlier turns."""
    line = _line(text)
    return line if len(line) <= _LONGEST else f"... {line[-_LONGEST:]}"


def _line(text: str) -> str:
    return " ↵ ".join(part.strip() for part in text.strip().splitlines())
