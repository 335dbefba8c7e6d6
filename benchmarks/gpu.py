"""Steps, passes and rounds on one GPU, meant to take about five minutes: seconds, tokens a second, peak memory, as a table.

Run: python benchmarks/gpu.py [--device cuda] [--seconds 8]        (--device cpu --small tries the script where there is no GPU)

- step: optimiser steps of local training (LoRA of rank 8 and the head) on batches of 32 texts of 64 tokens, of random encoders of three
  sizes; each precision for `--seconds`, after a warm-up;
- pass: the Fisher information of every example, on the same batches;
- round: the run of configs/demo.toml on the packaged MiniLM (20 clients, 4 a round, 3 rounds): one client after the other, joined passes
  (`resources.cohort_batch`), and base models in 4 and 8 bit. Seconds are those of the rounds as recorded, without the first.

Peak memory is what torch allocated on the device at most; on a CPU it is not measured. The wall clock waits for the device.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from fibecfed import session
from fibecfed.config import load
from fibecfed.core.records import RoundRecord, read
from fibecfed.core.rng import Key
from fibecfed.engine.stopwatch import Stopwatch
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.precision import choose_device
from fibecfed.models.tiny import tiny_model
from fibecfed.models.transformer_task import TransformerTask

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.toml"
SIZES = {"6 x 384": (6, 384, 12), "12 x 768": (12, 768, 12), "24 x 1024": (24, 1024, 16)}
BATCH, TOKENS, STEPS = 32, 64, 16
SHORT = ("federation.clients=20", "federation.clients_per_round=4", "federation.rounds=3", "data.max_train=2000", "data.max_test=200")
RUNS = {
    "lora": ("method.kind=lora",),
    "fibecfed": ("method.preset=paper",),
    "lora, 4 clients in one pass": ("method.kind=lora", "resources.cohort_batch=4"),
    "fibecfed, 4 clients in one pass": (
        "method.preset=paper",
        "resources.cohort_batch=4",
    ),
    "lora on nf4": ("method.kind=lora", "model.quantization=nf4"),
    "lora on int8": ("method.kind=lora", "model.quantization=int8"),
}


def peak(device: torch.device) -> str:
    """What torch allocated at most since `forget`."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MB" if device.type == "cuda" else "not measured"


def forget(device: torch.device) -> None:
    """Begin to measure memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def batches(number: int) -> list[dict[str, torch.Tensor]]:
    """Random texts, all of the longest length but one of each batch."""
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(number):
        ids, mask = torch.randint(5, 1000, (BATCH, TOKENS), generator=draw), torch.ones(BATCH, TOKENS, dtype=torch.long)
        mask[0, TOKENS // 2 :] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": torch.randint(2, (BATCH,), generator=draw)})
    return found


def repeated(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds of a work: the median of as many as fit, at least two, after one that warms up."""
    work()
    found, end = list[float](), time.perf_counter() + seconds
    while len(found) < 2 or time.perf_counter() < end:
        watch = Stopwatch(device)
        work()
        found.append(watch.seconds())
    return statistics.median(found)


def steps(device: torch.device, seconds: float, sizes: dict[str, tuple[int, int, int]]) -> Iterator[tuple[str, ...]]:
    """Local training and the Fisher pass, by size and precision."""
    some = batches(STEPS)
    options = TrainingOptions.model_validate({"batch_size": BATCH, "learning_rate": 1e-3})
    for (name, (layers, hidden, heads)), precision in itertools.product(sizes.items(), ("float32", "bf16")):
        forget(device)
        model = tiny_model("bert", rank=8, layers=layers, hidden=hidden, heads=heads, vocab=30_522)
        task = TransformerTask(model, device=device, precision=precision)
        params, texts = task.params(), STEPS * BATCH * TOKENS
        works: dict[str, Callable[[], Any]] = {
            "step": lambda task=task, params=params: fit(task, params, [some], options, Key(0)),
            "pass": lambda task=task, params=params: fisher_pass(task, params, some),
        }
        for kind, work in works.items():
            each = repeated(work, device, seconds)
            yield f"{kind}, {name}", precision, f"{1000 * each / STEPS:.1f} ms", f"{texts / each:,.0f} tokens/s", peak(device)


def rounds(device: torch.device, runs: dict[str, tuple[str, ...]], short: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Runs, by method and how clients are computed."""
    for name, pairs in runs.items():
        if ("nf4" in name or "int8" in name) and importlib.util.find_spec("bitsandbytes") is None:
            yield f"round, {name}", "", "not measured", "needs bitsandbytes", ""
            continue
        forget(device)
        with tempfile.TemporaryDirectory() as folder:
            config = load(CONFIG, (*short, f"training.device={device}", *pairs)).config
            session.start(config, Path(folder) / "run", adapters=False)
            header, records = read(Path(folder) / "run" / "records.jsonl")
        trained = [one for one in records if isinstance(one, RoundRecord) and any(one.steps.values())]
        counted = trained[1:] or trained
        each = statistics.median(one.seconds for one in counted)
        number = statistics.mean(sum(one.steps.values()) for one in counted)
        yield f"round, {name}", str(header["precision"]), f"{each:.2f} s", f"{number / each:,.0f} steps/s", peak(device)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    device = choose_device(asked.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    cuda = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    print(f"{card}; Python {platform.python_version()}, torch {torch.__version__}{cuda}, transformers {transformers.__version__}, "
          f"fibecfed {importlib.metadata.version('fibecfed')}\n")  # fmt: skip
    print("| what | precision | each | speed | peak memory |\n|---|---|---|---|---|", flush=True)
    sizes = {"1 x 32": (1, 32, 2)} if asked.small else SIZES
    runs = dict(list(RUNS.items())[:1]) if asked.small else RUNS
    short = (*SHORT, "data.max_train=80", "data.max_test=40", "federation.rounds=1") if asked.small else SHORT
    for row in itertools.chain(steps(device, asked.seconds, sizes), rounds(device, runs, short)):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
