"""What the package adds to training: a run of FedAvg-LoRA against a plain loop of `model(**batch).loss`, backward and AdamW.

Run: OMP_NUM_THREADS=1 python benchmarks/overhead.py [repetitions]

The packaged MiniLM with LoRA r = 8 on query and value and its head, one thread, the precision that the package chooses. One round: ten
clients of 48 made examples each, two local epochs in batches of 8, AdamW. Compared are, in turn within every repetition and in one
process,

- ours: a round through `engine.loop` and the simulator: messages encoded and decoded, clients' states kept, updates checked and averaged,
  a record made of it;
- plain: the same batches in the same order for each client, from the same start: `model(**batch)`, backward of its loss,
  `torch.optim.AdamW` on the trainable parameters.

Checkpoints, evaluation, scoring, import and loading are apart, and printed beside it: seconds of a checkpoint (flushed to the device), an
evaluation of 500 examples and a scoring of 48. Seconds are those of the processor, which other processes disturb less than those on the
wall; the ratio is the median over the repetitions of the ratios to the plain round beside it. At the end: a round in which ten clients
do nothing with 1,000 numbers.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fibecfed.core.method import ClientView, Phase, Received, Update
from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, Params, Round
from fibecfed.core.wire import Tensors, encode, message
from fibecfed.data.federated import FederatedData
from fibecfed.data.planted import planted_federation
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.loop import run
from fibecfed.engine.runtime import ClientRuntime
from fibecfed.engine.scoring import totals
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.states import ClientStates
from fibecfed.local.batches import batches, by_length, shuffled_batches
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import LoraOptions, MethodContext, make
from fibecfed.models.base_models import build_task, find
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions
from fibecfed.models.transformer_task import TransformerTask

CLIENTS, EXAMPLES, TOKENS = 10, 48, 64
TRAINING = TrainingOptions()
KEY = Key(0)


def minilm() -> TransformerTask:
    options = ModelOptions(name="minilm")
    return build_task(find(options), options, TRAINING, objective=ClassHead(2), pad_token_id=0, key=KEY.fold("model"))


def runtime_of(method: Any, task: Any, data: FederatedData, folder: Path) -> ClientRuntime:
    return ClientRuntime(method, task, data.client, ClientStates(folder, 2**30), KEY.fold("run"), 64)


def our_round(method: Any, task: Any, data: FederatedData, folder: Path) -> Any:
    """One round of a run; its step."""
    runtime = runtime_of(method, task, data, folder)
    server = method.init(task, KEY.fold("run", "init"))
    return next(run(method, Simulator(runtime), data.clients, per_round=CLIENTS, key=KEY.fold("run"), server=server))


def plain_round(task: TransformerTask, start: Params, batches_of: dict[str, list[list[Batch]]]) -> list[dict[str, torch.Tensor]]:
    """Each client's parameters after training the module itself."""
    model = task.model
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    autocast = torch.autocast("cpu", torch.bfloat16) if task.precision == "bf16" else contextlib.nullcontext()
    found = []
    for epochs in batches_of.values():
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(start[name])
        optimiser = torch.optim.AdamW(trainable.values(), lr=TRAINING.learning_rate, weight_decay=TRAINING.weight_decay)
        for epoch in epochs:
            for batch in epoch:
                optimiser.zero_grad()
                with autocast:
                    loss = model(**batch).loss
                loss.backward()
                optimiser.step()
        found.append({name: parameter.detach().clone() for name, parameter in trainable.items()})
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(before[name])
            parameter.grad = None
    return found


