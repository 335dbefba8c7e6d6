"""Instruction tuning of SmolLM2-135M with natural clients: FibecFed, FedAvg with LoRA, each client alone, pooled training, untrained.

FIBECFED_DATA=FOLDER python benchmarks/instruction.py run             # all of it, hours; a run that is done is not made again
FIBECFED_DATA=FOLDER python benchmarks/instruction.py run nl2bash/0   # what is named so
python benchmarks/instruction.py table                                # of the rows in benchmarks/results/instruction.jsonl

The folder holds nl2bash, shakespeare and medquad. Of each the clients with most training rows are taken, and of each client as many rows
as `SIZES` says, evenly spread. Every method has the same clients in the same rounds, and the same steps where it uses all data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, RoundRecord, read
from fibecfed.engine.evaluation import worst_decile

from study import POOLED  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "instruction.jsonl"
TASKS = ("nl2bash", "shakespeare", "medquad")
SEEDS = 3


@dataclass(frozen=True)
class Size:
    """How much of a set is used: clients, of each at most so many training and test rows; rounds, and clients in each of them; of how many
    test examples of a client answers are generated at the end."""

    clients: int
    train: int
    test: int
    rounds: int
    cohort: int
    max_length: int
    new_tokens: int
    generated: int

    @property
    def steps(self) -> int:
        """Of one client's training on all of its examples, in batches of 8, without the eighth that validates."""
        return -(-(self.train - self.train // 8) // 8)


SIZES: Mapping[str, Size] = {
    "nl2bash": Size(clients=8, train=48, test=16, rounds=8, cohort=4, max_length=160, new_tokens=48, generated=8),
    "shakespeare": Size(clients=4, train=32, test=12, rounds=6, cohort=2, max_length=160, new_tokens=48, generated=4),
    "medquad": Size(clients=4, train=32, test=12, rounds=6, cohort=2, max_length=224, new_tokens=64, generated=4),
}
VALIDATED = ("method.kind=fibecfed", "method.curriculum.pace=none", "method.neurons.rule=all", "method.finetune=validated")
"""As many steps as FedAvg with LoRA, and the last training of the preset `best`; 13 of the 30 blocks are then 0.49 of the bytes,
12 of them 0.45."""
UPPER = (*VALIDATED, "method.depth=13", "method.depth_rule=last", "method.layers.rule=all", "resources.activation_cache_mb=512")
ALL = ("method.kind=fibecfed", "method.preset=best", "method.depth=1.0")
HALF = (*VALIDATED, "method.layers.rule=last", "method.layers.value=12")
FASTER = "training.learning_rate=3e-3"
METHODS: Mapping[str, tuple[str, ...]] = {
    "lora": ("method.kind=lora", "method.finetune=true"),
    "best": ("method.kind=fibecfed", "method.preset=best"),
    "all": ALL,
    "untrained": (
        "method.kind=lora",
        "federation.rounds=1",
        "federation.clients_per_round=1",
        "training.learning_rate=1e-30",
        "training.max_steps=1",
    ),
    "local": ("method.kind=local",),
    "pooled": POOLED,
    "paper": ("method.kind=fibecfed", "method.preset=paper"),
    "fast": ("method.kind=fibecfed", "method.preset=fast"),
    "upper": UPPER,
    "half": HALF,
    "nf4": (*UPPER, "model.quantization=nf4"),
    "long": (*ALL, "federation.rounds=20", "evaluation.generate=16", "evaluation.max_new_tokens=64"),
    "wide": (*ALL, "evaluation.generate=16", "evaluation.max_new_tokens=64"),
    "3e-3-all": (*ALL, "evaluation.generate=16", "evaluation.max_new_tokens=64", FASTER),
    "3e-3-lora": ("method.kind=lora", "method.finetune=true", FASTER),
    "3e-3-half": (*HALF, FASTER),
}
"""Runs, at the learning rate of the configuration, 1e-3, or 3e-3. That of `lora` ends with a local training of every client, and gives the
rows `lora` (its global model) and `lora-finetune`.
`untrained` takes one step that changes nothing, as answers are generated behind training alone."""
ROWS: Mapping[str, int] = {"wide": 160}
"""Of a client at most, other than its set's `Size` says."""
TITLES: Mapping[str, str] = {
    "untrained": "untrained",
    "lora": "FedAvg with LoRA",
    "lora-finetune": "the same, then a local training",
    "best": "FibecFed, `best`",
    "all": "FibecFed, `best`, all 30 blocks",
    "long": "the same, 20 rounds",
    "wide": "the same, 8 rounds, up to 160 training rows of a client",
    "paper": "FibecFed, `paper`",
    "fast": "FibecFed, `fast`",
    "upper": "FibecFed, upper 13 blocks trained and shared",
    "nf4": "the same on a base in 4 bit",
    "half": "FibecFed, all blocks trained, upper 12 shared",
    "3e-3-lora": "FedAvg with LoRA, rate 3e-3",
    "3e-3-lora-finetune": "the same, then a local training",
    "3e-3-half": "FibecFed, all blocks trained, upper 12 shared, rate 3e-3",
    "3e-3-all": "FibecFed, `best`, all 30 blocks, rate 3e-3",
    "local": "each client alone",
    "pooled": "pooled training",
}


@dataclass(frozen=True)
class Row:
    """Of one method on one set: what `table` shows. NLL per labelled token in nat, shares in [0, 1]; "own": each client's own model.

    Attributes:
        before: own NLL before the last local training; None without one.
        worst: own NLL that nine of ten clients have or fall below.
        megabytes: both ways, training alone. cpu_s: of the rounds.
        validation: own NLL on the validation parts; settings are chosen by it.
    """

    name: str
    nll: float
    nll_global: float
    before: float | None
    worst: float
    token_accuracy: float
    exact_match: float
    rouge_l: float
    stop_rate: float
    exact_global: float
    rouge_global: float
    generated: int
    megabytes: float
    steps: int
    cpu_s: float
    rounds: int
    where: str
    validation: float | None = None


def outcome(folder: Path, name: str, trained_last: bool = True) -> Row:
    """Of a finished run.

    Args:
        trained_last: False: of the global model, without the last local training, behind which it writes its answers.
    """
    header, records = read(folder / "records.jsonl")
    scored = [record for record in records if isinstance(record, EvalRecord)]
    rounds = [record for record in records if isinstance(record, RoundRecord) and (trained_last or record.phase != "finetune")]
    ended, machine = any(record.phase == "finetune" for record in rounds), header["machine"]
    own = scored[-1].pooled if trained_last else scored[-1].server
    held_out = scored[-1].pooled_validation if trained_last else scored[-1].server_validation
    clients = scored[-1].clients if trained_last else scored[-2].clients
    nll = METRICS["nll"]

    def of(metric: str, sums: Mapping[str, Any]) -> float:
        return round(METRICS[metric].of(sums), 4)

    return Row(
        name=name,
        nll=of("nll", own),
        nll_global=of("nll", scored[-1].server),
        before=of("nll", scored[-2].pooled) if ended else None,
        worst=round(worst_decile(clients, nll) or 0.0, 4),
        token_accuracy=of("token_accuracy", own),
        exact_match=of("exact_match", own),
        rouge_l=of("rouge_l", own),
        stop_rate=of("stop_rate", own),
        exact_global=of("exact_match", scored[-1].server),
        rouge_global=of("rouge_l", scored[-1].server),
        generated=int(own["generated"]),
        megabytes=round(sum(sum(one.bytes_up.values()) + sum(one.bytes_down.values()) for one in rounds) / 1e6, 2),
        steps=sum(sum(record.steps.values()) for record in rounds),
        cpu_s=round(sum(record.cpu_s for record in rounds), 1),
        rounds=sum(record.phase != "finetune" and bool(sum(record.steps.values())) for record in rounds),
        where=f"{machine['processor']}, {machine['cores']} cores, {header['threads']} thread, {header['precision']}, "
        f"torch {header['versions']['torch']}, transformers {header['versions']['transformers']}",
        validation=of("nll", held_out) if held_out else None,
    )


def smaller(task: str, out: Path, rows: int | None = None) -> Path:
    """The folder of the data sets with the rows that are used of one of them.

    Args:
        rows: for training, of a client at most; None: as many as the set's size says.
    """
    size, source = SIZES[task], Path(os.environ["FIBECFED_DATA"]) / task
    whole = {part: pq.read_table(source / f"{part}.parquet") for part in ("train", "test")}
    counts = Counter(whole["train"]["client"].to_pylist())
    chosen = sorted(counts, key=lambda client: (-counts[client], client))[: size.clients]
    for part, table in whole.items():
        places = list[int]()
        for client in chosen:
            own = [place for place, name in enumerate(table["client"].to_pylist()) if name == client]
            number = min(len(own), rows if rows and part == "train" else getattr(size, part))
            places += [own[place * len(own) // number] for place in range(number)]
        (out / task).mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(pa.array(places)), out / task / f"{part}.parquet")
    return out


def overrides(task: str, method: str, seed: int, data: Path) -> list[str]:
    """Of configs/<task>.toml."""
    size = SIZES[task]
    pooled = method == "pooled"
    asked = size.generated * (size.clients if pooled else 1)
    return [
        f"data.root={data}", f"data.max_length={size.max_length}", "data.validation_fraction=0.125", f"seed={seed}",
        f"federation.rounds={size.rounds}", f"federation.clients_per_round={size.cohort}",
        f"evaluation.every={size.rounds}", "evaluation.batch_size=16",
        f"evaluation.generate={asked}", f"evaluation.max_new_tokens={size.new_tokens}",
        "evaluation.examples=0", "resources.workers=1", *METHODS[method],
        *([f"training.max_steps={size.steps * size.cohort}"] if pooled else []),
    ]  # fmt: skip


def jobs(seeds: int = SEEDS) -> Iterator[tuple[str, str, int]]:
    """Task, method and seed of each run, the most telling first."""
    for seed in range(seeds):
        for task in TASKS:
            for method in METHODS:
                yield task, method, seed


def known() -> dict[str, Row]:
    """Rows that are there, by name."""
    if not RESULTS.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {row.name: row for row in rows}


def run(only: str, out: Path) -> None:
    """All runs whose name begins so and that are not done; a row is written as soon as its run has ended."""
    for task, method, seed in jobs():
        name = f"{task}/{seed}/{method}"
        if not name.startswith(only) or name in known():
            continue
        folder = out / name
        if not (folder / "summary.json").exists():
            rows = ROWS.get(method)
            data = smaller(task, out / (f"data-{rows}" if rows else "data"), rows)
            command = ["run", str(ROOT / "configs" / f"{task}.toml"), *overrides(task, method, seed, data)]
            command = ["resume", str(folder)] if (folder / "config.toml").exists() else [*command, "--out", str(folder)]
            folder.parent.mkdir(parents=True, exist_ok=True)
            with Path(f"{folder}.log").open("w") as log:
                code = subprocess.run([sys.executable, "-m", "fibecfed", *command], stdout=log, stderr=log, cwd=ROOT).returncode
            if code:
                print(f"{name}: exit code {code}, see {folder}.log", flush=True)
                continue
        rows = [outcome(folder, name)]
        if "method.finetune=true" in METHODS[method]:
            rows = [outcome(folder, name, trained_last=False), outcome(folder, f"{name}-finetune")]
        with RESULTS.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        print(f"{name}: NLL {rows[0].nll}", flush=True)


def table() -> None:
    """Means over the seeds that are there; of more than one with the smallest and the largest."""
    rows = known()
    print("| set | method | seeds | NLL per token | NLL, global | worst decile | exact match | Rouge-L | stop rate | MB | steps | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        for method, title in TITLES.items():
            found = [rows[name] for seed in range(SEEDS) if (name := f"{task}/{seed}/{method}") in rows]
            if not found:
                continue

            def mean(key: str, digits: int, factor: float = 1.0, found: list[Row] = found) -> str:
                return f"{factor * statistics.mean(getattr(one, key) for one in found):.{digits}f}"

            scores = [one.nll for one in found]
            spread = f" ({min(scores):.3f} to {max(scores):.3f})" if len(found) > 1 else ""
            cells = (
                mean("nll", 3) + spread, mean("nll_global", 3), mean("worst", 3), mean("exact_match", 1, 100) + " %", mean("rouge_l", 3),
                mean("stop_rate", 1, 100) + " %", mean("megabytes", 1), mean("steps", 0), mean("cpu_s", 0),
            )  # fmt: skip
            print(f"| {task} | {title} | {len(found)} | {' | '.join(cells)} |")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("only", nargs="?", default="", help="runs whose name, SET/SEED/METHOD, begins with this")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "instruction")
    options = parser.parse_args()
    table() if options.action == "table" else run(options.only, options.out)


if __name__ == "__main__":
    main()
