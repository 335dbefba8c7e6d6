"""Folders of runs as `fibecfed run` leaves them, with made records: plausible, quick to write, the same for the same names."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sums import sums

from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, RoundRecord, to_line
from fibecfed.engine.summary import summarise

METHODS = (
    "fibecfed", "lora", "adapter", "prompt-tuning", "fedprompt", "p-tuning-v2", "idpg", "attempt", "lpt", "fedpeptao", "momd",
    "moms-adamw", "fedalt", "slora", "voc", "slw", "shortformer", "self-evolution",
)  # fmt: skip
TASKS = ("boolq", "cola", "mpqa", "mr", "mrpc", "qnli", "rte", "sst2", "subj", "trec")


def write_comparison(folder: Path, methods: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], **more: Any) -> None:
    """`comparison.toml`, and a run of each method on each task with each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    lists = {"methods": list(methods), "tasks": list(tasks), "seeds": list(seeds)}
    (folder / "comparison.toml").write_text("".join(f"{name} = {json.dumps(values)}\n" for name, values in lists.items()))
    for task in tasks:
        for method in methods:
            for seed in seeds:
                write_run(folder / "runs" / task / method / str(seed), task=task, method=method, seed=seed, **more)


def write_run(
    folder: Path,
    *,
    task: str = "sst2",
    method: str = "fibecfed",
    seed: int = 0,
    kind: str | None = None,
    clients: int = 20,
    rounds: int = 10,
    every: int = 2,
    final: float | None = None,
    metric: str = "accuracy",
) -> None:
    """config.toml, records.jsonl and summary.json of a finished run.

    Args:
        kind: `method.kind`; the method's name by default, or fibecfed for a name with "without".
        final: accuracy after the last round; drawn from method and task by default.
        metric: the primary one. The loss is what is missing to an accuracy of 1.
    """
    kind = kind or ("fibecfed" if "without" in method else method)
    draw = random.Random(f"{task} {method} {seed}")
    level = random.Random(f"{task}").uniform(0.65, 0.85)
    drawn = level + random.Random(method).uniform(-0.08, 0.08) + draw.uniform(-0.02, 0.02)
    end = min(0.99, max(0.4, drawn)) if final is None else final
    names = [f"{k:02d}" for k in range(clients)]
    sizes = {name: draw.randrange(20, 60) for name in names}
    message = random.Random(f"bytes {method}").choice((20_000, 80_000, 150_000, 300_000))
    records: list[RoundRecord | EvalRecord] = [evaluation(0, names, 0.5, draw)]
    selected: dict[str, Any] = {}
    if kind == "fibecfed":
        importance = [round(0.1 + 0.05 * layer + draw.uniform(0, 0.02), 4) for layer in range(6)]
        selected = {"global_layers": [3, 4, 5], "importance": importance}
        records.append(made_round("importance", 0, 0, names[:4], dict.fromkeys(names, 0), 100, draw))
    for index in range(rounds):
        cohort = sorted(draw.sample(names, 5))
        notes: dict[str, dict[str, Any]] = {}
        if kind == "fibecfed":
            notes = {name: {"kept_neurons": 1100 + draw.randrange(100), "own_neurons": 2352} for name in cohort}
            if index == rounds // 5:
                for name, note in notes.items():
                    note["difficulty"] = [round(draw.lognormvariate(0, 2), 4) for _ in range(sizes[name])]
        share = 0.6 + 0.4 * index / max(1, rounds - 1) if kind == "fibecfed" else 1.0
        seen = {name: 2 * round(share * sizes[name]) for name in cohort}
        records.append(
            made_round("tune", index, sum(isinstance(record, RoundRecord) for record in records), cohort, seen, message, draw, notes)
        )
        if (index + 1) % every == 0 or index + 1 == rounds:
            risen = 1 - math.exp(-4 * (index + 1) / rounds) if index + 1 < rounds else 1.0
            done = sum(isinstance(record, RoundRecord) for record in records)
            records.append(evaluation(done, names, 0.5 + (end - 0.5) * risen, draw))
    write(folder, records, task, method, seed, kind, sizes, selected, metric)


