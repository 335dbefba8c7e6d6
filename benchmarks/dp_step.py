"""What a step that is private for examples costs beside a plain one, and that it is the one that a loop over examples makes.

Run: OMP_NUM_THREADS=1 python benchmarks/dp_step.py [repetitions] [minilm or a folder or hub id] [tokens]

LoRA r = 8 on query and value and a head of two classes, one thread, float32, 16 examples of 56 tokens. Compared are trainings of four
steps each on the same examples: `fit`, and `fit_private` with its batches, norms, clipping, noise and ledger in a temporary folder. They
take turns; a ratio is the median over the repetitions of the ratios to the plain training beside it. Seconds are the processor's.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, ClientId, Examples, Params, Round
from fibecfed.data.planted import planted_federation
from fibecfed.local.batches import batches
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.local.private import clipped_sum, fit_private
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.base_models import build_task, find
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions
from fibecfed.privacy.examples import ClientLedgers, OneTraining
from fibecfed.privacy.ledger import Terms

BATCH, STEPS, CLIP = 16, 4, 1.0
TRAINING = TrainingOptions(batch_size=BATCH, local_epochs=1, group_by_length=False, precision="float32", device="cpu")


def main(repetitions: int, model: str, tokens: int) -> None:
    torch.set_num_threads(1)
    options = ModelOptions(name=model)
    task = build_task(find(options), options, TRAINING, objective=ClassHead(2), pad_token_id=0, key=Key(0))
    generator = Key(1).generator()
    params = {name: value + 0.02 * torch.randn(value.shape, generator=generator) for name, value in task.init_params(Key(0)).items()}
    data = planted_federation(1, BATCH * STEPS * 2, Key(3), length=tokens)
    train: Any = data.client(data.clients[0]).train
    examples: Examples = train.select(torch.arange(BATCH * STEPS))
    differs(task, params, examples.batch(range(BATCH)))
    with tempfile.TemporaryDirectory() as folder:
        place: Callable[[ClientId], tuple[Path, Path]] = lambda client: (Path(folder), Path(folder) / "secret")  # noqa: E731
        ledgers = ClientLedgers(Terms("example", len(examples), BATCH, 10**6, 1.0, CLIP, 1e-5, None), place)
        rows: list[tuple[float, float]] = []
        for number in range(repetitions + 1):
            ledger = ledgers.open("a", len(examples), number > 0)
            began = time.process_time()
            fit(task, params, [batches(examples, torch.arange(len(examples)), BATCH)], TRAINING, Key(number))
            between = time.process_time()
            one = OneTraining(ledger, "a", Round("tune", number, 10**6, number))
            found = fit_private(task, params, examples, TRAINING, Key(number), one)
            one.charge(b"".join(value.numpy().tobytes() for value in found.params.values()))
            rows.append((between - began, time.process_time() - between))
    rows = rows[1:]  # the first one warms up
    plain, private = (1000 * statistics.median(row[place] for row in rows) / STEPS for place in (0, 1))
    ratio = statistics.median(row[1] / row[0] for row in rows)
    numbers = sum(value.numel() for value in params.values())
    print(f"{model}, {numbers:,} trained numbers, {BATCH} x {tokens} tokens: plain step {plain:.0f} ms, private step {private:.0f} ms")
    print(f"ratio {ratio:.3f} ({repetitions} repetitions)")


def differs(task: AdaptedModel, params: Params, batch: Batch) -> None:
    """Prints by how much the clipped sum differs from a loop's, relative to its largest number, and norms from a loop's."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    total: dict[str, Tensor] = {name: torch.zeros_like(value) for name, value in params.items()}
    norms: list[float] = []
    for row in range(BATCH):
        loss = task.losses(leaves, {name: value[row : row + 1] for name, value in batch.items()}).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        norms.append(float(torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt()))
        for name, grad in zip(leaves, grads, strict=True):
            total[name] += grad * min(1.0, CLIP / norms[-1])
    found = clipped_sum(task, leaves, list(leaves), batch, CLIP)
    largest = max(float(value.abs().max()) for value in total.values())
    worst = max(float((found.sums[name] - total[name]).abs().max()) for name in total) / largest
    of_norms = float((found.squared_norms.sqrt() / torch.tensor(norms) - 1).abs().max())
    print(f"a clipped sum differs from a loop over examples by {worst:.1e} of its largest number, norms by {of_norms:.1e}")


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    main(int(given.get(0, 5)), given.get(1, "minilm"), int(given.get(2, 56)))
