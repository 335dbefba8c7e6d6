"""A comparison in which a variant of FibecFed takes the place of `fibecfed`, so that it is ranked: who is first, and who is first to the
targets. The variant was not tuned: it has the learning rate that was found with `fibecfed`.

python benchmarks/in_place.py runs/compare-quick fibecfed-decay [UP_MBIT DOWN_MBIT]     # fibecfed: as it is
python benchmarks/in_place.py benchmarks/results/quick.jsonl fibecfed-decay             # at the network of the export
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from fibecfed.comparison.report import overview
from fibecfed.comparison.report.compact import from_lines
from fibecfed.comparison.report.comparison import read_comparison
from fibecfed.comparison.report.results import OURS
from fibecfed.comparison.report.standing import standings
from fibecfed.comparison.report.tables import to_markdown, without
from fibecfed.core.clock import Network

SHOWN = (
    "method",
    "mean rank",
    "95 % interval",
    "personalised %",
    "global %",
    "targets reached",
    "first to target",
    "relative time to target",
)


def main() -> None:
    """Print the table, and the four that are first to each target."""
    path, variant, *network = sys.argv[1:]
    link = Network(**dict(zip(("up_mbit", "down_mbit"), map(float, network), strict=False)))
    read = read_comparison(Path(path), link) if Path(path).is_dir() else from_lines(Path(path))
    if variant not in (*read.methods, *read.ablations):
        raise SystemExit(f"{variant}: not in {path}, expected one of {', '.join((*read.methods, *read.ablations))}")
    runs = tuple(replace(run, method=OURS) if run.method == variant else run for run in read.runs if variant == OURS or run.method != OURS)
    found = standings(replace(read, runs=runs))
    table = overview.methods(found)
    print(f"{variant} as {OURS}, {read.network.up_mbit:g} Mbit/s up, {read.network.down_mbit:g} Mbit/s down\n")
    print(to_markdown(without(table, [name for name in table.header if name not in SHOWN])).partition(f"{table.note}\n\n")[2])
    for race in found.counted:
        times = sorted((found.seconds(race.task, one), one) for one in found.comparison.methods if found.reaches(race.task, one))
        print(f"- {race.task}: {', '.join(f'{name} {seconds:.1f} s' for seconds, name in times[:4])}")


if __name__ == "__main__":
    main()
