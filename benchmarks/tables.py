"""Tables of docs/results.md from the runs of benchmarks/study.py.

python benchmarks/tables.py trial  --runs runs/study
python benchmarks/tables.py sweeps --runs runs/study
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fibecfed.build import read_inputs
from fibecfed.config import load
from fibecfed.core import metrics
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.engine.evaluation import worst_decile

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """What a table needs of one run. Scores in percent."""

    personalised: float
    server: float
    worst: float
    validation: float
    size: int
    steps: int
    cpu_s: float


def outcome(folder: Path, last_phase: str | None = None) -> Outcome | None:
    """Scores after, and work up to, the end of `last_phase` (default: the whole run); None for a run that is not finished."""
    if not (folder / "summary.json").exists():
        return None
    _, records = read(folder / "records.jsonl")
    if last_phase is not None:
        stop = max(i for i, record in enumerate(records) if isinstance(record, RoundRecord) and record.phase == last_phase)
        records = records[: stop + 2]  # the evaluation after it
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    scored = [record for record in records if isinstance(record, EvalRecord)][-1]
    return Outcome(
        100 * metrics.accuracy(scored.pooled),
        100 * metrics.accuracy(scored.server),
        100 * (worst_decile(scored.clients) or 0.0),
        100 * metrics.accuracy(scored.pooled_validation),
        sum(sum(record.bytes_up.values()) + sum(record.bytes_down.values()) for record in rounds),
        sum(sum(record.steps.values()) for record in rounds),
        sum(record.cpu_s for record in rounds),
    )


def spread(values: Sequence[float], digits: int = 1) -> str:
    """mean ± standard deviation (n - 1)."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


TRIAL = (
    ("FedAvg-LoRA", "lora", "tune"),
    ("FedAvg-LoRA, then one local training", "lora", None),
    ("local training alone", "local", None),
    ("3 of 6 layers shared", "layers", None),
    ("... plus masks", "layers+mask", None),
    ("... plus curriculum = FibecFed", "fibecfed", None),
)


