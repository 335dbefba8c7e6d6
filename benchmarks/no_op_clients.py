"""Whether 100,000 clients cost more than a thousand: rounds without training, with states, checkpoints and evaluation by a sample.

Run: OMP_NUM_THREADS=1 python benchmarks/no_op_clients.py [repetitions]

1,000, 10,000 and 100,000 clients in turn, each time in a process of its own: rounds of 100 clients that send back LoRA tensors of a tiny
model as they got them, through the loop of a run, with a state of each client that was asked (its factors B), paged to disk above 16 MB,
a checkpoint after every round, and an evaluation of 50 clients after every tenth. Printed are medians over the rounds, in processor
milliseconds: a round, a checkpoint, an evaluation; the memory that the examples take, the most that the rounds take beyond it, and the
size of the files; then the medians over the repetitions of the ratios to the rounds of 1,000 clients. Of 100,000 clients nearly all that
are asked are new and begin with drawn tensors; of 1,000 soon none is.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COUNTS = (1_000, 10_000, 100_000)
PER_ROUND, ROUNDS, ASKED, EVERY, MEMORY_MB = 100, 60, 50, 10, 16
COLUMNS = ("round_ms", "checkpoint_ms", "evaluation_ms", "examples_mb", "rounds_mb", "files_mb")


def peak_mb() -> float:
    """The most this process has taken so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measure(clients: int) -> dict[str, float]:
    import torch

    from fibecfed.core.method import ClientView
    from fibecfed.core.rng import Key
    from fibecfed.core.types import Params, Round
    from fibecfed.core.wire import encode
    from fibecfed.data.planted import planted_federation
    from fibecfed.engine.checkpoint import Checkpoints
    from fibecfed.engine.evaluation import Evaluator, sample
    from fibecfed.engine.loop import run
    from fibecfed.engine.runtime import ClientRuntime
    from fibecfed.engine.simulator import Simulator
    from fibecfed.local.optimise import Fit
    from fibecfed.local.options import TrainingOptions
    from fibecfed.methods.fedavg import FedAvg
    from fibecfed.methods.parts import Names
    from fibecfed.models.tiny import tiny_task

    class Still(FedAvg):
        """Nobody trains."""

        def train(self, client: ClientView[Any], params: Params, now: Round, penalty: Any = None) -> Fit:
            return Fit(dict(params), 0, 0, 0.0, None)

    torch.set_num_threads(1)
    key, task = Key(0), tiny_task("bert")
    method = Still(TrainingOptions(), ROUNDS, shared=Names(only=("lora_A", "classifier")))
    empty = peak_mb()
    data = planted_federation(clients, 2, key.fold("data"), validation_per_client=0, test_per_client=1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=2)
        states = checkpoints.open_states(None, MEMORY_MB * 2**20)
        transport = Simulator(ClientRuntime(method, task, data.client, states, key.fold("run"), 64))
        asked = sample(data.clients, ASKED, key.fold("run"))
        evaluator = Evaluator(method, task, transport, asked, data.held_by(asked, "test"), data.held_by(asked, "validation"), 64)
        server, before = method.init(task, key.fold("run", "init")), peak_mb()
        times: dict[str, list[float]] = {"round": [], "checkpoint": [], "evaluation": []}
        start = time.process_time()

        def done(what: str) -> None:
            nonlocal start
            times[what].append(time.process_time() - start)
            start = time.process_time()

        for step in run(method, transport, data.clients, per_round=PER_ROUND, key=key.fold("run"), server=server):
            done("round")
            checkpoints.save(step.number, encode(step.server), states, step.standing.table())
            done("checkpoint")
            if step.number % EVERY == 0:
                evaluator.after(step.server, step.now, step.number)
                done("evaluation")
        files = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    medians = {f"{what}_ms": 1e3 * statistics.median(seconds) for what, seconds in times.items()}
    return {**medians, "examples_mb": before - empty, "rounds_mb": peak_mb() - before, "files_mb": files / 1e6}


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    found: dict[int, list[dict[str, float]]] = {clients: [] for clients in COUNTS}
    for _ in range(repetitions):
        for clients, rows in found.items():
            command = [sys.executable, __file__, "--one", str(clients)]
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
            print(f"{clients:9,}", *(f"{rows[-1][name]:.1f}" for name in COLUMNS), flush=True)
    few = found[COUNTS[0]]
    names = [name.replace("_", ", ").replace("mb", "MB") for name in COLUMNS]
    print("\n| clients |", " | ".join(names), "| a round over that of few |\n" + "|---" * (len(names) + 2) + "|")
    for clients, rows in found.items():
        ratio = statistics.median(row["round_ms"] / first["round_ms"] for row, first in zip(rows, few, strict=True))
        cells = [f"{statistics.median(row[name] for row in rows):.1f}" for name in COLUMNS]
        print(f"| {clients:,} |", " | ".join(cells), f"| {ratio:.2f} |")


if __name__ == "__main__":
    main()
