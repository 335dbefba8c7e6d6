"""Runs that were stopped, and whether they ended as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved import adapter_files, interrupted_at, run_config

from fibecfed import session
from fibecfed.core.records import read


def begun(inputs: Path, out: Path, number: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs), out, interrupted_at(number))


def facts(out: Path) -> list[Any]:
    """The records without what a clock said."""
    without = ("seconds", "cpu_s", "compute_s")
    return [{name: value for name, value in vars(record).items() if name not in without} for record in read(out / "records.jsonl")[1]]


def as_if_nothing_had_happened(out: Path, summary: dict[str, Any], whole: Any) -> bool:
    """Adapters, records and summary are those of the whole run, clocks aside."""
    folder, expected, _ = whole
    timeless = [
        {name: value for name, value in one.items() if name not in ("seconds", "cpu_s", "compute_s", "evaluation")}
        for one in (summary, expected)
    ]
    return timeless[0] == timeless[1] and adapter_files(out) == adapter_files(folder) and facts(out) == facts(folder)
