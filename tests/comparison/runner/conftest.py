"""A saved backbone and reviews for all tests of this folder, and a comparison on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved import save_inputs
from sums import sums

from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.plan import Job
from fibecfed.comparison.runner.read import load
from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, RoundRecord, to_line
from fibecfed.engine.summary import summarise

FILE = """
methods = ["fibecfed", "lora"]
tasks = ["reviews"]

[base]
model = {{ name = "{folder}/backbone", rank = 4 }}
federation = {{ clients = 4, clients_per_round = 2, rounds = 2 }}
training = {{ batch_size = 4, precision = "float32", device = "cpu" }}
evaluation = {{ every = 2 }}

[task.reviews.data]
path = "{folder}/reviews.csv"
text_column = "review"
label_column = "verdict"

[tuning]
tasks = ["reviews"]

[resources]
workers = 1
"""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, reviews, and a comparison of two methods on them."""
    folder = save_inputs(tmp_path_factory.mktemp("inputs"), 80)
    (folder / "compare.toml").write_text(FILE.format(folder=folder))
    return folder


@pytest.fixture
def compared(inputs: Path) -> Callable[..., ComparisonOptions]:
    """The comparison with `key=value` pairs laid over it."""

    def make(*pairs: str) -> ComparisonOptions:
        return load(inputs / "compare.toml", pairs)

    return make


def finish(one: Job, right: int = 80) -> dict[str, Any]:
    """The files of a finished run in a job's folder, with so many of 100 right answers; its summary."""
    from fibecfed.config import to_toml

    table = sums([[right, 0], [100 - right, 0]])
    configuration = one.config.model_dump()
    parts = {"a": {"train": [40, 40], "test": [50, 50]}}
    header = {
        "configuration": configuration,
        "partition": parts,
        "trainable": 3,
        "precision": "float32",
        "metric": "accuracy",
        "higher_is_better": True,
    }
    sent = {"a": 100}
    tuned = RoundRecord(
        "tune", 0, 0, ("a",), sent, sent, sent, sent, {"a": 10}, {"a": 80}, {"a": 0.5}, {"a": 0.5}, failures={}, server={}, seconds=0.5
    )
    records = [tuned, EvalRecord(1, {}, table, table, table, table, 0, 0, 0.0)]
    one.folder.mkdir(parents=True, exist_ok=True)
    (one.folder / "config.toml").write_text(to_toml(one.config))
    (one.folder / "records.jsonl").write_text(to_line(header) + "".join(map(to_line, records)))
    summary = summarise(records, metric=METRICS["accuracy"], selected={})
    (one.folder / "summary.json").write_text(json.dumps(summary))
    return summary


@pytest.fixture
def finished() -> Callable[..., dict[str, Any]]:
    """`finish`."""
    return finish


@pytest.fixture
def listener() -> Any:
    """A watcher that keeps what it was told."""

    class Listener:
        def __init__(self) -> None:
            self.begun: list[str] = []
            self.warnings: list[str] = []
            self.rounds: list[tuple[str, int, int]] = []

        def started(self, one: Any) -> None:
            self.begun.append(one.name)

        def round(self, one: Any, done: int, of: int, score: str | None = None) -> None:
            self.rounds.append((one.name, done, of))

        def warned(self, one: Any, text: str) -> None:
            self.warnings.append(text)

        def ended(self, one: Any, outcome: Any) -> None:
            pass

        def tick(self, waiting: Any) -> None:
            pass

    return Listener()
