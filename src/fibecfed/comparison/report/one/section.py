"""A part of the report of one run, as values that a page, a Markdown file and a terminal show."""

from __future__ import annotations

from dataclasses import dataclass

from ..figures import Figure
from ..results import ComparisonResults, Run, RunFiles
from ..tables import Table


@dataclass(frozen=True)
class Section:
    """A part.

    Attributes:
        lines: sentences.
        note: what a reader has to know of the figures.
        facts: names and texts.
        is_folded: whether a page shows it at a click.
    """

    name: str
    title: str
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    note: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    is_folded: bool = False

    @property
    def is_empty(self) -> bool:
        return not (self.lines or self.tables or self.figures or self.facts)


def run_and_files(comparison: ComparisonResults) -> tuple[Run, RunFiles]:
    """The run that the report is of, and all that its files say.

    Raises:
        ValueError: the report is not of a single run.
    """
    if comparison.files is None:
        raise ValueError(f"{comparison.title} is not the folder of one run")
    return comparison.runs[0], comparison.files
