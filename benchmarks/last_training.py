"""What a client keeps of its last training: rules that choose between the model before it, the one after it and the mean of both.

FIBECFED_SITES=FOLDER python benchmarks/last_training.py run OUT     # the federations of `study.py run sharing`; resumable
python benchmarks/last_training.py table OUT                         # personalised scores by rule, mean over seeds

Each federation is trained once, with the preset "best". Of every client the losses on its validation part and what it gets right of its
test part are written for all three models, so that each rule chooses from the same ones.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fibecfed import session
from fibecfed.config import load
from fibecfed.core.trees import placed
from fibecfed.local.batches import PASS_BATCH, batches, by_length
from fibecfed.local.difficulty import losses_per_token
from fibecfed.methods.finetune import VALIDATED, Finetuned, between

from study import ROOT, sharing  # isort: skip

Row = Mapping[str, Any]


def right(task: Any, params: Any, examples: Any) -> tuple[int, int]:
    """How many of some examples a model gets right, and how many there are."""
    found = [0, 0]
    with torch.no_grad():
        for batch in batches(examples, by_length(examples), PASS_BATCH):
            confusion = task.sums(placed(params, task.device), batch)["confusion"]
            found = [found[0] + int(confusion.diagonal().sum()), found[1] + int(confusion.sum())]
    return found[0], found[1]


def recorded(file: Path) -> Callable[..., Any]:
    """The choice as it is, with a line of what it chooses from beside it."""
    chosen = Finetuned._chosen

    def outer(self: Finetuned, client: Any, before: Any, after: Any) -> Any:
        row: dict[str, Any] = {"client": str(client.id)}
        for step in VALIDATED:
            params = between(before, after, step)
            row[f"val{step}"] = (
                losses_per_token(client.task, params, client.data.validation).tolist() if len(client.data.validation) else []
            )
            row[f"test{step}"] = right(client.task, params, client.data.test)
        with file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        return chosen(self, client, before, after)

    return outer


def run(out: Path) -> None:
    """Every federation that is not done."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = Finetuned._chosen
    for job in sharing():
        _, task, spread, method, seed = job.name.split("/")
        done = out / f"{task}_{spread}_{seed}.jsonl"
        if method != "best" or done.exists():
            continue
        begun = done.with_suffix(".part")
        begun.unlink(missing_ok=True)
        Finetuned._chosen = recorded(begun)  # type: ignore[method-assign]
        config = load(ROOT / job.config, [*job.overrides, "resources.workers=1"]).config
        try:
            session.start(config, out / "runs" / f"{done.stem}-{os.getpid()}")
        finally:
            Finetuned._chosen = chosen  # type: ignore[method-assign]
        begun.rename(done)
        print(done.name, flush=True)


def always(step: float, rows: Sequence[Row]) -> list[float]:
    return [step] * len(rows)


def lowest(rows: Sequence[Row]) -> list[float]:
    """The lowest loss on a client's own validation part, which was kept before the rule *halfway*."""
    return [min(VALIDATED, key=lambda step: mean(row[f"val{step}"])) for row in rows]


def halfway(errors: float, rows: Sequence[Row]) -> list[float]:
    """Halfway, unless an end is better by so many standard errors: slowly, for comparison with the package's own."""
    found = []
    for row in rows:
        sure = {0.5: 0.0}
        for step in (0.0, 1.0):
            less = [a - b for a, b in zip(row["val0.5"], row[f"val{step}"], strict=True)]
            if len(less) > 1 and mean(less) > errors * statistics.stdev(less) / math.sqrt(len(less)):
                sure[step] = mean(less)
        found.append(max(sure, key=lambda step: sure[step]))
    return found


def first(errors: float, rows: Sequence[Row]) -> list[float]:
    """The step nearest to the model before whose loss is at most so many standard errors above the lowest."""
    found = []
    for row, best in zip(rows, lowest(rows), strict=True):
        for step in VALIDATED:
            more = [a - b for a, b in zip(row[f"val{step}"], row[f"val{best}"], strict=True)]
            if step == best or (len(more) > 1 and mean(more) <= errors * statistics.stdev(more) / math.sqrt(len(more))):
                found.append(step)
                break
    return found


def pooled(weight: float, rows: Sequence[Row]) -> list[float]:
    """The lowest loss, where so many examples with the mean loss over all clients are added to each client's own: three numbers leave."""
    all_of = {step: mean([loss for row in rows for loss in row[f"val{step}"]]) for step in VALIDATED}
    cost = [{step: sum(row[f"val{step}"]) + weight * all_of[step] for step in VALIDATED} for row in rows]
    return [min(one, key=lambda step: one[step]) for one in cost]


def best(rows: Sequence[Row]) -> list[float]:
    """What the test part says: no rule can know it."""
    return [max(VALIDATED, key=lambda step: row[f"test{step}"][0]) for row in rows]


RULES: Mapping[str, Callable[[Sequence[Row]], list[float]]] = {
    "before": partial(always, 0.0),
    "halfway": partial(always, 0.5),
    "after": partial(always, 1.0),
    "lowest loss": lowest,
    "halfway, 0.25": partial(halfway, 0.25),
    "halfway, 0.5": partial(halfway, 0.5),
    "halfway, 1": partial(halfway, 1.0),
    "nearest, 1": partial(first, 1.0),
    "pooled, 16": partial(pooled, 16.0),
    "test part": best,
}


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def accuracy(rows: Sequence[Row], steps: Sequence[float]) -> float:
    """Of all clients together, in per cent."""
    counts = [row[f"test{step}"] for row, step in zip(rows, steps, strict=True)]
    return 100 * sum(one for one, _ in counts) / sum(number for _, number in counts)


def table(out: Path) -> None:
    """See the module's text."""
    groups: dict[str, list[list[Row]]] = {}
    for file in sorted(out.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        groups.setdefault(file.stem.rpartition("_")[0].replace("_", ", "), []).append(rows)
    print(f"| data | seeds | {' | '.join(RULES)} |\n{'|---' * (2 + len(RULES))}|")
    for name, runs in groups.items():
        scores = [mean([accuracy(rows, rule(rows)) for rows in runs]) for rule in RULES.values()]
        print(f"| {name} | {len(runs)} | {' | '.join(f'{score:.1f}' for score in scores)} |")


def main() -> None:
    match sys.argv[1:]:
        case ["run", out]:
            run(Path(out))
        case ["table", out]:
            table(Path(out))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
