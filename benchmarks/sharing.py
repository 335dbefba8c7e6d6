"""Which layers are shared, as a table: `lora` and FibecFed with several rules, each without and with one local training at the end.

FIBECFED_SITES=FOLDER python benchmarks/study.py run sharing --workers 1 --out runs/study     # resumable; what is done is not made again
python benchmarks/sharing.py runs/study                                                       # the table of what is done so far
python benchmarks/sharing.py runs/study presets                                               # presets beside `lora`, seed by seed
python benchmarks/sharing.py runs/study rates                                                 # learning rates and their decay
python benchmarks/sharing.py runs/study server                                                # means of rounds, server momentum, pull
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.engine.summary import LAST_TRAINING

from study import SHARING, SPREAD  # isort: skip

DATA = (*((task, spread) for task in ("sst2", "trec") for spread in SPREAD), ("icd6", "sites"))
NAMES = {"a1": "Dirichlet 1", "a0.3": "Dirichlet 0.3", "even": "even", "sites": "six sites"}


@dataclass(frozen=True)
class Outcome:
    """One run: accuracies in per cent before and after the last local training, what was sent and computed, and what of it before that
    training, and which layers left."""

    before: float
    after: float
    server: float
    validation: float
    validation_after: float
    megabytes: float
    seconds: float
    megabytes_before: float
    seconds_before: float
    steps: int
    left: dict[str, int] | None
    kept: tuple[int, int, int]


def accuracy(statistics: Any) -> float:
    """Of a confusion matrix, in per cent."""
    confusion = statistics["confusion"]
    return 100 * sum(row[i] for i, row in enumerate(confusion)) / sum(map(sum, confusion))


def outcome(folder: Path) -> Outcome:
    """Of a run's folder."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    records = read(folder / "records.jsonl")[1]
    before, after = [record for record in records if isinstance(record, EvalRecord)][-2:]
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    notes = [note for record in rounds for note in record.notes.values()]
    training = [record for record in rounds if record.phase != LAST_TRAINING]
    steps = [note["kept_step"] for note in notes if "kept_step" in note]
    return Outcome(
        before=accuracy(before.pooled),
        after=accuracy(after.pooled),
        server=accuracy(before.server or before.pooled),
        validation=accuracy(before.pooled_validation),
        validation_after=accuracy(after.pooled_validation),
        megabytes=(summary["bytes_up"] + summary["bytes_down"]) / 1e6,
        seconds=summary["compute_s"],
        megabytes_before=sum(sum(one.values()) for record in training for one in (record.bytes_up, record.bytes_down)) / 1e6,
        seconds_before=sum(sum(record.compute_s.values()) for record in training),
        steps=summary["steps"],
        left=summary["selected"].get("left_after_round"),
        kept=(steps.count(0.0), steps.count(0.5), steps.count(1.0)),
    )


def mean(outcomes: list[Outcome], name: str) -> float:
    return statistics.mean(getattr(one, name) for one in outcomes)


def presets(root: Path) -> None:
    """Presets beside `lora` on the seeds that both have: scores at the end, how far the personalised one is above the better of `lora`
    without and with its local training (mean and standard deviation over the seeds), bytes and clients' CPU seconds over its own."""
    beside = list[str]()
    titles = ("data", "clients", "method", "seeds", "lora", "lora + local training", "this", "above the better", "global, lora")
    titles += ("global, this", "bytes", "CPU", "kept")
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for task, spread in DATA:
        for method in ("best", "best, all blocks", "best, upper third", "lora validated"):
            here = sorted((root / task / spread / method).glob("*/summary.json"))
            both = [(path.parent, root / task / spread / "lora" / path.parent.name) for path in here]
            pairs = [(outcome(a), outcome(b)) for a, b in both if (b / "summary.json").exists()]
            if not pairs:
                continue
            ours, lora = ([pair[k] for pair in pairs] for k in (0, 1))
            better = max(("before", "after"), key=lambda when: mean(lora, when))
            above = [one.after - getattr(other, better) for one, other in zip(ours, lora, strict=True)]
            spread_of = f" ± {statistics.stdev(above):.1f}" if len(above) > 1 else ""
            scores = " | ".join(f"{mean(*of):.1f}" for of in ((lora, "before"), (lora, "after"), (ours, "after")))
            scores += f" | {statistics.mean(above):+.1f}{spread_of} | {mean(lora, 'server'):.1f} | {mean(ours, 'server'):.1f}"
            kept = " / ".join(str(sum(one.kept[k] for one in ours)) for k in range(3))
            cost = " | ".join(f"{mean(ours, name) / mean(lora, name):.2f}" for name in ("megabytes", "seconds"))
            print(f"| {task} | {NAMES[spread]} | {method} | {len(pairs)} | {scores} | {cost} | {kept} |")
            cost = [mean(ours, name) / mean(lora, f"{name}_before") for name in ("megabytes", "seconds")]
            beside.append(f"{task}, {NAMES[spread]}, {method}: {cost[0]:.2f} of the bytes, {cost[1]:.2f} of the CPU seconds")
    print("\nBeside `lora` before its local training:", *beside, sep="\n")


SERVER = ("best", "best, averaged", "best, 6e-3, averaged", "best, server momentum", "best, pull")
RATES = ("best", "best, 6e-3", "best, 6e-3, decay", "lora", "lora, 6e-3", "lora, 6e-3, decay")


def rates(root: Path, methods: tuple[str, ...] = RATES) -> None:
    """Scores of some methods on seed 0 before and after the last local training, and of the server's model; by default of learning rates
    and their decay."""
    titles = "personalised | + local training | global | validation | + local training"
    print(f"| data | clients | method | {titles} |\n|---|---|---|---|---|---|---|---|")
    together = dict[str, list[tuple[float, ...]]]()
    for task, spread in DATA:
        for method in methods:
            folder = root / task / spread / method / "0"
            if (folder / "summary.json").exists():
                one = outcome(folder)
                scores = (one.before, one.after, one.server, one.validation, one.validation_after)
                if spread != "sites":
                    together.setdefault(method, []).append(scores)
                print(f"| {task} | {NAMES[spread]} | {method} | {' | '.join(f'{value:.1f}' for value in scores)} |")
    for method, some in together.items():
        means = " | ".join(f"{statistics.mean(column):.1f}" for column in zip(*some, strict=True))
        print(f"| sst2 and trec | mean of {len(some)} | {method} | {means} |")


def main() -> None:
    """See the module's text."""
    root = Path(sys.argv[1]) / "sharing"
    if sys.argv[2:] == ["rates"]:
        return rates(root)
    if sys.argv[2:] == ["server"]:
        return rates(root, SERVER)
    if sys.argv[2:] == ["presets"]:
        return presets(root)
    scores = "personalised | + local training | global | validation | + local training"
    print(f"| data | clients | method | seeds | {scores} | MB | steps | left to the clients |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for task, spread in DATA:
        for method in SHARING:
            found = [outcome(path.parent) for path in sorted((root / task / spread / method).glob("*/summary.json"))]
            if not found:
                continue
            scores = " | ".join(f"{mean(found, name):.1f}" for name in ("before", "after", "server", "validation", "validation_after"))
            left = "-" if found[0].left is None else "; ".join(", ".join(one.left or {}) or "nothing" for one in found)
            cost = f"{mean(found, 'megabytes'):.1f} | {mean(found, 'steps'):.0f}"
            print(f"| {task} | {NAMES[spread]} | {method} | {len(found)} | {scores} | {cost} | {left} |")


if __name__ == "__main__":
    main()
