"""Does the order of a curriculum help where a third of the training answers belong to other prompts? Scores by order, at one pace.

FIBECFED_DATA=FOLDER python benchmarks/orders.py run [SEED/ORDER]     # minutes a run; one that is done is not made again
FIBECFED_DATA=FOLDER python benchmarks/orders.py table

nl2bash in the size of benchmarks/instruction.py, SmolLM2-135M, whose upper 13 blocks are trained and shared. In every round a client trains
on the first two thirds of its order, drawn at random until it is scored in round 2; `all` trains on everything. Test answers are right.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibecfed.core.metrics import METRICS
from fibecfed.core.records import EvalRecord, RoundRecord, read

from instruction import ROOT, overrides, smaller  # isort: skip

TASK = "nl2bash"
RESULTS = ROOT / "benchmarks" / "results" / "orders.jsonl"
ORDERS = ("random", "fisher", "nll", "ira", "length")
PACE = ("method.curriculum.pace=step", "method.curriculum.beta=0.667", "method.curriculum.alpha=1.0")
SEEDS = 3


def swapped(out: Path) -> Path:
    """The folder of the data, where every third training row of each client has the answer of another client's such row."""
    folder = smaller(TASK, out / "whole") / TASK
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    places = list[int]()
    for client in dict.fromkeys(row["client"] for row in rows):
        places += [place for place, row in enumerate(rows) if row["client"] == client][::3]
    answers = [rows[place]["completion"] for place in places]
    for number, place in enumerate(places):
        rows[place]["completion"] = answers[(number + len(answers) // 2) % len(answers)]
    (out / "data" / TASK).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), out / "data" / TASK / "train.parquet")
    (out / "data" / TASK / "test.parquet").write_bytes((folder / "test.parquet").read_bytes())
    return out / "data"


def pairs(seed: int, order: str, data: Path) -> list[str]:
    """Overrides of configs/nl2bash.toml."""
    paced = ("method.curriculum.pace=none",) if order == "all" else (*PACE, f"method.curriculum.order={order}")
    return [
        *overrides(TASK, "upper", seed, data), "method.finetune=false", "evaluation.generate=0", "evaluation.max_new_tokens=1", *paced,
    ]  # fmt: skip


def outcome(folder: Path, name: str) -> dict[str, Any]:
    """What `table` shows of a finished run."""
    _, records = read(folder / "records.jsonl")
    last = [record for record in records if isinstance(record, EvalRecord)][-1]
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    nll = METRICS["nll"]
    return {
        "name": name,
        "nll": round(nll.of(last.pooled), 4),
        "token_accuracy": round(METRICS["token_accuracy"].of(last.pooled), 4),
        "clients": {client: round(nll.of(sums), 4) for client, sums in last.clients.items()},
        "steps": sum(sum(one.steps.values()) for one in rounds),
        "cpu_s": round(sum(one.cpu_s for one in rounds), 1),
    }


def known() -> dict[str, dict[str, Any]]:
    """Rows that are there, by name."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows}


def run(only: str, out: Path) -> None:
    """All runs whose name begins so and that are not done."""
    for seed in range(SEEDS):
        for order in (*ORDERS, "all"):
            name = f"{seed}/{order}"
            if not name.startswith(only) or name in known():
                continue
            folder = out / name
            if not (folder / "summary.json").exists():
                start = ["run", str(ROOT / "configs" / f"{TASK}.toml"), *pairs(seed, order, swapped(out)), "--out", str(folder)]
                command = ["resume", str(folder)] if (folder / "config.toml").exists() else start
                folder.parent.mkdir(parents=True, exist_ok=True)
                with Path(f"{folder}.log").open("w") as log:
                    code = subprocess.run([sys.executable, "-m", "fibecfed", *command], stdout=log, stderr=log, cwd=ROOT).returncode
                if code:
                    print(f"{name}: exit code {code}, see {folder}.log", flush=True)
                    continue
            row = outcome(folder, name)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{name}: NLL {row['nll']}", flush=True)


def table() -> None:
    """Means over the seeds that are there, and in how many clients an order is better than the random one."""
    rows = known()
    print("| order | seeds | NLL per token | token accuracy | clients below random | steps | CPU s |\n|---|---|---|---|---|---|---|")
    for order in (*ORDERS, "all"):
        found = [(rows[f"{seed}/{order}"], rows.get(f"{seed}/random")) for seed in range(SEEDS) if f"{seed}/{order}" in rows]
        if not found:
            continue
        scores = [one["nll"] for one, _ in found]
        spread = f" ({min(scores):.3f} to {max(scores):.3f})" if len(scores) > 1 else ""
        beside = [one["clients"][client] < other["clients"][client] for one, other in found if other for client in one["clients"]]
        means = {key: statistics.mean(one[key] for one, _ in found) for key in ("token_accuracy", "steps", "cpu_s")}
        cells = (
            f"{statistics.mean(scores):.3f}{spread}", f"{means['token_accuracy']:.3f}",
            "" if order == "random" else f"{sum(beside)} of {len(beside)}", f"{means['steps']:.0f}", f"{means['cpu_s']:.0f}",
        )  # fmt: skip
        print(f"| {order} | {len(found)} | {' | '.join(cells)} |")


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("only", nargs="?", default="", help="runs whose name, SEED/ORDER, begins with this")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "orders")
    options = parser.parse_args()
    table() if options.action == "table" else run(options.only, options.out)


if __name__ == "__main__":
    main()
