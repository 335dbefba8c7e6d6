"""What blocks that are not trained save, and what keeping their output saves on top.

Run: OMP_NUM_THREADS=1 python benchmarks/depth.py [repetitions] [minilm or smollm2-135m] [float32 or bf16]

LoRA r = 8 on query and value and the head, one thread, made texts of 16 to 32 tokens, processor seconds.

Steps: an epoch of 96 examples (SmolLM2: 32) in batches of 8 with all blocks trained, with the lower 1/2 and the lower 3/4 untrained, and
with these and their output kept, in turn within every repetition; the factor is the median over the repetitions of the ratios to the epoch
with all blocks beside it. Where output is kept, four epochs come before: the first computes it, and so do others where a text comes in a
batch of another length.

Rounds (MiniLM alone): two clients of 96 examples, batches of 16, one local epoch, train ten times, as in 40 rounds (the default) of 5 of 20
clients, in turn with `lora` on the very batches that `fibecfed` has just trained on. `fibecfed` leaves the lower half untrained, shares
two of the other three layers, and scores while training. Seconds are `compute_s` of the records.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fibecfed.core.process import kept_memory
from fibecfed.core.rng import Key
from fibecfed.core.types import Round
from fibecfed.core.wire import encode
from fibecfed.data.planted import planted_federation
from fibecfed.engine.runtime import ClientRuntime, unframe
from fibecfed.engine.states import ClientStates
from fibecfed.local.batches import shuffled_batches
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.methods import fedavg, fibecfed_client
from fibecfed.methods.catalogue import METHODS, MethodContext, make
from fibecfed.models.base_models import build_task, find
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions
from fibecfed.models.transformer_task import TransformerTask

KEY, TOKENS, BUDGET = Key(0), 32, 2**30
EXAMPLES = {"minilm": 96, "smollm2-135m": 32}
OF = 40
TRAININGS = tuple(range(1, OF, 4))
UPPER = {"depth": 0.5, "depth_rule": "last", "layers": {"rule": "last", "value": 2}}
CHEAP = {"preset": "paper", "curriculum": {"scoring": "training"}, "neurons": {"every": 4}}


def made(name: str, training: TrainingOptions) -> TransformerTask:
    options = ModelOptions(name=name)
    return build_task(find(options), options, training, objective=ClassHead(2), pad_token_id=0, key=KEY.fold("model"))


def steps(task: TransformerTask, training: TrainingOptions, repetitions: int, examples: int) -> None:
    data = planted_federation(1, examples, KEY.fold("data"), vocab_size=20_000, length=TOKENS)
    train, params = data.client(data.clients[0]).train, task.params()
    numbers = iter(range(10**9))

    def epoch(trained: list[str]) -> float:
        batches = list(shuffled_batches(train, torch.arange(len(train)), training, KEY.fold("epoch", next(numbers))))
        start = time.thread_time()
        fit(task, params, [batches], training, KEY, trained=trained)
        return time.thread_time() - start

    def variants() -> Iterator[tuple[str, list[str], Any]]:
        yield "all blocks", list(task.names), None
        for share in (0.5, 0.75):
            first = int(share * task.num_layers)
            upper = [name for name in task.names if (layer := task.layer_of(name)) is None or layer >= first]
            yield f"lower {first} of {task.num_layers} untrained", upper, None
            task.keep_activations(BUDGET)
            keeps, task.lower_blocks = task.lower_blocks, None
            yield f"lower {first} of {task.num_layers} untrained, output kept", upper, keeps

    rows = list(variants())
    for _, trained, keeps in rows:
        task.lower_blocks = keeps
        for _ in range(4 if keeps else 1):
            epoch(trained)
    found: dict[str, list[float]] = {title: [] for title, *_ in rows}
    for _ in range(repetitions):
        for title, trained, keeps in rows:
            task.lower_blocks = keeps
            found[title].append(epoch(trained))
    task.lower_blocks = None
    whole = found["all blocks"]
    print(f"an epoch of {examples} examples in batches of {training.batch_size}, all blocks: {statistics.median(whole):.2f} s")
    for title, _, keeps in rows[1:]:
        ratios = sorted(a / b for a, b in zip(found[title], whole, strict=True))
        kept = "" if keeps is None else f"   {len(keeps.kept)} rows, {keeps.kept.nbytes / 1e6:.1f} MB"
        print(f"  {title:40s} {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}){kept}", flush=True)


class Cohort:
    """The clients of one method, with their states."""

    def __init__(self, kind: str, options: dict[str, Any], task: Any, data: Any, training: TrainingOptions, folder: Path) -> None:
        table = METHODS[kind].model_validate({"kind": kind, **options})
        self.method: Any = make(table, MethodContext(training, OF, len(data.clients), KEY.fold("method")))
        self.runtime = ClientRuntime(self.method, task, data.client, ClientStates(folder / kind, 2**30), KEY, 64)
        (self.phase,) = (phase for phase in self.method.phases if phase.trains)
        self.server = self.method.init(task, KEY.fold("init"))

    def seconds(self, client: str, index: int) -> float:
        now = Round("tune", index, OF, index)
        return unframe(self.runtime.train(client, encode(self.phase.broadcast(self.server, now)), now)[0])[1].compute_s


def rounds(task: TransformerTask, training: TrainingOptions, options: dict[str, Any], keep: bool) -> list[tuple[float, float]]:
    """Seconds of `fibecfed` and `lora` in each of a client's trainings."""
    data = planted_federation(2, EXAMPLES["minilm"], KEY.fold("data"), vocab_size=20_000, length=TOKENS, test_per_client=2)
    batches: list[Any] = []
    inner = fibecfed_client.fit, fedavg.shuffled_batches

    def listen(task: Any, params: Any, epochs: Any, *args: Any, **more: Any) -> Any:
        batches[:] = [list(epoch) for epoch in epochs]
        return inner[0](task, params, batches, *args, **more)

    task.lower_blocks = None
    if keep:
        task.keep_activations(BUDGET)
    fibecfed_client.fit = listen  # pyright: ignore[reportAttributeAccessIssue]
    fedavg.shuffled_batches = lambda *args, **more: iter(batches[0])  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with tempfile.TemporaryDirectory() as name:
            ours = Cohort("fibecfed", options, task, data, training, Path(name))
            lora = Cohort("lora", {}, task, data, training, Path(name))
            found = []
            for index in TRAININGS:
                pairs = [(ours.seconds(client, index), lora.seconds(client, index)) for client in data.clients]
                found.append((sum(a for a, _ in pairs), sum(b for _, b in pairs)))
            return found
    finally:
        fibecfed_client.fit, fedavg.shuffled_batches = inner  # pyright: ignore[reportAttributeAccessIssue]
        task.lower_blocks = None