def made_round(
    phase: str,
    index: int,
    number: int,
    cohort: Sequence[str],
    examples: Mapping[str, int],
    message: int,
    draw: random.Random,
    notes: Mapping[str, Mapping[str, Any]] | None = None,
) -> RoundRecord:
    """A round in which every client gets and sends `message` bytes and computes a hundredth of a second an example."""
    seconds = {name: 0.01 * examples[name] + draw.uniform(0.1, 0.3) for name in cohort}
    sent, fields = dict.fromkeys(cohort, message), {"shared": message * len(cohort)}
    seen = {name: examples[name] for name in cohort}
    return RoundRecord(
        phase=phase, index=index, number=number, cohort=tuple(cohort), bytes_down=sent, bytes_up=sent, fields_down=fields, fields_up=fields,
        steps={name: -(-count // 8) for name, count in seen.items()}, examples=seen, loss=dict.fromkeys(cohort, 0.5), compute_s=seconds,
        failures={}, server={}, seconds=2 * sum(seconds.values()), notes=notes or {}, cpu_s=sum(seconds.values()),
    )  # fmt: skip


def evaluation(rounds: int, names: Sequence[str], accuracy: float, draw: random.Random) -> EvalRecord:
    """Every client has 25 test examples, 15 of the first class, and about this accuracy; pooled it is met to one example."""
    total, right = 25 * len(names), round(25 * len(names) * accuracy)
    counts = {name: min(25, max(0, round(25 * accuracy) + draw.randrange(-4, 5))) for name in names}
    while (gap := right - sum(counts.values())) != 0:
        name = draw.choice(names)
        counts[name] = min(25, max(0, counts[name] + (1 if gap > 0 else -1)))
    matrices = {name: _matrix(counts[name], 15, 10) for name in names}
    pooled = sums([[sum(m[i][j] for m in matrices.values()) for j in range(2)] for i in range(2)], 1.0 - accuracy)
    server = sums(_matrix(min(total, max(0, right - draw.randrange(0, total // 10))), 15 * len(names), 10 * len(names)), 0.5)
    clients = {name: sums(found, 0.4) for name, found in matrices.items()} if rounds else {}
    return EvalRecord(rounds, clients, pooled, pooled, server, server, 1000, 100, 1.0)


def _matrix(right: int, first: int, second: int) -> list[list[int]]:
    """A confusion matrix with so many right answers and so many examples of each class."""
    a = min(first, round(right * first / (first + second)))
    b = right - a
    if b > second:
        a, b = right - second, second
    return [[a, first - a], [second - b, b]]


def write(
    folder: Path,
    records: Sequence[RoundRecord | EvalRecord],
    task: str,
    method: str,
    seed: int,
    kind: str,
    sizes: Mapping[str, int],
    selected: Mapping[str, Any],
    metric: str = "accuracy",
) -> None:
    """The three files."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "seed": seed,
        "model": {"name": "minilm", "head": "full"},
        "data": {"task": task, "path": None, "max_train": 1000, "max_test": 500, "max_length": 64},
        "federation": {"clients": len(sizes), "clients_per_round": 5, "rounds": 10, "partition": "dirichlet", "alpha": 1.0},
        "training": {"local_epochs": 2, "batch_size": 8, "optimizer": "adamw", "learning_rate": 0.0005},
        "method": {"kind": kind},
    }
    header = {
        "configuration": configuration, "commit": "0" * 40, "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "metric": metric, "higher_is_better": METRICS[metric].higher_is_better,
        "usual_metric": {"cola": "matthews", "mrpc": "f1"}.get(task),
        "machine": {"system": "Linux", "processor": "A processor", "cores": 2}, "threads": 1, "precision": "bf16", "device": "cpu",
        "trainable": 74_498, "labels": ["no", "yes"], "partition": {name: {"train": [n, 0], "test": [7, 3]} for name, n in sizes.items()},
    }  # fmt: skip
    (folder / "config.toml").write_text(f"seed = {seed}\n")
    (folder / "records.jsonl").write_text(to_line(header) + "".join(map(to_line, records)))
    summary = {"method": kind, "task": task, "seed": seed, **summarise(records, metric=METRICS[metric], selected=selected)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
