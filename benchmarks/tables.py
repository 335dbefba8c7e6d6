"""Tables of docs/results.md and docs/results-tables.md from the runs of benchmarks/study.py.

python benchmarks/tables.py trial  --runs runs/study
python benchmarks/tables.py sweeps --runs runs/study
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fibecfed.build import read_inputs
from fibecfed.config import load
from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.engine.evaluation import worst_decile

ACCURACY = METRICS["accuracy"]
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Outcome:
    """What a table needs of one run, up to the end of a phase. Scores in percent.

    Attributes:
        name: of the job, as study.py names it.
        phase: the phase after which it was scored; "" = the run's end.
        size: bytes both ways.
        auc: chance that a flipped training label is scored as harder than another, where labels were flipped and scored.
        where: machine and versions.
    """

    name: str
    phase: str
    personalised: float
    server: float
    worst: float
    validation: float
    size: int
    steps: int
    cpu_s: float
    auc: float | None
    where: str


def measure(runs: Path, name: str, phase: str) -> Outcome:
    """The outcome of a finished run."""
    header, records = read(runs / name / "records.jsonl")
    if phase:
        stop = max(i for i, record in enumerate(records) if isinstance(record, RoundRecord) and record.phase == phase)
        records = records[: stop + 2]  # with the evaluation after it
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    scored = [record for record in records if isinstance(record, EvalRecord)][-1]
    machine = header["machine"]
    return Outcome(
        name=name,
        phase=phase,
        personalised=100 * ACCURACY.of(scored.pooled),
        server=100 * ACCURACY.of(scored.server),
        worst=100 * (worst_decile(scored.clients, ACCURACY) or 0.0),
        validation=100 * ACCURACY.of(scored.pooled_validation),
        size=sum(sum(record.bytes_up.values()) + sum(record.bytes_down.values()) for record in rounds),
        steps=sum(sum(record.steps.values()) for record in rounds),
        cpu_s=round(sum(record.cpu_s for record in rounds), 1),
        auc=flipped_auc(runs / name) if "noise" in name else None,
        where=f"{machine['processor']}, {machine['cores']} cores, {header['threads']} thread a run, {header['precision']}, "
        f"torch {header['versions']['torch']}, transformers {header['versions']['transformers']}",
    )


def known(study: str) -> dict[tuple[str, str], Outcome]:
    """What benchmarks/results/ holds, by job and phase."""
    path = RESULTS / f"{study}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [Outcome(**json.loads(line)) for line in lines]
    return {(one.name, one.phase): one for one in found}


def collect(study: str, runs: Path) -> None:
    """Add the finished runs of a folder to benchmarks/results/."""
    table = known(study)
    for path in sorted((runs / study).rglob("summary.json")):
        name = str(path.parent.relative_to(runs))
        for phase in ("tune", "") if "/lora/" in name and study == "trial" else ("",):
            if (name, phase) not in table:
                table[name, phase] = measure(runs, name, phase)
    RESULTS.mkdir(exist_ok=True)
    text = "".join(json.dumps(asdict(table[key])) + "\n" for key in sorted(table))
    (RESULTS / f"{study}.jsonl").write_text(text, encoding="utf-8")


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
    ("FedAvg-LoRA, then one local training", "lora", ""),
    ("local training alone", "local", ""),
    ("3 of 6 layers shared", "layers", ""),
    ("... plus masks", "layers+mask", ""),
    ("... plus curriculum = FibecFed", "fibecfed", ""),
)


def trial(table: Mapping[tuple[str, str], Outcome]) -> str:
    """What each part of FibecFed brings, on sst2 and mr, and the paired differences to FedAvg-LoRA by seed."""
    parts = []
    both: dict[str, dict[tuple[str, int], Outcome]] = {}
    for title, part, phase in TRIAL:
        for task in ("sst2", "mr"):
            for seed in range(3):
                found = table.get((f"trial/{task}/{part}/{seed}", phase))
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


LABELS = {
    "base": "`base` (`paper`)",
    "noise-fisher": "`noise-fisher` (`paper`)",
    "layers-6": "`layers-6`: what `layer_gap` answers",
    "lora": "`lora` (FedAvg-LoRA)",
}
"""The other rules answer three layers, the default: benchmarks/layer_rules.py prints it for the same setting."""


def sweeps(table: Mapping[tuple[str, str], Outcome]) -> str:
    """One table for each question, scored on the validation parts; AUC of the difficulty where labels were flipped."""
    parts = []
    for title, names in SWEEPS.items():
        noisy = "flipped" in title
        default = "noise-fisher" if noisy else "base"
        rows = []
        for name in names:
            by_seed = {seed: table[key, ""] for seed in range(3) if ((key := f"sweeps/{name}/{seed}"), "") in table}
            base = {seed: table[key, ""] for seed in by_seed if ((key := f"sweeps/{default}/{seed}"), "") in table}
            found = list(by_seed.values())
            row = [
                LABELS.get(name, f"`{name}`"),
                str(len(found)),
                spread([f.validation for f in found]),
                "" if name == default else spread([by_seed[seed].validation - base[seed].validation for seed in base]),
                spread([f.personalised for f in found]),
                spread([f.server for f in found]),
                spread([f.size / 1e6 for f in found]),
                spread([float(f.steps) for f in found], 0),
            ]
            if noisy:
                row.append(spread([f.auc for f in found if f.auc is not None], 2))
            rows.append(row)
        header = ["", "runs", "validation %", "difference by seed", "test, personalised %", "test, global %", "MB both ways", "steps"]
        header += ["AUC"] if noisy else []
        parts.append(f"### {title}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def flipped_auc(folder: Path) -> float | None:
    """Chance that a flipped example of a client is scored as harder than one of its others; mean over clients weighted by such pairs."""
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


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["trial", "sweeps"])
    parser.add_argument("--runs", type=Path, help="folder of study.py whose finished runs are added to the results first")
    options = parser.parse_args()
    if options.runs is not None:
        collect(options.study, options.runs)
    table = known(options.study)
    print({"trial": trial, "sweeps": sweeps}[options.study](table))
    print("\nMeasured on: " + "; ".join(sorted({one.where for one in table.values()})))


if __name__ == "__main__":
    main()