def of_method(task: TransformerTask, training: TrainingOptions, repetitions: int) -> None:
    variants = {
        "all blocks": ({**CHEAP, "layers": {"rule": "last", "value": 3}}, False),
        "lower half untrained": ({**CHEAP, **UPPER}, False),
        "lower half untrained, output kept": ({**CHEAP, **UPPER}, True),
    }
    rounds(task, training, CHEAP, False)  # the warm-up
    found: dict[str, list[list[tuple[float, float]]]] = {title: [] for title in variants}
    for _ in range(repetitions):
        for title, (options, keep) in variants.items():
            found[title].append(rounds(task, training, options, keep))
    print(f"fibecfed / lora in a client's trainings (rounds {', '.join(map(str, TRAININGS))} of {OF}), their median, and over all")
    for title, runs in found.items():
        each = [statistics.median(run[place][0] / run[place][1] for run in runs) for place in range(len(TRAININGS))]
        whole = sorted(sum(a for a, _ in run) / sum(b for _, b in run) for run in runs)
        row = "  ".join(f"{ratio:.2f}" for ratio in each)
        print(f"  {title:34s} {row}   {statistics.median(each):.3f}   {statistics.median(whole):.3f} ({whole[0]:.3f} to {whole[-1]:.3f})")


def main() -> None:
    torch.set_num_threads(1)
    given = sys.argv[1:]
    repetitions, name, precision = (
        given[place] if place < len(given) else default for place, default in enumerate(("5", "minilm", "bf16"))
    )
    repetitions = int(repetitions)
    training = TrainingOptions.model_validate({"precision": precision, "device": "cpu", "local_epochs": 1, "batch_size": 8})
    task = made(name, training)
    print(f"{name}, {precision}, medians of {repetitions} (lowest to highest)")
    steps(task, training, repetitions, EXAMPLES[name])
    if name == "minilm":
        of_method(task, training.model_copy(update={"batch_size": 16}), repetitions)


if __name__ == "__main__":
    with kept_memory():  # as in a run
        main()
