"""What a round costs beside training: clients that do nothing with many numbers, beside pfl, and the memory of large cohorts.

Run: OMP_NUM_THREADS=1 python benchmarks/large_messages.py [--pfl PYTHON] [repetitions]

PYTHON is an interpreter in whose environment pfl 0.6 and torch are installed (`pip install pfl==0.6.0 torch` in an environment of its
own). Without it, ours alone.

Rounds of FedAvg in which every client sends back the numbers it got: ours through the loop and the simulator, encoded, decoded, checked,
averaged with weights and recorded; pfl's `FederatedAveraging` on its `SimulatedBackend` with a model of as many numbers and no local
step. Every figure comes from a process of its own, one after the other, ours and pfl's in turn; one thread. Printed are the medians of
the processor seconds of a round, then the median over the repetitions of the ratio of each pair. At the end, ours alone: the most memory
that rounds of 10 and of 100 clients took beyond what the process had before the first one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = ((10, 1_000, 200), (100, 1_000, 40), (10, 5_000_000, 8))
"""Clients a round, numbers, rounds that are timed after two that are not."""


def ours(clients: int, numbers: int, rounds: int) -> dict[str, float]:
    import resource

    import torch

    from fibecfed.core.method import ClientView
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
    key, task, method = Key(0), Numbers(), Still(TrainingOptions(), rounds + 2)
    data = planted_federation(clients, 4, key.fold("data"))
    with tempfile.TemporaryDirectory() as folder:
        runtime = ClientRuntime(method, task, data.client, ClientStates(Path(folder), 2**30), key.fold("run"), 64)  # pyright: ignore[reportArgumentType]
        server = method.init(task, key)  # pyright: ignore[reportArgumentType]
        before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, list[float]()
        start = time.process_time()
        for _ in run(method, Simulator(runtime), data.clients, per_round=clients, key=key, server=server):
            seconds.append(time.process_time() - start)
            start = time.process_time()
    return {"round_s": statistics.median(seconds[2:]), "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10}


def pfl(clients: int, numbers: int, rounds: int) -> dict[str, float]:
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    class Still(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(numbers))

        def loss(self, *batch: Any) -> Any:
            return self.w.sum()

        def metrics(self, *batch: Any) -> dict[str, Any]:
            return {"loss": Weighted(0, 1)}

    class Times(TrainingProcessCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.start = time.process_time()

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            self.seconds.append(time.process_time() - self.start)
            self.start = time.process_time()
            return False, Metrics()

    torch.set_num_threads(1)
    module, times = Still(), Times()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    names = [str(client) for client in range(clients)]
    sampler = get_user_sampler("minimize_reuse", names)
    data = FederatedDataset(lambda name: Dataset([np.zeros((4, 1), dtype=np.float32)], user_id=name), sampler)
    backend = SimulatedBackend(training_data=data, val_data=data)
    plan = NNAlgorithmParams(central_num_iterations=rounds + 2, evaluation_frequency=10**9, train_cohort_size=clients, val_cohort_size=0)
    training = NNTrainHyperParams(local_num_epochs=0, local_learning_rate=0.1, local_batch_size=None)
    FederatedAveraging().run(plan, backend, model, training, None, [times], send_metrics_to_platform=False)
    return {"round_s": statistics.median(times.seconds[2:])}


def one(python: str, kind: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """A measurement in a process of its own."""
    shown = subprocess.run([python, __file__, "--one", kind, *map(str, shape)], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(shown.strip().splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps({"ours": ours, "pfl": pfl}[sys.argv[2]](*map(int, sys.argv[3:]))))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--pfl", metavar="PYTHON")
    parser.add_argument("repetitions", nargs="?", type=int, default=5)
    asked = parser.parse_args()
    for shape in SHAPES:
        own, peer = list[float](), list[float]()
        for _ in range(asked.repetitions):
            own.append(one(sys.executable, "ours", shape)["round_s"])
            if asked.pfl:
                peer.append(one(asked.pfl, "pfl", shape)["round_s"])
        text = f"{shape[0]:4} clients x {shape[1]:9,} numbers: {1e3 * statistics.median(own):8.2f} ms a round"
        if peer:
            ratio = statistics.median(a / b for a, b in zip(own, peer, strict=True))
            text += f", pfl {1e3 * statistics.median(peer):8.2f} ms, ours / pfl {ratio:.2f} (median of {len(peer)})"
        print(text, flush=True)
    for clients in (10, 100):
        memory = one(sys.executable, "ours", (clients, 5_000_000, 1))["memory_mb"]
        print(f"memory of a round of {clients} clients x 5,000,000 numbers: {memory:.0f} MB")


if __name__ == "__main__":
    main()
