"""What the tests of this folder compute on: the GPU that is there; with `--device cpu` the same tests run small, without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chats import save_chats_and_reviews
from saved import run_config

from fibecfed.config import Config
from fibecfed.core.records import RoundRecord, read


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    asked = request.config.getoption("--device")
    if asked != "auto":
        return torch.device(asked)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    pytest.skip("no GPU: torch finds neither CUDA nor MPS; `make test-gpu DEVICE=cpu` runs these tests on the CPU")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, reviews and conversations."""
    return save_chats_and_reviews(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def config_on(inputs: Path) -> Any:
    """The configuration of a short run on a device; keys of its tables on top."""

    def made(device: torch.device, folder: Path | None = None, **tables: Any) -> Config:
        training = {"device": str(device), **tables.pop("training", {})}
        return run_config(folder or inputs, training=training, **tables)

    return made


@pytest.fixture
def facts() -> Any:
    """What a run's rounds did, and their losses, by round."""

    def of(out: Path) -> tuple[list[Any], list[float]]:
        rounds = [one for one in read(out / "records.jsonl")[1] if isinstance(one, RoundRecord)]
        counted = [(one.cohort, one.bytes_down, one.steps, one.examples, sorted(one.bytes_up)) for one in rounds]
        return counted, [loss for one in rounds for _, loss in sorted(one.loss.items())]

    return of
