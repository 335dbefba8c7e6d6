"""One saved backbone, one file of reviews and one uninterrupted run for all tests of this folder; they are only read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved import run_config, save_inputs

from fibecfed import session


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone and reviews."""
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[Any]]:
    """Folder, summary and events of a run that nothing interrupted."""
    out, events = tmp_path_factory.mktemp("whole") / "run", []
    return out, session.start(run_config(inputs), out, events.append), events
