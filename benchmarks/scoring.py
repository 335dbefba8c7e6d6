"""FibecFed scored by the backward passes of training beside FibecFed scored in a pass of its own: scores, and the two orders.

python benchmarks/study.py run scoring --workers 1 --out runs/study     # resumable; what is done is not made again
python benchmarks/scoring.py runs/study                                 # the table of what is done so far

Both run the same seeds, so the same clients train in the same rounds. The rank correlation is Spearman's, of the difficulties of a client's
examples: in the pass that scored it, and when training first saw each of them from then on. It is averaged over the clients that both have.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fibecfed.core.records import EvalRecord, RoundRecord, read

from study import SCORING  # isort: skip


def difficulties(records: Sequence[RoundRecord | EvalRecord]) -> dict[str, dict[int, float]]:
    """Of every client, example -> how hard it was when it was first scored."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        for client, notes in record.notes.items() if isinstance(record, RoundRecord) else ():
            values = notes.get("difficulty", ())
            found.setdefault(client, {}).update(zip(notes.get("difficulty_of", range(len(values))), values, strict=True))
    return found


def ranks(values: list[float]) -> Tensor:
    return torch.tensor(values).double().argsort(stable=True).argsort().double()


def correlation(one: dict[str, dict[int, float]], other: dict[str, dict[int, float]]) -> float | None:
    """Mean over clients of Spearman's correlation over the examples that both have scored."""
    found = []
    for client in one.keys() & other.keys():
        both = sorted(one[client].keys() & other[client].keys())
        if len(both) > 4:
            pair = torch.stack([ranks([table[client][i] for i in both]) for table in (one, other)])
            found.append(float(torch.corrcoef(pair)[0, 1]))
    return statistics.mean(found) if found else None


@dataclass(frozen=True)
class Outcome:
    """One run; scores in percent."""

    personalised: float
    server: float
    difficulties: dict[str, dict[int, float]]


def outcome(folder: Path) -> Outcome:
    scores = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["scores"]
    return Outcome(100 * scores["pooled_personalised"], 100 * scores["global"], difficulties(read(folder / "records.jsonl")[1]))


def main() -> None:
    folder = Path(sys.argv[1]) / "scoring"
    print("| task | scored in | seeds | personalised | against a pass, each seed | global | against a pass | rank correlation |")
    print("|---|---|---|---|---|---|---|---|")
    for task in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        done = {
            name: {int(path.parent.name): outcome(path.parent) for path in sorted((folder / task / name).glob("*/summary.json"))}
            for name in SCORING
        }
        for name, runs in done.items():
            if not runs:
                continue
            means = [statistics.mean(run.personalised for run in runs.values()), statistics.mean(run.server for run in runs.values())]
            seeds = sorted(runs.keys() & done["pass"].keys()) if name != "pass" else []
            own = [runs[seed].personalised - done["pass"][seed].personalised for seed in seeds]
            of_all = [runs[seed].server - done["pass"][seed].server for seed in seeds]
            found = [correlation(done["pass"][seed].difficulties, runs[seed].difficulties) for seed in seeds]
            orders = [value for value in found if value is not None]
            cells = (
                task,
                name,
                str(len(runs)),
                f"{means[0]:.1f}",
                f"{statistics.mean(own):+.1f} ({', '.join(f'{one:+.1f}' for one in own)})" if own else "",
                f"{means[1]:.1f}",
                f"{statistics.mean(of_all):+.1f} ({', '.join(f'{one:+.1f}' for one in of_all)})" if of_all else "",
                f"{statistics.mean(orders):.2f}" if orders else "",
            )
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
