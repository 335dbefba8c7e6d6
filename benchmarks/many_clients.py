"""Whether many clients cost more than few: memory, and time of a round, with a tiny model.

Run: OMP_NUM_THREADS=1 python benchmarks/many_clients.py [repetitions]

100 and 10,000 clients in turn, each time in a process of its own: rounds of ten clients through the loop of a run, with the states of
clients and a checkpoint after every round on disk, as in a run; no evaluation, which asks everybody. Printed are the processor seconds
of a round and of a checkpoint (medians), the most memory the process took beyond what it had before there was any data, and the size of
the files; then the median over the repetitions of the ratio of the two rounds.

A client that takes part in FibecFed for the first time is scored, and of 10,000 clients nearly all that are drawn are newcomers, of 100
soon none is: so FibecFed is begun anew after every four rounds, with either number. That is the method's cost, not the engine's: it is
the same for each newcomer, however many clients there are. FedAvg-LoRA runs all rounds in one go.
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

import torch

from fibecfed.core.rng import Key
from fibecfed.core.wire import encode
from fibecfed.data.federated import FederatedData
from fibecfed.data.planted import planted_federation
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.loop import run
from fibecfed.engine.runtime import ClientRuntime
from fibecfed.engine.simulator import Simulator
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import METHODS, MethodContext, make
from fibecfed.models.tiny import tiny_task
from fibecfed.models.transformer_task import TransformerTask

PER_ROUND, EXAMPLES, MEMORY_MB = 10, 8, 64
PLANS = {"lora": (1, 60), "fibecfed": (15, 4)}
"""How often each method is begun anew, and for how many rounds."""
COUNTS = (100, 10_000)


def memory_mb() -> float:
    """The most this process has taken so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def measure(kind: str, clients: int) -> dict[str, float]:
    torch.set_num_threads(1)
    key, task = Key(0), tiny_task("bert")
    before = memory_mb()
    data = planted_federation(clients, EXAMPLES, key.fold("data"), validation_per_client=0, test_per_client=1)
    seconds: list[float] = []
    saving: list[float] = []
    times, rounds = PLANS[kind]
    files = 0
    for turn in range(times):
        with tempfile.TemporaryDirectory() as folder:
            train(kind, task, data, key.fold("time", turn), rounds, Path(folder), seconds, saving)
            files = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    round_ms, checkpoint_ms = 1e3 * statistics.median(seconds), 1e3 * statistics.median(saving)
    return {"round_ms": round_ms, "checkpoint_ms": checkpoint_ms, "memory_mb": memory_mb() - before, "files_mb": files / 1e6}


def train(
    kind: str, task: TransformerTask, data: FederatedData, key: Key, rounds: int, folder: Path, seconds: list[float], saving: list[float]
) -> None:
    options = METHODS[kind].model_validate({"kind": kind, **({"preset": "paper", "score_after": 0} if kind == "fibecfed" else {})})
    method = make(options, MethodContext(TrainingOptions(), rounds, len(data.clients), key.fold("method")))
    checkpoints = Checkpoints(folder, keep=2)
    states = checkpoints.open_states(None, MEMORY_MB * 2**20)
    runtime = ClientRuntime(method, task, data.client, states, key.fold("run"), 64)
    server = method.init(task, key.fold("run", "init"))
    start = time.process_time()
    for step in run(method, Simulator(runtime), data.clients, per_round=PER_ROUND, key=key.fold("run"), server=server):
        between = time.process_time()
        checkpoints.save(step.number, encode(step.server), states, {})
        if step.now.phase == "tune":
            seconds.append(between - start)
            saving.append(time.process_time() - between)
        start = time.process_time()


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
        return
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print(f"rounds of {PER_ROUND} clients with {EXAMPLES} examples each, tiny BERT, one thread, processor seconds")
    print("method      clients   round ms   checkpoint ms   memory MB   files MB")
    for kind in PLANS:
        ratios: list[float] = []
        more: list[float] = []
        for _ in range(repetitions):
            rows: list[dict[str, float]] = []
            for clients in COUNTS:
                command = [sys.executable, __file__, "--one", kind, str(clients)]
                row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                rows.append(row)
                times = f"{row['round_ms']:10.1f} {row['checkpoint_ms']:15.1f}"
                print(f"{kind:10}{clients:9,} {times} {row['memory_mb']:11.1f} {row['files_mb']:10.1f}", flush=True)
            ratios.append(rows[1]["round_ms"] / rows[0]["round_ms"])
            more.append(rows[1]["memory_mb"] - rows[0]["memory_mb"])
        ratio, megabytes = statistics.median(ratios), max(more)
        print(f"{kind}: a round of many / of few: {ratio:.2f} (at most 1.2 is the aim); memory {megabytes:+.0f} MB (at most 200)")


if __name__ == "__main__":
    main()