def cpu(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def wall(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(repetitions: int) -> None:
    task = minilm()
    data = planted_federation(CLIENTS, EXAMPLES, KEY.fold("data"), vocab_size=20_000, length=TOKENS, test_per_client=50)
    method = make(LoraOptions(), MethodContext(TRAINING, 1, CLIENTS, KEY.fold("method")))
    start = method.init(task, KEY.fold("run", "init")).params
    of_client = {}
    for client in data.clients:
        train, key = data.client(client).train, KEY.fold("run", "client", client, "round", 0)
        everything = torch.arange(len(train))
        of_client[client] = [
            list(shuffled_batches(train, everything, TRAINING, key.fold("order", epoch))) for epoch in range(TRAINING.local_epochs)
        ]
    steps = sum(len(epoch) for epochs in of_client.values() for epoch in epochs)
    print(f"MiniLM, {task.precision}, {CLIENTS} clients of {EXAMPLES} examples of {TOKENS // 2} to {TOKENS} tokens, {steps} steps a round")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, plain = our_round(method, task, data, folder), plain_round(task, start, of_client)  # also the warm-up
        mean = {name: torch.stack([one[name] for one in plain]).mean(0) for name in start}
        far = max(float((mean[name] - ours.server.params[name]).abs().max()) for name in start)
        moved = max(float((mean[name] - start[name]).abs().max()) for name in start)
        print(f"both end at the same place: at most {far:.1e} apart, after moving {moved:.1e}")
        pairs = []
        for _ in range(repetitions):
            pairs.append((cpu(lambda: our_round(method, task, data, folder)), cpu(lambda: plain_round(task, start, of_client))))
            print(f"  ours {pairs[-1][0]:6.2f} s   plain {pairs[-1][1]:6.2f} s   ratio {pairs[-1][0] / pairs[-1][1]:.3f}", flush=True)
        print(f"ours / plain: {statistics.median(a / b for a, b in pairs):.3f} (median of {repetitions}; at most 1.05 is the aim)")
        beside(task, method, data, folder)


def beside(task: TransformerTask, method: Any, data: FederatedData, folder: Path) -> None:
    """What is not counted above."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    states = checkpoints.open_states(None, 2**30)
    server = method.init(task, KEY)
    blob = encode(server)
    saving = []
    for number in range(5):
        for client in data.clients:
            states.put(client, blob + bytes([number]))  # as large as a client's state can be
        saving.append(wall(lambda number=number: checkpoints.save(number, encode(server), states, {})))
    examples = data.client(data.clients[0]).train
    scoring = [wall(lambda: fisher_pass(task, server.params, batches(examples, by_length(examples), 32))) for _ in range(3)]
    evaluating = [wall(lambda: totals(task, server.params, data.test, 64)) for _ in range(3)]
    print(f"beside it, seconds on the wall: a checkpoint of {CLIENTS} changed clients of {len(blob) / 1e3:.0f} kB", end=" ")
    print(f"{statistics.median(saving):.3f}, an evaluation of {len(data.test)} examples {statistics.median(evaluating):.2f}", end=", ")
    print(f"a scoring of {len(examples)} examples {statistics.median(scoring):.2f}")


@message
class Numbers:
    """1,000 numbers, in every message and state."""

    numbers: Tensors


@dataclass(frozen=True)
class Nothing:
    """A method whose clients send back what they got."""

    server_state = Numbers
    client_state = Numbers

    @property
    def phases(self) -> tuple[Phase[Numbers, Numbers, Numbers, Numbers], ...]:
        return (Phase("tune", 300, "sampled", Numbers, Numbers, _send, _give_back, _first),)

    def init(self, task: Any, key: Key) -> Numbers:
        return Numbers({"w": torch.zeros(1000)})

    def init_client(self, task: Any, client: str, key: Key) -> Numbers:
        return Numbers({"w": torch.zeros(1000)})


def _send(server: Numbers, now: Round) -> Numbers:
    return server


def _give_back(client: ClientView[Numbers], down: Numbers, now: Round) -> Update[Numbers, Numbers]:
    return Update(replace(down, numbers={"w": down.numbers["w"] + 1}), down)


def _first(server: Numbers, received: Any, now: Round) -> Numbers:
    answers: list[Received[Numbers]] = list(received)
    return Numbers({"w": torch.stack([answer.message.numbers["w"] for answer in answers]).mean(0)})


def nothing() -> None:
    method, data = Nothing(), planted_federation(CLIENTS, 4, KEY.fold("data"))
    with tempfile.TemporaryDirectory() as folder:
        runtime = runtime_of(method, None, data, Path(folder))
        seconds: list[float] = []
        start = time.process_time()
        server = method.init(None, KEY)
        for _ in run(method, Simulator(runtime), data.clients, per_round=CLIENTS, key=KEY, server=server):  # pyright: ignore[reportArgumentType]
            seconds.append(time.process_time() - start)
            start = time.process_time()
    print(
        f"a round of {CLIENTS} clients that do nothing with 1,000 numbers: {1e3 * statistics.median(seconds):.2f} ms (at most 5 is the aim)"
    )


def main() -> None:
    torch.set_num_threads(1)
    nothing()
    compare(int(sys.argv[1]) if len(sys.argv) > 1 else 5)


if __name__ == "__main__":
    main()
