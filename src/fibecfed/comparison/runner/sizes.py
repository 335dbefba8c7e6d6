"""What the runs of a comparison read: the data themselves, once for each task, or where they cannot be read their sizes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...build import Inputs, read_inputs
from ...config import Config
from ...core.errors import UserError
from ...core.rng import Key
from ...data.federated import FederatedData
from ...data.partition import Partition, client_ids
from ...data.tasks import TASKS
from ...data.text import token_table
from ...reading import is_instruction, max_length
from .options import ComparisonOptions
from .plan import UNKNOWN_EXAMPLES, job


@dataclass
class Sizes:
    """Inputs of runs, each data set read once.

    Attributes:
        at_hand: whether the base model's tokenizer is here, without which no data are read.
        notes: why the data of a task are assumed, a sentence each.
        seconds: CPU seconds of reading a task's data.
    """

    comparison: ComparisonOptions
    at_hand: bool
    notes: dict[str, str] = field(default_factory=dict[str, str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    _read: dict[str, Inputs] = field(default_factory=dict[str, Inputs])

    def inputs(self, task: str, method: str) -> Inputs:
        """Of the run with the first seed.

        Raises:
            UserError: a file of the user's that cannot be read, or a configuration that does not fit it.
        """
        config = job(self.comparison, Path(), task, method, self.comparison.seeds[0]).config
        table = config.model_dump()
        which = json.dumps([table[name] for name in ("model", "data", "federation", "seed")], default=str)
        if which not in self._read:
            began = time.process_time()
            self._read[which] = self._of(task, config)
            self.seconds[task] = time.process_time() - began
        return replace(self._read[which], config=config)

    def classes(self, task: str, inputs: Inputs) -> tuple[str, ...]:
        """Names of a task's classes; none where they are not known, or where it has none."""
        known = task not in self.notes or task in TASKS or inputs.config.data.labels is not None
        return tuple(inputs.data.label_names or ()) if known else ()

    def _of(self, task: str, config: Config) -> Inputs:
        if not self.at_hand and is_instruction(config):
            raise UserError(
                f"{task}: without the base model's tokenizer its answers cannot be counted; load the model on this machine first"
            )
        if self.at_hand:
            try:
                return read_inputs(config)
            except UserError as error:
                if task not in TASKS:
                    raise
                self.notes[task] = f"{task}: its data could not be read here ({error}), so that their number and lengths are assumed"
        else:
            self.notes[task] = f"{task}: without the base model's tokenizer its data are not read: their number and lengths are assumed"
        nothing: Any = None
        return Inputs(config, nothing, nothing, nothing, assumed_data(config, task), Key(config.seed))


def assumed_data(config: Config, task: str) -> FederatedData:
    """As many texts as the configuration names, each as long as may be, spread evenly over clients and classes."""
    labels = tuple(map(str, TASKS[task].labels if task in TASKS else config.data.labels or (0, 1)))
    classes = len(labels)
    train = config.data.max_train or UNKNOWN_EXAMPLES
    fraction = config.data.validation_fraction
    counts = {"train": train, "validation": round(train * fraction / (1 - fraction)), "test": config.data.max_test or train // 4}
    clients = client_ids(config.federation.clients)
    parts, indices = {}, {}
    for name, size in counts.items():
        parts[name] = token_table(torch.full((size, max_length(config)), 7), torch.arange(size) % classes).view()
        indices[name] = dict(zip(clients, torch.arange(size).tensor_split(len(clients)), strict=True))
    nobody = {name: np.zeros((len(clients), classes), dtype=np.int64) for name in counts}
    spread = Partition("iid", clients, indices, nobody)
    return FederatedData(parts["train"], parts["validation"], parts["test"], labels, None, spread, torch.zeros(train, dtype=torch.bool))
