"""The workload and rounds without training on this package. `python on_fibecfed.py lora FOLDER ROUNDS`, `... noop CLIENTS NUMBERS ROUNDS`.

`lora` is a whole run, as `fibecfed run` makes it, in one process: with records and a checkpoint of every round. Evaluation comes before the
first round, on two texts of each client, and after the last.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from workload import BATCH, MAX_LENGTH, PER_ROUND, RANK, RATE, WEIGHT_DECAY, Rounds, model_of


def lora(folder: Path, count: int) -> None:
    import fibecfed
    from fibecfed.engine.events import RoundDone

    rounds = Rounds()
    config = {
        "model": {"name": model_of(folder), "rank": RANK, "alpha": 16.0},
        "data": {
            "path": str(folder / "train.csv"),
            "test_path": str(folder / "test.csv"),
            "client_column": "client",
            "validation_fraction": 0.0,
            "max_length": MAX_LENGTH,
        },
        "federation": {"clients_per_round": PER_ROUND, "rounds": count},
        "training": {"local_epochs": 1, "batch_size": BATCH, "learning_rate": RATE, "weight_decay": WEIGHT_DECAY, "precision": "float32"},
        "evaluation": {"every": count},
        "method": {"kind": "lora"},
        "resources": {"workers": 1},
    }
    with tempfile.TemporaryDirectory() as out:
        fibecfed.run(config, out, lambda event: rounds.done() if isinstance(event, RoundDone) else None)
    rounds.report()


def noop(clients: int, numbers: int, count: int) -> None:
    import torch

    from fibecfed.core.method import ClientView
    from fibecfed.core.process import kept_memory
    from fibecfed.core.rng import Key
    from fibecfed.core.types import Params, Round
    from fibecfed.data.planted import planted_federation
    from fibecfed.engine.loop import run
    from fibecfed.engine.runtime import ClientRuntime
    from fibecfed.engine.simulator import Simulator
    from fibecfed.engine.states import ClientStates
    from fibecfed.local.optimise import Fit
    from fibecfed.local.options import TrainingOptions
    from fibecfed.methods.fedavg import FedAvg

    class Still(FedAvg):
        """Nobody trains."""

        def train(self, client: ClientView[Any], params: Params, now: Round, penalty: Any = None) -> Fit:
            return Fit(dict(params), 0, 0, 0.0, None)

    class Numbers:
        """A task of numbers alone."""

        names = ("w",)
        device = torch.device("cpu")

        def init_params(self, key: Key) -> dict[str, torch.Tensor]:
            return {"w": torch.zeros(numbers)}

    torch.set_num_threads(1)
    key, task, method = Key(0), Numbers(), Still(TrainingOptions(), count)
    data = planted_federation(clients, 4, key.fold("data"))
    with tempfile.TemporaryDirectory() as folder, kept_memory():  # as in a run
        runtime = ClientRuntime(method, task, data.client, ClientStates(Path(folder), 2**30), key.fold("run"), 64)  # pyright: ignore[reportArgumentType]
        server = method.init(task, key)  # pyright: ignore[reportArgumentType]
        before = _peak_mb()
        rounds = Rounds()
        for _ in run(method, Simulator(runtime), data.clients, per_round=clients, key=key, server=server):
            rounds.done()
    rounds.report(memory_mb=_peak_mb() - before)


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    if sys.argv[1] == "lora":
        lora(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        noop(*map(int, sys.argv[2:]))
