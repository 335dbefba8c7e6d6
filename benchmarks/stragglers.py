"""One client in five ten times slower: synchronous rounds, over-selection and buffered aggregation, by virtual time.

FIBECFED_DATA=... python benchmarks/stragglers.py run --out runs/stragglers      # resumable; what is done is not made again
python benchmarks/stragglers.py table --out runs/stragglers                      # the table of what is done so far

sst2, 20 clients of 40 examples, 5 a round; every schedule uses 135 answers of clients. Times are virtual: counted work at each client's
speed, the same on every machine. The target of a method is 0.8 of the way from the score at the start to the mean final score of its
synchronous runs; a run reaches it at the first evaluation at which its score and the mean of that and the next one are at least so high.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fibecfed import session
from fibecfed.config import load
from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.models.kept import KeptWeights

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("fibecfed", "lora")
SCHEDULES = {
    "synchronous": ("federation.rounds=27", "evaluation.every=3"),
    "over-select": ("federation.rounds=27", "evaluation.every=3"),
    "buffered": ("federation.rounds=45", "evaluation.every=5", "federation.buffer_size=3"),
}
COMMON = (
    "data.max_train=800", "data.max_test=300", "data.validation_fraction=0", "data.max_length=64", "federation.clients=20",
    "federation.clients_per_round=5", "federation.alpha=10.0", "federation.speeds.slow_share=0.2", "federation.speeds.slow_factor=10.0",
    "training.local_epochs=1", "resources.workers=1", "training.batch_size=8", "training.group_by_length=true",
)  # fmt: skip
SEEDS = range(5)


def run(out: Path, methods: tuple[str, ...] = METHODS) -> None:
    """Every run that is not done, all schedules of a seed before the next seed."""
    weights = KeptWeights()
    for seed in SEEDS:
        for method in methods:
            for schedule, own in SCHEDULES.items():
                folder, begin = out / method / schedule / str(seed), time.monotonic()
                if (folder / "summary.json").exists():
                    continue
                if (folder / "config.toml").exists():
                    session.resume(folder, weights=weights)
                else:
                    pairs = (*COMMON, *own, f"seed={seed}", f"method.kind={method}", f"federation.schedule={schedule}")
                    pairs += ("method.preset=paper",) if method == "fibecfed" else ()
                    session.start(load(ROOT / "configs" / "sst2.toml", pairs).config, folder, adapters=False, weights=weights)
                print(f"{method}, {schedule}, seed {seed}: {time.monotonic() - begin:.0f} s", flush=True)


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        scores: (virtual seconds, personalised accuracy, global accuracy) at each evaluation.
        staleness: mean over the answers that were used.
    """

    scores: tuple[tuple[float, float, float], ...]
    megabytes: float
    answers: int
    dropped: int
    staleness: float

    def reached_s(self, target: float) -> float | None:
        """Virtual seconds until the target."""
        for (at_s, score, _), (_, after, _) in zip(self.scores, (*self.scores[1:], self.scores[-1]), strict=True):
            if score >= target and (score + after) / 2 >= target:
                return at_s
        return None


def outcome(folder: Path) -> Outcome:
    accuracy, now_s, scores, late = METRICS["accuracy"], 0.0, list[tuple[float, float, float]](), list[int]()
    size = answers = dropped = 0
    for record in read(folder / "records.jsonl")[1]:
        if isinstance(record, EvalRecord):
            scores.append((now_s, accuracy.of(record.pooled), accuracy.of(record.server)))
        elif isinstance(record, RoundRecord):
            now_s = record.virtual_s or now_s
            size += sum(record.bytes_up.values()) + sum(record.bytes_down.values())
            answers += sum(steps > 0 for steps in record.steps.values())
            dropped += len(record.dropped)
            late += record.staleness.values()
    return Outcome(tuple(scores), size / 1e6, answers, dropped, statistics.mean(late) if late else 0.0)


def rows(out: Path) -> Iterator[tuple[str, ...]]:
    for method in METHODS:
        done = {
            schedule: {int(path.parent.name): outcome(path.parent) for path in sorted((out / method / schedule).glob("*/summary.json"))}
            for schedule in SCHEDULES
        }
        if not all(done.values()):
            continue
        base = done["synchronous"].values()
        start, end = statistics.mean(run.scores[0][1] for run in base), statistics.mean(run.scores[-1][1] for run in base)
        target = start + 0.8 * (end - start)
        for schedule, runs in done.items():
            reached = {seed: run.reached_s(target) for seed, run in runs.items()}
            ratios = [  # a run that does not reach the target counts as infinite
                math.inf if mine is None else mine / whole
                for seed, mine in reached.items()
                if seed in done["synchronous"] and (whole := done["synchronous"][seed].reached_s(target))
            ]
            yield (
                method,
                schedule,
                str(len(runs)),
                spread([100 * run.scores[-1][1] for run in runs.values()]),
                spread([100 * run.scores[-1][2] for run in runs.values()]),
                f"{100 * target:.1f}",
                ", ".join("not reached" if at is None else f"{at:.0f}" for at in reached.values()),
                f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})" if ratios else "",
                f"{statistics.mean(run.scores[-1][0] for run in runs.values()):.0f}",
                f"{statistics.mean(run.megabytes for run in runs.values()):.1f}",
                f"{statistics.mean(run.answers for run in runs.values()):.0f}",
                f"{statistics.mean(run.dropped for run in runs.values()):.0f}",
                f"{statistics.mean(run.staleness for run in runs.values()):.2f}",
            )


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


HEADER = (
    "method", "schedule", "seeds", "personalised %", "global %", "target %", "virtual s to it, each seed", "of synchronous', median",
    "virtual s in all", "MB", "answers used", "clients dropped", "mean staleness",
)  # fmt: skip


def table(out: Path) -> None:
    print(f"| {' | '.join(HEADER)} |")
    print("|" + "---|" * len(HEADER))
    for row in rows(out):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "stragglers")
    parser.add_argument("--method", choices=METHODS, help="run this one alone, as beside a second process with the other")
    options = parser.parse_args()
    if options.action == "run":
        run(options.out, (options.method,) if options.method else METHODS)
    else:
        table(options.out)


if __name__ == "__main__":
    sys.exit(main())
