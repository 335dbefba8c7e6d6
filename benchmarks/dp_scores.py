"""What privacy for examples costs in score: epsilon 2, 4, 8 and none.

python benchmarks/dp_scores.py run FOLDER [KEY=VALUE ...]     # resumable: what is done is not made again
python benchmarks/dp_scores.py table FOLDER                   # the table of what is done so far

`TASKS` are sst2 and mr (tables as `data.root` has them, default: FIBECFED_DATA). Settings that make it easier to learn: few trained
numbers (`ffa-lora` of rank 1 in the last layer, and a head: 1,538 with MiniLM), large batches, all clients in every round, even clients.
The clip norm is near the norm of gradients at the start: with a much smaller one every example counts the same whatever the model makes
of it already, and a model ends up predicting the largest class. The same settings for all epsilons, with privacy and without; none of them
was looked for with the data but the clip norm, the rank and the learning rate, on a tenth of sst2. `KEY=VALUE` changes one for all runs, as
in `fibecfed run`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fibecfed import session
from fibecfed.config import from_table, load, to_toml

TASKS = ("sst2", "mr")
EPSILONS = (2.0, 4.0, 8.0, None)
SETTINGS: dict[str, Any] = {
    "model.name": "minilm",
    "model.rank": 1,
    "model.alpha": 2.0,
    "model.layers_to_transform": [5],
    "method.kind": "ffa-lora",
    "data.max_train": 8000,
    "data.max_test": 1000,
    "data.validation_fraction": 0.0,
    "data.max_length": 64,
    "federation.clients": 4,
    "federation.clients_per_round": 4,
    "federation.partition": "iid",
    "federation.rounds": 8,
    "training.local_epochs": 1,
    "training.batch_size": 64,
    "training.gradient_accumulation": 4,
    "training.learning_rate": 3e-3,
    "training.weight_decay": 0.0,
    "training.device": "cpu",
    "evaluation.every": 4,
}
PRIVACY = {"privacy.unit": "example", "privacy.clip_norm": 8.0, "privacy.delta": 1e-5, "privacy.evaluation": "exact"}


def settings(task: str, epsilon: float | None) -> dict[str, Any]:
    """The keys of one run."""
    own = {"data.task": task, "data.root": os.environ.get("FIBECFED_DATA", "../shared/data")}
    return {**SETTINGS, **own, **({} if epsilon is None else {**PRIVACY, "privacy.epsilon": epsilon})}


def nested(keys: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as tables."""
    found: dict[str, Any] = {}
    for key, value in keys.items():
        *tables, name = key.split(".")
        at = found
        for table in tables:
            at = at.setdefault(table, {})
        at[name] = value
    return found


def place(folder: Path, task: str, epsilon: float | None) -> Path:
    return folder / f"{task}-{'none' if epsilon is None else f'{epsilon:g}'}"


def run(folder: Path, changed: Sequence[str]) -> None:
    """Every run that is not done, with keys changed as on the command line."""
    for task in TASKS:
        for epsilon in EPSILONS:
            out = place(folder, task, epsilon)
            if (out / "config.toml").is_file():
                summary, _ = session.resume(out)
            else:
                start = folder / f"{out.name}.toml"
                folder.mkdir(parents=True, exist_ok=True)
                start.write_text(to_toml(from_table(nested(settings(task, epsilon)))), encoding="utf-8")
                ours = [one for one in changed if epsilon is not None or not one.startswith("privacy.")]
                config = load(start, ours).config
                summary = session.start(config, out)
            print(f"{out.name}: {100 * summary['scores']['global']:.1f}", flush=True)


def table(folder: Path) -> None:
    """Scores of the global model after the last round, in per cent."""
    print("| task | " + " | ".join("no privacy" if epsilon is None else f"epsilon {epsilon:g}" for epsilon in EPSILONS) + " | majority |")
    print("|---" * (len(EPSILONS) + 2) + "|")
    for task in TASKS:
        cells, majority = list[str](), "-"
        for epsilon in EPSILONS:
            path = place(folder, task, epsilon) / "summary.json"
            summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
            noise = "" if summary is None or "privacy" not in summary else f" (z {summary['privacy']['noise_multiplier']:.2f})"
            cells.append("-" if summary is None else f"{100 * summary['scores']['global']:.1f}{noise}")
            majority = majority if summary is None else f"{100 * summary['scores']['majority']:.1f}"
        print(f"| {task} | " + " | ".join(cells) + f" | {majority} |")


def main() -> None:
    match sys.argv[1:]:
        case ["run", folder, *keys]:
            run(Path(folder), keys)
        case ["table", folder]:
            table(Path(folder))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
