"""What privacy for examples costs in score: epsilon 2, 4, 8 and none.

python benchmarks/dp_scores.py run FOLDER [TASK ...] [KEY=VALUE ...]     # resumable: what is done is not made again
python benchmarks/dp_scores.py table FOLDER                              # the table of what is done so far

`TASKS` are sst2, mr and nl2bash (tables as `data.root` has them: FIBECFED_DATA, for nl2bash FIBECFED_SFT). The settings make it easy to
learn, and are the same for all epsilons, with privacy and without:

- few trained numbers: of MiniLM the head alone (770; `method.depth` = 0), of SmolLM2-135M the second matrices of LoRA of rank 1 in the last
  block (`ffa-lora`);
- each client's examples all in one step, so that noise is small beside their sum, and few steps;
- a clip norm near the norm of gradients at the start: with a much smaller one every example counts the same whatever the model makes of it
  already, and a model ends up predicting the largest class;
- all clients in every round, with even data.

Steps, learning rate and clip norm for sst2 and mr were found on mr. `KEY=VALUE` changes a setting for all runs, as in `fibecfed run`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fibecfed import session
from fibecfed.config import from_table, load, to_toml

EPSILONS = (2.0, 4.0, 8.0, None)
EVERYWHERE: Mapping[str, Any] = {
    "data.validation_fraction": 0.0,
    "federation.partition": "iid",
    "training.weight_decay": 0.0,
    "training.device": "cpu",
    "resources.workers": 1,
    "resources.activation_cache_mb": 1024,
}
HEAD: Mapping[str, Any] = {
    "model.name": "minilm",
    "method.kind": "lora",
    "method.depth": 0,
    "data.max_train": 12000,
    "data.max_test": 2000,
    "data.max_length": 64,
    "federation.clients": 4,
    "federation.clients_per_round": 4,
    "federation.rounds": 4,
    "training.local_epochs": 10,
    "training.batch_size": 64,
    "training.gradient_accumulation": 64,
    "training.learning_rate": 0.03,
    "evaluation.every": 4,
}
ANSWERS: Mapping[str, Any] = {
    "model.name": "smollm2-135m",
    "model.rank": 1,
    "model.alpha": 1.0,
    "model.layers_to_transform": [29],
    "model.target_modules": ["o_proj", "down_proj"],
    "method.kind": "ffa-lora",
    "data.kind": "instruction",
    "data.max_train": 1024,
    "data.max_test": 200,
    "data.max_length": 128,
    "federation.clients": 2,
    "federation.clients_per_round": 2,
    "federation.rounds": 2,
    "training.objective": "example",
    "training.local_epochs": 4,
    "training.batch_size": 16,
    "training.gradient_accumulation": 64,
    "training.learning_rate": 0.05,
    "evaluation.every": 2,
}
TASKS: Mapping[str, Mapping[str, Any]] = {"sst2": HEAD, "mr": HEAD, "nl2bash": ANSWERS}
CLIP = {"sst2": 1.0, "mr": 1.0, "nl2bash": 1.0}
PRIVACY = {"privacy.unit": "example", "privacy.delta": 1e-5, "privacy.evaluation": "exact"}


def settings(task: str, epsilon: float | None) -> dict[str, Any]:
    """The keys of one run."""
    sft = TASKS[task] is ANSWERS
    root = os.environ.get("FIBECFED_SFT", "../shared/data-sft") if sft else os.environ.get("FIBECFED_DATA", "../shared/data")
    own = {"data.task": task, "data.root": root, **EVERYWHERE, **TASKS[task]}
    return own if epsilon is None else {**own, **PRIVACY, "privacy.clip_norm": CLIP[task], "privacy.epsilon": epsilon}


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


def run(folder: Path, tasks: Sequence[str], changed: Sequence[str]) -> None:
    """Every run that is not done, with keys changed as on the command line."""
    for task in tasks:
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
            print(f"{out.name}: {score(summary, 'global')}", flush=True)


def score(summary: Mapping[str, Any], of: str) -> str:
    """Accuracy in per cent, or the loss per token of answers."""
    found = summary["scores"].get(of, "-")
    if isinstance(found, dict):
        found = found["global"]
    if found == "-":
        return found
    return f"{found:.3f} nat" if summary["metric"] == "nll" else f"{100 * found:.1f}"


def table(folder: Path) -> None:
    """Scores of the global model after the last round: accuracy in per cent, of answers the loss per token."""
    titles = ["no privacy" if epsilon is None else f"epsilon {epsilon:g}" for epsilon in EPSILONS]
    print(f"| task | {' | '.join(titles)} | largest class, or untrained |")
    print("|---" * (len(EPSILONS) + 2) + "|")
    for task in TASKS:
        done: dict[float | None, Any] = {}
        for epsilon in EPSILONS:
            path = place(folder, task, epsilon) / "summary.json"
            if path.is_file():
                done[epsilon] = json.loads(path.read_text(encoding="utf-8"))
        cells = [score(done[epsilon], "global") if epsilon in done else "-" for epsilon in EPSILONS]
        any_of = next(iter(done.values()), None)
        known = any_of is not None and any_of["scores"]["majority"] is not None
        nothing = "-" if any_of is None else score(any_of, "majority" if known else "untrained")
        print(f"| {task} | {' | '.join(cells)} | {nothing} |")


def main() -> None:
    match sys.argv[1:]:
        case ["run", folder, *rest]:
            changed = [one for one in rest if "=" in one]
            run(Path(folder), [one for one in rest if one not in changed] or list(TASKS), changed)
        case ["table", folder]:
            table(Path(folder))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
