"""What a client's round of FibecFed costs beside one of FedAvg-LoRA on the same batches.

Run: OMP_NUM_THREADS=1 python benchmarks/method_cost.py [repetitions] [float32 or bf16]

The packaged MiniLM with LoRA r = 8 on query and value and its head, one thread. Two clients of 96 made examples of 16 to 32 tokens,
batches of 16, one local epoch. Each client answers `fibecfed`, then `lora` trains on the very batches that `fibecfed` has just trained on.
Seconds are `compute_s` of the records: processor seconds of the thread from the bytes of the broadcast to the state that is put away. A
round is its two clients; a ratio is the median over the repetitions of the ratios to the round of `lora` beside it. Rounds, of 20:

- new: round 4, the first in which clients are scored, of clients that never trained before;
- scored: round 8 of the same clients; while training, they are scored in this one too;
- later: round 17, when all examples are used and scores no longer decide anything.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fibecfed.core.process import kept_memory
from fibecfed.core.rng import Key
from fibecfed.core.types import Round
from fibecfed.core.wire import encode
from fibecfed.data.planted import planted_federation
from fibecfed.engine.runtime import ClientRuntime, unframe
from fibecfed.engine.states import ClientStates
from fibecfed.local.options import TrainingOptions
from fibecfed.methods import fedavg, fibecfed_client
from fibecfed.methods.catalogue import METHODS, MethodContext, make
from fibecfed.models.base_models import build_task, find
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions

ROUNDS = {"new": 4, "scored": 8, "later": 17}
OF, CLIENTS, EXAMPLES, TOKENS = 20, 2, 96, 32
LAYERS = {"rule": "last", "value": 3}  # half of them, as by default, without a phase that measures
VARIANTS: dict[str, dict[str, Any]] = {
    "a pass of its own": {},
    "while training": {"curriculum": {"scoring": "training"}},
    "while training, every 4": {"curriculum": {"scoring": "training"}, "neurons": {"every": 4}},
}


class Cohort:
    """The clients of one method, with their states."""

    def __init__(self, kind: str, options: dict[str, Any], task: Any, data: Any, training: TrainingOptions, folder: Path) -> None:
        table = METHODS[kind].model_validate({"kind": kind, **options})
        self.method: Any = make(table, MethodContext(training, OF, CLIENTS, Key(0).fold("method")))
        self.runtime = ClientRuntime(self.method, task, data.client, ClientStates(folder / kind, 2**30), Key(0), 64)
        (self.phase,) = (phase for phase in self.method.phases if phase.trains)
        self.server = self.method.init(task, Key(0).fold("init"))

    def seconds(self, client: str, index: int) -> float:
        now = Round("tune", index, OF, index)
        return unframe(self.runtime.train(client, encode(self.phase.broadcast(self.server, now)), now)[0])[1].compute_s


def ratios(task: Any, data: Any, training: TrainingOptions, options: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Seconds of both methods in each round."""
    batches: list[Any] = []
    inner = fibecfed_client.fit, fedavg.shuffled_batches

    def keep(task: Any, params: Any, epochs: Any, *args: Any, **more: Any) -> Any:
        batches[:] = [list(epoch) for epoch in epochs]
        return inner[0](task, params, batches, *args, **more)

    fibecfed_client.fit = keep  # pyright: ignore[reportAttributeAccessIssue]
    fedavg.shuffled_batches = lambda *args, **more: iter(batches[0])  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with tempfile.TemporaryDirectory() as name:
            ours = Cohort("fibecfed", {"preset": "paper", "layers": LAYERS, **options}, task, data, training, Path(name))
            lora = Cohort("lora", {}, task, data, training, Path(name))
            found = {}
            for which, index in ROUNDS.items():
                pairs = [(ours.seconds(client, index), lora.seconds(client, index)) for client in data.clients]
                found[which] = (sum(a for a, _ in pairs), sum(b for _, b in pairs))
            return found
    finally:
        fibecfed_client.fit, fedavg.shuffled_batches = inner  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    precision = sys.argv[2] if len(sys.argv) > 2 else "float32"
    training = TrainingOptions.model_validate({"precision": precision, "device": "cpu", "local_epochs": 1, "batch_size": 16})
    options = ModelOptions(name="minilm")
    task = build_task(find(options), options, training, objective=ClassHead(2), pad_token_id=0, key=Key(0).fold("model"))
    data = planted_federation(CLIENTS, EXAMPLES, Key(0).fold("data"), vocab_size=20_000, length=TOKENS, test_per_client=2)
    ratios(task, data, training, {})  # the warm-up
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(repetitions):
        for variant, more in VARIANTS.items():
            for which, pair in ratios(task, data, training, more).items():
                found.setdefault((variant, which), []).append(pair)
    print(f"MiniLM, {precision}, {CLIENTS} clients of {EXAMPLES} examples; fibecfed / lora, medians of {repetitions} (lowest to highest)")
    for variant in VARIANTS:
        parts = []
        for which in ROUNDS:
            all_of = sorted(a / b for a, b in found[variant, which])
            parts.append(f"{which} {statistics.median(all_of):.3f} ({all_of[0]:.3f} to {all_of[-1]:.3f})")
        print(f"{variant:26s} {'   '.join(parts)}")
    print(f"lora: {statistics.median(b for pairs in found.values() for _, b in pairs):.2f} s a round")


if __name__ == "__main__":
    with kept_memory():  # as in a run
        main()