def trial(runs: Path) -> str:
    """What each part of FibecFed brings, on sst2 and mr, and the paired differences to FedAvg-LoRA by seed."""
    parts = []
    both: dict[str, dict[tuple[str, int], Outcome]] = {}
    for title, part, phase in TRIAL:
        for task in ("sst2", "mr"):
            for seed in range(3):
                found = outcome(runs / "trial" / task / part / str(seed), phase)
                if found is not None:
                    both.setdefault(title, {})[task, seed] = found
    base = both.get("FedAvg-LoRA", {})
    for tasks in (("sst2",), ("mr",), ("sst2", "mr")):
        rows = []
        for title, _, _ in TRIAL:
            got = {key: value for key, value in both.get(title, {}).items() if key[0] in tasks and key in base}
            rows.append(_row(title, [got[key] for key in sorted(got)], [base[key] for key in sorted(got)]))
        header = ("", "runs", "personalised %", "difference, points", "global %", "worst decile %", "bytes", "steps", "processor time")
        parts.append(f"**{' and '.join(tasks)}**\n\n{markdown(header, rows)}")
    header = ("personalised, difference to FedAvg-LoRA by seed", *(f"{task} {seed}" for task in ("sst2", "mr") for seed in range(3)))
    rows = []
    for title, _, _ in TRIAL[1:]:
        cells = []
        for task in ("sst2", "mr"):
            for seed in range(3):
                mine, other = both.get(title, {}).get((task, seed)), base.get((task, seed))
                cells.append(f"{mine.personalised - other.personalised:+.1f}" if mine and other else "-")
        rows.append((title, *cells))
    parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def _row(title: str, mine: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[str, ...]:
    pairs = list(zip(mine, other, strict=True))

    def ratio(name: str) -> str:
        return f"{sum(getattr(m, name) for m in mine) / sum(getattr(o, name) for o in other):.3f}" if pairs else "-"

    return (
        title,
        str(len(mine)),
        spread([m.personalised for m in mine]),
        spread([m.personalised - o.personalised for m, o in pairs]),
        spread([m.server for m in mine]),
        spread([m.worst for m in mine]),
        ratio("size"),
        ratio("steps"),
        ratio("cpu_s"),
    )


SWEEPS = {
    "Which layers are shared": (
        "layers-1", "layers-2", "base", "layers-4", "layers-5", "layers-6", "layers-last", "layers-first", "layers-random",
        "importance-increment",
    ),
    "Which neurons are updated in the layers that stay": (
        "neurons-0.125", "neurons-0.25", "base", "neurons-0.75", "neurons-all", "neurons-random", "neurons-coverage",
    ),
    "Order of the curriculum": ("base", "order-random", "order-length", "order-rarity", "pace-none"),
    "Order of the curriculum, 10 % of the training labels flipped": ("noise-fisher", "noise-random", "noise-length", "noise-none"),
    "When a client is scored": ("after-0", "after-2", "base", "after-6"),
    "When a client is scored, 10 % of the training labels flipped": ("noise-after-0", "noise-after-2", "noise-fisher", "noise-after-6"),
    "Order inside a round": ("base", "order-easy-to-hard"),
    "Pace": ("base", "pace-sqrt", "pace-quadratic", "pace-exp", "pace-log", "pace-step", "pace-none"),
    "Closing round": ("base", "closing"),
    "For comparison": ("lora", "base"),
}  # fmt: skip


def sweeps(runs: Path) -> str:
    """One table for each question, scored on the validation parts; AUC of the difficulty where labels were flipped."""
    parts = []
    for title, names in SWEEPS.items():
        noisy = "flipped" in title
        rows = []
        for name in names:
            folders = [runs / "sweeps" / name / str(seed) for seed in range(3)]
            found = [done for folder in folders if (done := outcome(folder)) is not None]
            row = [
                f"`{name}`" if name != "base" else "`base` (the defaults)",
                str(len(found)),
                spread([f.validation for f in found]),
                spread([f.personalised for f in found]),
                spread([f.server for f in found]),
                spread([f.size / 1e6 for f in found]),
                spread([float(f.steps) for f in found], 0),
            ]
            if noisy:
                row.append(spread([auc for folder in folders if (auc := flipped_auc(folder)) is not None], 2))
            rows.append(row)
        header = ["", "runs", "validation %", "test, personalised %", "test, global %", "MB both ways", "steps"] + (
            ["AUC"] if noisy else []
        )
        parts.append(f"### {title}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def flipped_auc(folder: Path) -> float | None:
    """Chance that a flipped example of a client is scored as harder than one of its others; mean over clients weighted by such pairs."""
    if not (folder / "summary.json").exists():
        return None
    _, records = read(folder / "records.jsonl")
    data = read_inputs(load(folder / "config.toml").config).data
    wins = pairs = 0.0
    for record in records:
        for client, notes in record.notes.items() if isinstance(record, RoundRecord) else ():
            if "difficulty" in notes:
                won, of = _auc(torch.tensor(notes["difficulty"]), data.flipped(client))
                wins, pairs = wins + won, pairs + of
    return wins / pairs if pairs else None


def _auc(difficulty: torch.Tensor, flipped: torch.Tensor) -> tuple[float, float]:
    hard, rest = difficulty[flipped], difficulty[~flipped]
    won = (hard[:, None] > rest[None]).double().sum() + 0.5 * (hard[:, None] == rest[None]).double().sum()
    return float(won), float(len(hard) * len(rest))


def machine(runs: Path) -> str:
    """Where the runs were made, from their headers."""
    seen = set()
    for path in sorted(runs.rglob("records.jsonl")):
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline())
        seen.add(
            f"{head['machine']['processor']}, {head['machine']['cores']} cores, {head['threads']} thread a run, {head['precision']}, "
            f"torch {head['versions']['torch']}, commit {(head['commit'] or 'unknown')[:10]}"
        )
    return "\n".join(sorted(seen))


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["trial", "sweeps"])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study")
    options = parser.parse_args()
    print({"trial": trial, "sweeps": sweeps}[options.study](options.runs))
    print("\nMeasured on: " + machine(options.runs / options.study))


if __name__ == "__main__":
    main()
