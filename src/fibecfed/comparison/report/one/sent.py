"""What was sent between server and clients, and what a run cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.filesize import decimal

from ....core.clock import clock_in_words
from ....core.records import EvalRecord, RoundRecord
from ....core.units import count, duration
from ....privacy.statement import rounded_up
from .. import tables
from ..conditions import conditions
from ..results import ComparisonResults
from ..tables import Column, Table, number, words
from .section import Section, run_and_files

_WAYS = ("to a client", "from a client")


def sent(comparison: ComparisonResults) -> Section:
    """Messages by phase and field."""
    run, files = run_and_files(comparison)
    rounds = [one for one in files.records if isinstance(one, RoundRecord)]
    evaluations = [one for one in files.records if isinstance(one, EvalRecord)]
    scoring = sum(one.bytes_down + one.bytes_up for one in evaluations)
    lines = [
        f"{decimal(run.bytes_down)} went to the clients and {decimal(run.bytes_up)} came back, in {count(len(rounds), 'round')}; the "
        f"evaluations took another {decimal(scoring)}."
    ]
    found = _table(rounds)
    return Section("sent", "What was sent", tuple(lines), (found,) if found.rows else ())


def _table(rounds: Sequence[RoundRecord]) -> Table:
    whole = sum(sum(one.bytes_down.values()) + sum(one.bytes_up.values()) for one in rounds)
    size: dict[tuple[str, str, str], int] = {}
    asked: dict[str, int] = {}
    for one in rounds:
        asked[one.phase] = asked.get(one.phase, 0) + len(one.cohort) + sum(len(attempt.cohort) for attempt in one.attempts)
        for way, fields in zip(_WAYS, (one.fields_down, one.fields_up), strict=True):
            for field, sent_ in fields.items():
                size[one.phase, way, field] = size.get((one.phase, way, field), 0) + sent_
    columns = [
        Column("phase", lambda place: words(place[0])),
        Column("direction", lambda place: words(place[1])),
        Column("field", lambda place: words(place[2])),
        Column("kB per client and round", lambda place: number(size[place] / max(1, asked[place[0]]) / 1e3, 1)),
        Column("MB in all", lambda place: number(size[place] / 1e6, 2)),
        Column("% of all", lambda place: number(100 * size[place] / whole if whole else None, 1)),
    ]
    note = (
        "Bytes of the tensors in each field of the messages of training and preparation; overhead: names, shapes and what else frames "
        "them. Beside these a client sends the sums that evaluations are scored by, and across machines its name, versions, configuration "
        "and error messages."
    )
    kept = [place for place in size if size[place]]
    return tables.table("sent", "Messages by field", note, columns, kept)


def cost(comparison: ComparisonResults) -> Section:
    """Steps, seconds and bytes, and on what they were measured."""
    run, files = run_and_files(comparison)
    rounds = [one for one in files.records if isinstance(one, RoundRecord)]
    scoring = sum(one.seconds for one in files.records if isinstance(one, EvalRecord))
    computed = [seconds for one in rounds for seconds in one.compute_s.values()]
    slowest = sum(max(one.compute_s.values(), default=0.0) for one in rounds)
    facts = [
        *_privacy(files.summary.get("privacy")),
        *([("Steps", f"{run.steps:,} optimiser steps on {run.examples:,} examples, all clients together")] if run.steps else []),
        ("Adapter and head", f"{run.trainable:,} parameters on each client, of which the method may train a part"),
        ("Time on this machine", f"{duration(run.measured_s)} of rounds, {duration(scoring)} of evaluations"),
    ]
    if sum(computed):
        facts.append(
            (
                "Time of the clients",
                f"{duration(sum(computed))} together; {duration(slowest)} for the slowest of each round, one after the other "
                f"({clock_in_words(run.conditions['clock'])})",
            )
        )
    facts.append(("Modelled time", f"{duration(run.last.seconds)} over {comparison.network.describe()}"))
    if run.source_examples:
        facts.append(("Trained beforehand", f"source prompts on {run.source_examples:,} examples in {duration(run.source_s)}"))
    return Section("cost", "What it cost", facts=tuple(facts))


def _privacy(found: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What a private run guarantees; it does not record how much it computed."""
    if found is None:
        return []
    return [("Privacy", f"({rounded_up(found['epsilon'])}, {found['delta']:g}) for each {found['unit']}; {found['ended']}")]


def settings(comparison: ComparisonResults) -> Section:
    """Under which conditions the run was made."""
    return Section("settings", "Settings", facts=tuple(conditions(comparison)), is_folded=True)
