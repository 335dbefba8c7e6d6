"""The report of a comparison of full size, made once a session; and a small comparison to damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import made_runs
import pytest

from fibecfed.comparison.report.comparison import read_comparison, write_report


@pytest.fixture(scope="session")
def big_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of 18 methods on 10 tasks with 3 seeds, evaluated 20 times each."""
    folder = tmp_path_factory.mktemp("big")
    made_runs.write_comparison(folder / "c", made_runs.METHODS, made_runs.TASKS, (0, 1, 2), clients=10, rounds=40, every=2)
    write_report(folder / "c", out=folder)
    return folder / "report.html"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A comparison of 12 runs."""
    made_runs.write_comparison(tmp_path / "c", ("fibecfed", "lora", "voc"), ("cola", "sst2"), (0, 1))
    return tmp_path / "c"


@pytest.fixture
def only() -> Callable[..., tuple[str, ...]]:
    """The problems of `folder`, of which the other runs are still read."""

    def problems(folder: Path, number: int = 1) -> tuple[str, ...]:
        found = read_comparison(folder)
        assert len(found.runs) == 12 - number
        assert len(found.problems) == number
        return found.problems

    return problems
