"""The workload and rounds without training on pfl. `python on_pfl.py lora FOLDER ROUNDS [batch]`, `... noop CLIENTS NUMBERS ROUNDS`.

`FederatedAveraging` on a `SimulatedBackend`, with pfl's own local training.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset, PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from workload import BATCH, PER_ROUND, RATE, WEIGHT_DECAY, Rounds, examples, lora_model, padded


class Classifier(torch.nn.Module):
    """What pfl asks of a model: its loss and its metrics."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def loss(self, **batch: Any) -> Any:
        self.train()
        return self.model(**batch).loss

    @torch.no_grad()
    def metrics(self, **batch: Any) -> dict[str, Any]:
        self.eval()
        return {"loss": Weighted(self.model(**batch).loss.item() * len(batch["labels"]), len(batch["labels"]))}


class Still(torch.nn.Module):
    """Numbers that nobody trains."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(numbers))

    def loss(self, *batch: Any) -> Any:
        return self.w.sum()

    def metrics(self, *batch: Any) -> dict[str, Any]:
        return {"loss": Weighted(0, 1)}


class Measured(TrainingProcessCallback):
    """Takes the time of every round."""

    def __init__(self) -> None:
        self.rounds = Rounds()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        self.rounds.done()
        return False, Metrics()


def run(module: torch.nn.Module, user: Any, clients: list[str], per_round: int, count: int, training: NNTrainHyperParams) -> None:
    measured = Measured()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    local = partial(torch.optim.AdamW, weight_decay=WEIGHT_DECAY)
    model = PyTorchModel(module, local, torch.optim.SGD(trained, lr=1.0))
    data = FederatedDataset(user, get_user_sampler("minimize_reuse", clients))
    backend = SimulatedBackend(training_data=data, val_data=data)
    plan = NNAlgorithmParams(central_num_iterations=count, evaluation_frequency=10**9, train_cohort_size=per_round, val_cohort_size=0)
    FederatedAveraging().run(plan, backend, model, training, None, [measured], send_metrics_to_platform=False)
    measured.rounds.report()


def lora(folder: Path, count: int, by_batch: bool) -> None:
    """A round of the workload.

    Args:
        by_batch: examples of a client come shuffled from a DataLoader and are padded batch by batch. Else they are one tensor, as pfl
            recommends for what fits into memory: in a fixed order, all as long as the client's longest.
    """

    def user(name: str) -> Any:
        if by_batch:
            return PyTorchDataDataset(examples(folder)[name], user_id=name, shuffle=True, collate_fn=padded(folder))  # pyright: ignore[reportArgumentType]
        return PyTorchTensorDataset(padded(folder)(examples(folder)[name]), user_id=name)

    training = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH)
    run(Classifier(lora_model(folder)), user, list(examples(folder)), PER_ROUND, count, training)


def noop(clients: int, numbers: int, count: int) -> None:
    training = NNTrainHyperParams(local_num_epochs=0, local_learning_rate=0.1, local_batch_size=None)
    names = [str(client) for client in range(clients)]
    run(Still(numbers), lambda name: Dataset([np.zeros((4, 1), np.float32)], user_id=name), names, clients, count, training)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "lora":
        lora(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["batch"])
    else:
        noop(*map(int, sys.argv[2:]))
