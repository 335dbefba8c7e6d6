"""Three clients with a tiny model, as real processes and as a simulation of the same configuration and data."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import eager_supernode
from machines import Machines
from saved import save_backbone, write_reviews
from sums import matrix

from fibecfed.core.records import EvalRecord, RoundRecord, read

NAMES = ("a", "b", "c")

COMMON = """
[model]
name = "{backbone}"
rank = 4
[training]
batch_size = 4
learning_rate = 0.02
precision = "float32"
device = "cpu"
[evaluation]
every = {every}
[data]
labels = ["bad", "good"]
validation_fraction = 0.0
text_column = "review"
label_column = "verdict"
{data}
[federation]
clients = 3
{federation}
"""


def write_data(folder: Path) -> None:
    """One file of reviews for the simulator, and each client's part of it."""
    write_reviews(folder / "reviews.csv", 180)
    with (folder / "reviews.csv").open(encoding="utf-8") as file:
        rows = [{**row, "site": NAMES[(i // 2) % 3 if i % 5 else 0]} for i, row in enumerate(csv.DictReader(file))]
    for part, some in (("train", rows[:120]), ("test", rows[120:])):
        for name in ("all", *NAMES):
            with (folder / f"{name}-{part}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["review", "verdict", "site"])
                writer.writeheader()
                writer.writerows(row for row in some if name in ("all", row["site"]))


def make_tiny(
    folder: Path,
    every: int = 2,
    here: Machines | None = None,
    rank: int = 4,
    timeout_s: int = 120,
    method: str = '[method]\npreset = "paper"',
    **federation: Any,
) -> Machines:
    """Backbone, data, the federation's folder, and `sim.toml` for the simulator; keys of [federation] on top of both."""
    here = here or Machines(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_backbone(folder / "backbone")
    write_data(folder)
    here.make()
    data = f'path = "{folder}/all-train.csv"\ntest_path = "{folder}/all-test.csv"\nclient_column = "site"'
    keys = "\n".join(f"{key} = {value}" for key, value in {"on_failure": '"drop"', **federation}.items())
    for path, data_keys, more in (
        (here.app / "federation.toml", "", f'partition = "machines"\nround_timeout_s = {timeout_s}.0'),
        (folder / "sim.toml", data, 'partition = "column"'),
    ):
        text = COMMON.format(backbone=folder / "backbone", every=every, data=data_keys, federation=f"{keys}\n{more}\n{method}")
        path.write_text(text.replace("rank = 4", f"rank = {rank}"))
    return here


def start_tiny(here: Machines, programs: Mapping[str, tuple[str, ...]] | None = None, eager: bool = False) -> None:
    """SuperLink, clients and SuperNodes.

    Args:
        programs: what a client is started with instead of `python -m fibecfed`.
        eager: SuperNodes ask for messages without a pause, for many rounds whose seconds do not matter.
    """
    here.link()
    for name in NAMES:
        here.key(name)
        here.client(name, program=(programs or {}).get(name, ("-m", "fibecfed")))
        here.register(name)
    for name in NAMES:
        here.until(f"client-{name}", "listening at")
        if eager:
            here.node(name, (sys.executable, eager_supernode.__file__))
        else:
            here.node(name)


def facts(out: Path) -> list[Any]:
    """What was recorded, but for times, and for what an evaluation sends: across machines clients count for the global model too."""
    found: list[Any] = []
    for record in read(out / "records.jsonl")[1]:
        if isinstance(record, RoundRecord):
            found.append(
                (
                    record.failures,
                    record.cohort,
                    record.bytes_down,
                    record.bytes_up,
                    record.fields_down,
                    record.fields_up,
                    record.steps,
                    record.loss,
                )
            )
        elif isinstance(record, EvalRecord):
            of_all = (matrix(sums) for sums in (record.pooled, record.server, record.server_validation))
            found.append((record.failures, record.clients, *of_all))
            if record.rounds:
                found.append((record.pooled, record.bytes_down))
    return found


def outcome(out: Path) -> tuple[bytes, Any]:
    last = sorted((out / "checkpoints").glob("server-*.state"))[-1]
    return last.read_bytes(), json.loads((out / "summary.json").read_text())["adapters"]


def rounds_of(out: Path) -> list[RoundRecord]:
    return [record for record in read(out / "records.jsonl")[1] if isinstance(record, RoundRecord)]
