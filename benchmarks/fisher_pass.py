"""What per-example Fisher information costs: one pass over a batch of 32 against a plain forward and backward pass of that batch.

Run: OMP_NUM_THREADS=1 python benchmarks/fisher_pass.py [repetitions]

The packaged MiniLM with LoRA r = 8 on query and value, and its head, one thread, full batches without padding. Compared are

- plain: the model's own call on the batch, and backward of its mean loss;
- fisher: `fisher_pass`, traces of the examples and sums of the neurons;
- loop: the model's own call, and backward, for each example by itself, and the squared norm of each gradient;
- vmap: `torch.func.vmap(grad)` over the examples, and the squared norms, with a 4-dimensional mask and explicit position ids, without
  which it fails. Once with the fused attention kernel (torch has no batching rule for it and falls back to a loop over examples inside
  it) and once with plain attention: neither is the faster one everywhere.

All run in turn within every repetition; a ratio is the median over the repetitions of the ratios to the plain pass beside it. The other
ways use the attention that the package chooses for the precision: fused in float32, plain in bf16.
Seconds are those of the processor, which other processes disturb less than those on the wall. That all ways find the same is shown by
the largest relative difference of a trace, for the adapter by itself as well: the head's 99 % of the trace would hide it.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, Params
from fibecfed.local.fisher import fisher_pass
from fibecfed.local.options import TrainingOptions
from fibecfed.models.base_models import build_task, find
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions
from fibecfed.models.transformer_task import TransformerTask

BATCH, CLASSES = 32, 2


def minilm(precision: str) -> TransformerTask:
    options, training = ModelOptions(name="minilm"), TrainingOptions.model_validate({"precision": precision, "device": "cpu"})
    task = build_task(find(options), options, training, objective=ClassHead(CLASSES), pad_token_id=0, key=Key(0))
    generator = Key(1).generator()
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            if "lora_B" in name:  # at 0 the gradient of A would be 0
                parameter.normal_(0.0, 0.02, generator=generator)
    return task


def made_batch(tokens: int) -> Batch:
    generator = Key(2).fold(tokens).generator()
    ids = torch.randint(1000, 30000, (BATCH, tokens), generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def plain_pass(task: TransformerTask, batch: Batch) -> dict[str, Tensor]:
    """The gradients of the mean loss by name, by the model's own call."""
    autocast = torch.autocast("cpu", torch.bfloat16) if task.precision == "bf16" else contextlib.nullcontext()
    task.model.zero_grad(set_to_none=True)
    with autocast:
        loss = task.model(**batch).loss
    loss.backward()
    return {name: parameter.grad for name, parameter in task.model.named_parameters() if parameter.grad is not None}


def both_traces(task: TransformerTask, gradients: dict[str, Tensor]) -> Tensor:
    """Squared norms over all tensors and over the adapter, shape (2, examples), of gradients (examples, ...)."""
    norms = {name: gradient.square().flatten(1).sum(1) for name, gradient in gradients.items()}
    adapter = torch.stack([norm for name, norm in norms.items() if task.layer_of(name) is not None]).sum(0)
    return torch.stack([torch.stack(list(norms.values())).sum(0), adapter])


def loop(task: TransformerTask, batch: Batch) -> Tensor:
    traces = []
    for i in range(BATCH):
        gradients = plain_pass(task, {name: value[i : i + 1] for name, value in batch.items()})
        traces.append(both_traces(task, {name: gradient[None] for name, gradient in gradients.items()}))
    return torch.cat(traces, 1)


def with_vmap(task: TransformerTask, params: Params, batch: Batch) -> Tensor:
    tokens = batch["input_ids"].shape[1]
    mask, positions = torch.zeros(1, 1, tokens, tokens), torch.arange(tokens)[None]

    def loss(params: dict[str, Tensor], ids: Tensor, label: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": ids[None], "attention_mask": mask, "position_ids": positions}
        autocast = torch.autocast("cpu", torch.bfloat16) if task.precision == "bf16" else contextlib.nullcontext()
        with autocast:
            logits = functional_call(task.model, params, (), inputs, tie_weights=False).logits
        return cross_entropy(logits.float(), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(dict(params), batch["input_ids"], batch["labels"])
    return both_traces(task, gradients)


def compare(precision: str, tokens: int, repetitions: int) -> None:
    task, batch = minilm(precision), made_batch(tokens)
    fused, eager = minilm(precision), minilm(precision)
    for other, attention in ((fused, "sdpa"), (eager, "eager")):
        other.model.get_base_model().set_attn_implementation(attention)  # pyright: ignore[reportCallIssue]
    params = task.params()
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain_pass(task, batch),
        "fisher": lambda: fisher_pass(task, params, [batch]),
        "loop": lambda: loop(task, batch),
        "vmap, fused": lambda: with_vmap(fused, params, batch),
        "vmap, plain": lambda: with_vmap(eager, params, batch),
    }
    found = {way: run() for way, run in ways.items()}  # also the warm-up
    traces = torch.stack([found["fisher"].trace, fisher_pass(task, params, [batch], over="adapter").trace])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way, run in ways.items():
            start = time.process_time()
            run()
            seconds[way].append(time.process_time() - start)
    print(f"\n{precision}, {BATCH} x {tokens} tokens, {repetitions} repetitions")
    for way, taken in seconds.items():
        ratio = statistics.median(one / plain for one, plain in zip(taken, seconds["plain"], strict=True))
        line = f"  {way:<12}{1e3 * statistics.median(taken):8.1f} ms   {ratio:5.2f} plain passes"
        if way not in ("plain", "fisher"):
            whole, adapter = ((found[way] - traces).abs() / found[way]).max(1).values.tolist()
            line += f"   traces differ from fisher's by at most {whole:.1e}, of the adapter {adapter:.1e}"
        print(line)


def main() -> None:
    torch.set_num_threads(1)
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(f"torch {torch.__version__}, one thread, MiniLM, LoRA r = 8, head trained")
    for precision in ("bf16", "float32"):
        for tokens in (64, 32):
            compare(precision, tokens, repetitions)


if __name__ == "__main__":
    main()
