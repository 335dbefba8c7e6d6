"""A comparison in one small file: a header, then a line per run. Its tables can be written again from it, without the runs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...core.clock import Network
from ...core.json_text import from_json, to_json, with_nan
from ...core.metrics import METRICS, Metric
from .recorded import TuningRow
from .results import ComparisonResults, Point, Run, SelectionRecord

EXPORT_VERSION = 3
"""Version 2, which knew no other metric than accuracy, is read as well."""
_OF_METRIC = ("name", "title", "needs", "higher_is_better", "unit")
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^/\s,;:()'\"]+/)*(?=\S)")  # of an absolute path, up to its last part


def to_lines(comparison: ComparisonResults, folder: Path) -> str:
    """JSON lines. Left out: scores of single clients, what was selected, and texts. Modelled seconds are those of the comparison's network.

    Args:
        folder: of the comparison, as its problems call it; they are shown without it, and without any other absolute path.
    """
    told: list[dict[str, Any]] = []
    lines = []
    for run in comparison.runs:
        if (known := dict(run.conditions)) not in told:
            told.append(known)
        table = asdict(run)
        del table["clients"], table["selection"], table["classes"], table["metric"], table["answers"]
        if not run.written:
            del table["written"]
        table["points"] = [[p.rounds, p.size, round(p.seconds, 4), round(p.personalised, 12), round(p.server, 12)] for p in run.points]
        table["majority"], table["prior"] = round(run.majority, 12), round(run.prior, 12)
        table["measured_s"] = round(run.measured_s, 3)
        table["conditions"] = told.index(known)
        lines.append(table)
    header = {
        "kind": "comparison",
        "version": EXPORT_VERSION,
        "title": comparison.title,
        "metric": {name: getattr(comparison.scores.metric, name) for name in _OF_METRIC},
        "network": asdict(comparison.network),
        "problems": without_folders(comparison.problems, folder),
        "tuning": {method: row and row.model_dump(exclude_unset=True) for method, row in comparison.tuning.items()},
        "fixed_targets": dict(comparison.fixed_targets),
        "conditions": told,
    }
    return "".join(to_json(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in (header, *lines))


def without_folders(problems: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Problems as they are handed on: without where the comparison's folder lies, and without any other absolute path."""
    below = re.compile(rf"(?<![\w./-]){re.escape(str(folder))}/")
    return tuple(_FOLDERS.sub("", below.sub("", problem)) for problem in problems)


def from_lines(path: Path) -> ComparisonResults:
    """What `to_lines` wrote.

    Raises:
        ValueError: naming the file and the line that is of no export of this version.
    """
    number = 1
    try:
        texts = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a text may hold other ends of a line
        header = from_json(texts[0])
        if header["kind"] != "comparison" or header["version"] not in (2, EXPORT_VERSION):
            raise ValueError(f"got {header['kind']} of version {header['version']}, expected comparison of version 2 or {EXPORT_VERSION}")
        metric = _metric(header["metric"]) if header["version"] > 2 else METRICS["accuracy"]
        tuning = {method: row and TuningRow.model_validate(row) for method, row in header["tuning"].items()}
        problems, runs = tuple(header["problems"]), []
        for number, text in enumerate(texts[1:], start=2):  # noqa: B007 - the message below says where it stopped
            runs.append(_run(from_json(text), header["conditions"], metric))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}, line {number}: no export of a comparison ({type(error).__name__}: {error})") from None
    return ComparisonResults(header["title"], tuple(runs), Network(**header["network"]), problems, tuning, header["fixed_targets"])


def _metric(table: dict[str, Any]) -> Metric:
    """As it was written: one of a single class is known by its name where the classes are."""
    return METRICS.get(table["name"]) or Metric(value=lambda _: math.nan, **{**table, "needs": tuple(table["needs"])})


def _run(table: dict[str, Any], told: list[dict[str, Any]], metric: Metric) -> Run:
    names = [item.name for item in fields(Point)]
    if "metric" in table:  # version 2
        table |= {"usual": table.pop("metric"), "usual_personalised": table.pop("metric_personalised")}
    points = tuple(Point(**with_nan(Point, dict(zip(names, values, strict=True)))) for values in table.pop("points"))
    known = told[table.pop("conditions")]
    return Run(**with_nan(Run, table), points=points, metric=metric, clients=(), selection=SelectionRecord(), conditions=known)
