"""FibecFed scored by the backward passes of training beside FibecFed scored in a pass of its own: scores, and the two orders.

python benchmarks/study.py run scoring --workers 1 --out runs/study     # resumable; what is done is not made again
python benchmarks/scoring.py runs/study                                 # the table of what is done so far

Both run the same seeds, so the same clients train in the same rounds. The rank correlation is Spearman's, of the difficulties of a client's
examples: in the pass that scored it, and when training first saw each of them from then on. It is averaged over the clients that both have.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor

from fibecfed.core import metrics
from fibecfed.core.records import EvalRecord, RoundRecord, read

from study import SCORING  # isort: skip


def difficulties(records: list[RoundRecord | EvalRecord]) -> dict[str, dict[int, float]]:
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


def main() -> None:
    folder = Path(sys.argv[1]) / "scoring"
    print("task   scored in    seeds  personalised  against a pass (each seed)   global  against a pass   rank correlation")
    for task in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        done: dict[str, dict[int, tuple[float, float, dict[str, dict[int, float]]]]] = {name: {} for name in SCORING}
        for name in SCORING:
            for summary in sorted((folder / task / name).glob("*/summary.json")):
                records = read(summary.parent / "records.jsonl")[1]
                last = [record for record in records if isinstance(record, EvalRecord)][-1]
                scores = 100 * metrics.accuracy(last.pooled), 100 * metrics.accuracy(last.server)
                done[name][int(summary.parent.name)] = (*scores, difficulties(records))
        for name, runs in done.items():
            if not runs:
                continue
            seeds = sorted(runs.keys() & done["pass"].keys())
            differences = [[runs[seed][i] - done["pass"][seed][i] for seed in seeds] for i in (0, 1)]
            row = f"{task:6s} {name:12s} {len(runs):5d}  {statistics.mean(run[0] for run in runs.values()):12.1f}"
            if name == "pass" or not seeds:
                print(f"{row}  {'':27s} {statistics.mean(run[1] for run in runs.values()):7.1f}")
                continue
            found = [correlation(done["pass"][seed][2], runs[seed][2]) for seed in seeds]
            known = [value for value in found if value is not None]
            each = ", ".join(f"{difference:+.1f}" for difference in differences[0])
            print(
                f"{row}  {statistics.mean(differences[0]):+.1f} ({each})".ljust(66),
                f"{statistics.mean(run[1] for run in runs.values()):5.1f}  {statistics.mean(differences[1]):+14.1f}",
                f"  {statistics.mean(known):.2f}" if known else "",
            )


if __name__ == "__main__":
    main()
