"""What a run has learned: its scores beside what can be had without reading a text, without training, and without the other clients."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any

from ....core.files import CONFIG
from ....core.units import duration
from ....engine.baselines import other_scores, remarks
from .. import tables
from ..results import ComparisonResults, RunFiles
from ..scores import ComparedMetric
from ..standing import ALONE
from ..tables import Column, Table, score, words
from .alone import Alone, alone_beside, beside
from .section import Section, run_and_files

PERSONALISED, GLOBAL, WORST = "pooled_personalised", "global", "worst_decile"


def learned(comparison: ComparisonResults) -> Section:
    """Scores, and what they are worth."""
    run, files = run_and_files(comparison)
    saved, of, alone = files.summary["saved"], comparison.scores, alone_beside(files)
    lines = [*_personalised(saved, files.summary, of), *_global(saved, files.summary, of), *_alone(comparison, saved, alone)]
    if saved[PERSONALISED] is None and saved[GLOBAL] is None:
        lines = ["No test examples were counted in this run, so that nothing can be said of what was learned."]
    elif (
        run.kind not in (ALONE, "custom")
        and alone is None
        and files.is_finished
        and "privacy" not in files.summary
        and _is_simulated(files)
    ):
        again = ["fibecfed", "run", str(files.folder / CONFIG), f"method.kind={ALONE}", "--out", str(beside(files.folder))]
        lines.append(f"Not measured: each client alone. This measures it, and the next report shows it here: {shlex.join(again)}")
    notes = remarks({**files.summary, "rising": None})  # which the next section says
    return Section("learned", "What was learned", (*lines, *notes), (scores(comparison, alone), *_others(files.summary)))


def _others(summary: Mapping[str, Any]) -> list[Table]:
    """Scores under other metrics; nothing where there are none."""
    found = other_scores(summary)
    columns = [
        Column("metric", lambda row: words(row[0].title)),
        Column("personalised", lambda row: words(row[0].text(row[1]))),
        Column("global", lambda row: words(row[0].text(row[2]))),
    ]
    note = "After the last round."
    if any(metric.name == "rouge_l" for metric, _, _ in found):
        note += " Exact match, Rouge-L and stop rate: of the answers that were generated."
    return [tables.table("metrics", "Other metrics", note, columns, found)] if found else []


def _is_simulated(files: RunFiles) -> bool:
    """Whether the run can be repeated from its configuration: the data of machines are not here."""
    return files.header.get("configuration", {}).get("federation", {}).get("partition") != "machines"


def cards(comparison: ComparisonResults) -> list[tuple[str, str]]:
    """The numbers that lead: a text, and what it is."""
    run, files = run_and_files(comparison)
    saved, of = files.summary["saved"], comparison.scores
    found = []
    for key, base, name, what in (
        (PERSONALISED, "own_majority", "of the clients' own models", "always answering each client's most frequent class"),
        (GLOBAL, "majority", "of the global model", "always answering the most frequent class"),
    ):
        if saved[key] is not None:
            simple = saved.get(base)
            more = "" if simple is None else f"; {of.text(simple)} by {what}"
            found.append((of.text(saved[key]), f"{of.metric.title} {name}{more}"))
    if saved[WORST] is not None:
        found.append((of.text(saved[WORST]), "is reached by nine of ten clients"))
    found.append((f"{(run.bytes_up + run.bytes_down) / 1e6:,.1f} MB", f"sent in {run.last.rounds} rounds, both ways"))
    if run.measured_s:
        found.append((duration(run.measured_s), "of training on this machine" + (f", {run.steps:,} steps" if run.steps else "")))
    return found


def scores(comparison: ComparisonResults, alone: Alone | None) -> Table:
    """The run's scores below those of simple rules."""
    _, files = run_and_files(comparison)
    summary, of = files.summary, comparison.scores
    saved, best = summary["saved"], summary["scores"].get("best_by_validation")
    own = saved.get("own_majority")
    rows: dict[str, Mapping[str, Any]] = {}
    if saved.get("majority") is not None or own is not None:
        rows["always the most frequent class"] = {PERSONALISED: own, GLOBAL: saved.get("majority")}
    rows["untrained"] = summary["scores"]["untrained"]
    if alone is not None:
        rows["each client alone"] = {PERSONALISED: alone.personalised, WORST: alone.worst_decile}
    last = f"after round {summary['scores']['rounds']}"
    rows[last if files.is_finished else f"{last}, so far"] = summary["scores"]
    if best is not None:
        rows[f"best by validation (round {best['rounds']})"] = best
    gain = of.head("above own majority").replace(" %", ", points")
    columns = [
        Column("model", lambda name: words(name)),
        Column(of.head("personalised"), lambda name: score(rows[name].get(PERSONALISED), of)),
        Column(gain, lambda name: score(_gain(rows[name].get(PERSONALISED), own, of), of)),
        Column(of.head("global"), lambda name: score(rows[name].get(GLOBAL), of)),
        Column(of.head("worst decile"), lambda name: score(rows[name].get(WORST), of)),
    ]
    note = (
        f"{of.what}. Personalised: every client predicts its own test examples with its own model, pooled. Global: the server's model on "
        "all of them. Worst decile: what nine of ten clients reach."
    )
    if "always the most frequent class" in rows:
        note += (
            " Most frequent class: of each client's own training examples, and of all test examples; only what is above it was read from "
            "texts."
        )
    found = tables.table("learned", "Scores", note, columns, rows)
    return found if own is not None else tables.without(found, (gain,))


def _gain(found: float | None, simple: float | None, of: ComparedMetric) -> float | None:
    return None if found is None or simple is None else of.sign * (found - simple)


def against(found: float, simple: float, of: ComparedMetric) -> str:
    """As in "5.0 points above", "level with"."""
    gain = of.sign * (found - simple)
    apart = of.difference(gain)
    return f"{apart} {of.above if gain > 0 else of.below}" if apart != of.difference(0) else "level with"


def _personalised(saved: Mapping[str, Any], summary: Mapping[str, Any], of: ComparedMetric) -> list[str]:
    if (found := saved[PERSONALISED]) is None:
        return []
    text = f"The clients' own models reach {of.text(found)} {of.metric.title} on their own test examples"
    return [text + _beside(found, saved.get("own_majority"), "answering each client's most frequent class", summary, of)]


def _global(saved: Mapping[str, Any], summary: Mapping[str, Any], of: ComparedMetric) -> list[str]:
    if (found := saved[GLOBAL]) is None:
        return []
    text = f"The global model reaches {of.text(found)} on all test examples"
    return [text + _beside(found, saved.get("majority"), "answering the most frequent class", summary, of, GLOBAL)]


def _beside(found: float, simple: float | None, what: str, summary: Mapping[str, Any], of: ComparedMetric, key: str = PERSONALISED) -> str:
    """The end of a sentence: how far that is above what costs nothing."""
    before = (summary["scores"].get("untrained") or {}).get(key)
    parts = [] if simple is None else [f"{against(found, simple, of)} always {what} ({of.text(simple)})"]
    parts += [] if before is None else [f"{against(found, before, of)} the untrained model ({of.text(before)})"]
    return f": {', and '.join(parts)}." if parts else "."


def _alone(comparison: ComparisonResults, saved: Mapping[str, Any], alone: Alone | None) -> list[str]:
    if alone is None or saved[PERSONALISED] is None or math.isnan(alone.personalised):
        return []
    of = comparison.scores
    apart = against(saved[PERSONALISED], alone.personalised, of)
    return [f"That is {apart} what each client reaches alone, without the others ({of.text(alone.personalised)}, {alone.name})."]
