"""What models wrote, side by side, where runs have kept some of it: texts, which stand in the report's files alone."""

from __future__ import annotations

from . import tables
from .recorded import WrittenExample
from .results import ComparisonResults, Run
from .tables import Column, Table, words

_LONGEST = 240
"""[C] Characters of a text that are shown."""
_RUNS = 40
"""[C] Examples that are shown, at most."""


def of_answers(comparison: ComparisonResults) -> list[Table]:
    """Prompts with the expected answer and those of the untrained, the global and the client's own model, of the runs with the first seed;
    nothing where no run has any."""
    rows = [(run, one) for run in comparison.runs if run.seed == comparison.seeds[0] for one in run.answers]
    columns = [
        Column("task", lambda row: words(row[0].task)),
        Column("method", lambda row: words(row[0].method)),
        Column("client", lambda row: words(row[1].client)),
        *(Column(name, lambda row, name=name: words(_shown(getattr(row[1], name.replace("global", "global_"))))) for name in _TEXTS),
    ]
    shown: list[tuple[Run, WrittenExample]] = rows[:_RUNS]
    more = f"; {len(rows) - _RUNS} more are in the runs' answers.jsonl" if len(rows) > _RUNS else ""
    note = (
        f"Test examples of clients, with the most likely answer of each model{more}. ↵ is the end of a line. "
        "evaluation.examples = 0 writes none."
    )
    return [tables.table("answers", "Answers side by side", note, columns, shown)] if shown else []


_TEXTS = ("prompt", "expected", "untrained", "global", "personalised")


def _shown(text: str) -> str:
    """In one line, its end cut off."""
    line = " ↵ ".join(part.strip() for part in text.strip().splitlines())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
