"""A cohort's trainings one after the other against the same with their passes joined (`resources.cohort_batch`).

Run: OMP_NUM_THREADS=1 python benchmarks/cohort.py [repetitions] [float32, bf16 or both] [tokens] [clients]

The packaged MiniLM with LoRA r = 8 on query and value and its head, one thread. A round of FedAvg-LoRA and a later round of FibecFed (all
layers' examples seen, neurons masked, scored while training) of 5 clients with 40 made examples each, of up to 16 tokens, batches of 8, one
local epoch: five steps a client. A ratio is the CPU seconds of the clients one after the other over those of the joined round beside it,
everything that a client's part of a round takes included; medians over the repetitions. On a machine with a GPU, that is used, and the
seconds are wall clock until it has finished.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from fibecfed.core.process import kept_memory
from fibecfed.core.rng import Key
from fibecfed.core.types import Round
from fibecfed.core.wire import encode
from fibecfed.data.planted import planted_federation
from fibecfed.engine.runtime import ClientRuntime
from fibecfed.engine.simulator import SideBySide, Simulator
from fibecfed.engine.states import ClientStates
from fibecfed.engine.stopwatch import Stopwatch
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import METHODS, MethodContext, make
from fibecfed.models.base_models import build_task, find
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions

OF, EXAMPLES, BATCH = 20, 40, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYERS = {"rule": "last", "value": 3}  # half of them, as in the preset paper, without a phase that measures
METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "fibecfed": {"preset": "paper", "layers": LAYERS, "curriculum": {"scoring": "training"}},
}


class Rounds:
    """A method's clients with their states, asked by a transport of their own."""

    def __init__(self, kind: str, task: Any, data: Any, training: TrainingOptions, folder: Path, side_by_side: bool) -> None:
        table = METHODS[kind].model_validate({"kind": kind, **METHOD_OPTIONS[kind]})
        self.method: Any = make(table, MethodContext(training, OF, len(data.clients), Key(0).fold("method")))
        runtime = ClientRuntime(self.method, task, data.client, ClientStates(folder, 2**30), Key(0), 64)
        self.transport = SideBySide(runtime, len(data.clients)) if side_by_side else Simulator(runtime)
        (self.phase,) = (phase for phase in self.method.phases if phase.trains)
        self.server, self.data, self.task = self.method.init(task, Key(0).fold("init")), data, task

    def seconds(self, index: int) -> float:
        """Of the training of all clients in round `index`."""
        now = Round("tune", index, OF, index)
        blob = encode(self.phase.broadcast(self.server, now))
        watch = _Watch(self.task.device)
        tickets = self.transport.send("train", now, dict.fromkeys(self.data.clients, blob))
        for answer in self.transport.receive(tickets):
            assert isinstance(answer.reply, bytes | memoryview), answer.reply
        return watch.seconds()


class _Watch(Stopwatch):
    """Counts the threads of all clients."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._one_thread = False
        self._start = self._now()


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    precisions = ("float32", "bf16") if len(sys.argv) < 3 or sys.argv[2] == "both" else (sys.argv[2],)
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 16
    clients = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    options = ModelOptions(name="minilm")
    data = planted_federation(clients, EXAMPLES, Key(0).fold("data"), vocab_size=20_000, length=tokens, test_per_client=2)
    print(
        f"MiniLM, {DEVICE}, {clients} clients of {EXAMPLES} examples of up to {tokens} tokens, batches of {BATCH}; medians of {repetitions}"
    )
    for precision in precisions:
        training = TrainingOptions.model_validate(
            {"precision": precision, "device": DEVICE, "local_epochs": 1, "batch_size": BATCH, "learning_rate": 5e-4}
        )
        task = build_task(find(options), options, training, objective=ClassHead(2), pad_token_id=0, key=Key(0).fold("model"))
        for kind in METHOD_OPTIONS:
            with tempfile.TemporaryDirectory() as name:
                both = [Rounds(kind, task, data, training, Path(name) / str(way), way) for way in (False, True)]
                pairs = [tuple(one.seconds(index) for one in both) for index in range(OF - repetitions - 1, OF)][1:]
            ratios = sorted(a / b for a, b in pairs)
            shown = f"{statistics.median(ratios):.2f} times as fast, median of {repetitions} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{precision:8s} {kind:9s} {shown}; one after the other {statistics.median(a for a, _ in pairs):.2f} s a round")


if __name__ == "__main__":
    with kept_memory():  # as in a run
        main()
