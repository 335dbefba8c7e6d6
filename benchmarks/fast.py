"""The preset "fast" beside `lora`, as a table: personalised and global score, and what both cost.

python benchmarks/study.py run fast --workers 1 --out runs/study     # resumable; what is done is not made again
python benchmarks/fast.py runs/study                                 # the table of the pairs that are done so far
python benchmarks/study.py run forms --workers 1 --out runs/study
python benchmarks/fast.py runs/study forms                           # what it was chosen from

Each pair is one task and seed. Bytes and CPU seconds (`compute_s`: clients' processor seconds, evaluation apart) are those of `fast` over
those of `lora`, summed over the pairs. The interval of the last line is Student's, 95 %, over the seeds that have every task.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from study import FAST, FORMS  # isort: skip

TASKS = ("sst2", "trec", "subj", "mpqa")
EVEN = ("sst2-even", "trec-even")


def summary(root: Path, task: str, name: str, seed: int, study: str = "fast") -> dict[str, Any] | None:
    path = root / study / task / name / str(seed) / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def row(title: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Means over the pairs, each (lora, fast)."""

    def score(place: int, kind: str) -> float:
        return 100 * statistics.mean(pair[place]["scores"][kind] for pair in pairs)

    def ratio(*names: str) -> float:
        lora, fast = (sum(pair[place][name] for pair in pairs for name in names) for place in (0, 1))
        return fast / lora

    scores = " | ".join(f"{score(place, kind):.1f}" for kind in ("pooled_personalised", "global") for place in (0, 1))
    return f"| {title} | {len(pairs)} | {scores} | {ratio('bytes_up', 'bytes_down'):.3f} | {ratio('compute_s'):.3f} |"


def forms(root: Path) -> None:
    """Personalised scores, and bytes and CPU seconds over those of `lora`, of each form."""
    print("| form | sst2 | trec | bytes | CPU |\n|---|---|---|---|---|")
    lora = [summary(root, task, "lora", 0, "forms") for task in ("sst2", "trec")]
    for name in FORMS:
        found = [summary(root, task, name, 0, "forms") for task in ("sst2", "trec")]
        pairs = [(a, b) for a, b in zip(lora, found, strict=True) if a and b]
        if len(pairs) == 2:
            scores = " | ".join(f"{100 * pair[1]['scores']['pooled_personalised']:.1f}" for pair in pairs)
            print(f"| {name} | {scores} | {row('', pairs).split(' | ', 6)[-1]}")


def main() -> None:
    """See the module's text."""
    root, lora, fast = Path(sys.argv[1]), *FAST
    if sys.argv[2:] == ["forms"]:
        return forms(root)
    found = {
        (task, seed): (a, b)
        for task in (*TASKS, *EVEN)
        for seed in range(5)
        if (a := summary(root, task, lora, seed)) and (b := summary(root, task, fast, seed))
    }
    print("| data | seeds | personalised, lora | fast | global, lora | fast | bytes | CPU |\n|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        if pairs := [pair for (name, _), pair in found.items() if name == task]:
            print(row(task, pairs))
    print(row("all", [pair for (task, _), pair in found.items() if task in TASKS]))
    for task in EVEN:
        if (task, 0) in found:
            print(row(task, [found[task, 0]]))
    whole = [seed for seed in range(5) if all((task, seed) in found for task in TASKS)]
    for kind in ("pooled_personalised", "global"):
        pairs = [[found[task, seed] for task in TASKS] for seed in whole]
        gains = [100 * statistics.mean(b["scores"][kind] - a["scores"][kind] for a, b in of_seed) for of_seed in pairs]
        mean = statistics.mean(gains)
        half = student.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        each = ", ".join(f"{gain:+.2f}" for gain in gains)
        print(f"{kind}: fast minus lora {mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f}); by seed {each}")


if __name__ == "__main__":
    main()
