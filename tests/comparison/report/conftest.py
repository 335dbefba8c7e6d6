"""The report of a comparison of full size, made once a session."""

from __future__ import annotations

from pathlib import Path

import made_runs
import pytest

from fibecfed.comparison.report.comparison import write_report


@pytest.fixture(scope="session")
def big_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of 18 methods on 10 tasks with 3 seeds, evaluated 20 times each."""
    folder = tmp_path_factory.mktemp("big")
    made_runs.write_comparison(folder / "c", made_runs.METHODS, made_runs.TASKS, (0, 1, 2), clients=10, rounds=40, every=2)
    write_report(folder / "c", out=folder)
    return folder / "report.html"
