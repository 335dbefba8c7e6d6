"""Threads that share one module: each computes what it computes alone, and sees the module as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from adapted import SMALL, adapted
from texts import bits, noisy, padded, sentences
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from fibecfed.core.rng import Key
from fibecfed.core.types import Batch, Params
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.base_models import add_lora, set_dropout
from fibecfed.models.options import ModelOptions
from fibecfed.models.tiny import tiny_config, tiny_model, tiny_task
from fibecfed.models.transformer_task import TransformerTask

TIMES = 30
Use = Callable[[TransformerTask, Params, Batch], Tensor]


def a_batch() -> Batch:
    return padded(sentences([6, 3, 4, 5]), 0, num_classes=2)


def tape_of(task: TransformerTask, params: Params, batch: Batch) -> Tensor:
    _, tape = task.traced(params, batch)
    return torch.cat([linear.output.detach().flatten() for linear in tape.linears])


USES: dict[str, Use] = {
    "logits": lambda task, params, batch: task.logits(params, batch),
    "losses": lambda task, params, batch: task.losses(params, batch).detach(),
    "traced": tape_of,
    "sums": lambda task, params, batch: torch.cat([value.flatten().double() for value in task.sums(params, batch).values()]),
    "hidden states": lambda task, params, batch: torch.cat(task.hidden_states(params, batch)).detach(),
    "module's own tensors": lambda task, params, batch: torch.cat([value.flatten() for value in task.params().values()]),
}


def at_once(*works: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    """What each work gives, all begun at the same moment in threads of their own."""
    begin = threading.Barrier(len(works))

    def work(one: Callable[[], list[Tensor]]) -> list[Tensor]:
        begin.wait(30)
        return one()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(60) for future in [pool.submit(work, one) for one in works]]


def wrong(task: TransformerTask, uses: list[Use], others: list[TransformerTask] | None = None) -> int:
    """How many of the threads' results are not what each use gives alone; thread i computes with parameters of its own."""
    batch, tasks = a_batch(), [task, *(others or [task] * (len(uses) - 1))]
    sets = [noisy(task, seed) for seed in range(len(uses))]
    alone = [use(each, params, batch) for each, use, params in zip(tasks, uses, sets, strict=True)]

    def again(one: TransformerTask, use: Use, params: Params) -> Callable[[], list[Tensor]]:
        return lambda: [use(one, params, batch) for _ in range(TIMES)]

    found = at_once(*map(again, tasks, uses, sets))
    return sum(not torch.equal(result, right) for results, right in zip(found, alone, strict=True) for result in results)


@pytest.mark.parametrize("name", USES)
def test_two_threads_on_one_task_compute_what_each_computes_alone(name: str) -> None:
    assert wrong(tiny_task("bert"), [USES["logits"], USES[name]]) == 0


@pytest.mark.parametrize("kind", SMALL)
def test_two_threads_with_hooks_of_an_adapter_compute_what_each_computes_alone(kind: str) -> None:
    assert wrong(adapted("bert", kind), [USES["losses"], USES["hidden states"]]) == 0


def test_two_tasks_on_one_module_take_turns_as_well() -> None:
    model = tiny_model("bert")
    first, second = TransformerTask(model), TransformerTask(model)
    assert wrong(first, [USES["losses"], USES["hidden states"]], [second]) == 0


def test_a_thread_that_switches_attention_does_not_change_anothers_gradients() -> None:
    task = TransformerTask(tiny_model("bert"), precision="bf16")
    task.use_plain_attention_for_gradients()
    assert wrong(task, [USES["logits"], USES["losses"]]) == 0


def with_dropout() -> TransformerTask:
    config = tiny_config("bert")
    set_dropout(config, 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
    return TransformerTask(add_lora(model, ModelOptions(rank=2), dropout=0.5, key=Key(0)), dropout=0.5)


def test_dropout_of_one_thread_neither_meets_another_nor_changes_its_own_draws() -> None:
    tasks = [with_dropout(), with_dropout()]
    batch, options = a_batch(), TrainingOptions(learning_rate=0.1)

    def trained(task: TransformerTask, seed: int) -> list[Tensor]:
        result = fit(task, task.params(), [[batch] * 8], options, Key(seed))
        return [result.params[name] for name in task.names]

    def scored(task: TransformerTask) -> list[Tensor]:
        return [task.logits(task.params(), batch) for _ in range(TIMES)]

    alone = [trained(tasks[0], 1), trained(tasks[0], 2), trained(tasks[1], 3), scored(tasks[0])]
    found = at_once(
        lambda: trained(tasks[0], 1), lambda: trained(tasks[0], 2), lambda: trained(tasks[1], 3), lambda: scored(tasks[0])
    )  # fmt: skip
    for got, expected in zip(found, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_use_within_a_use_does_not_wait_for_itself() -> None:
    task, batch = tiny_task("bert"), a_batch()
    params, inner = noisy(task), []
    block: Any = task.model.get_submodule("base_model.model.bert.encoder.layer.1")

    def look(*_: Any) -> None:
        inner.append(task.embed(batch))

    handle = block.register_forward_hook(look)
    with task.training(Key(0)), ThreadPoolExecutor(1) as pool:
        assert torch.isfinite(task.losses(params, batch)).all() and inner
        assert pool.submit(task.logits, params, batch).result(30).shape == (4, 2)  # without dropout nobody waits for `training`
    handle.remove()


def test_whoever_looks_at_the_module_during_a_use_waits_and_sees_what_it_was() -> None:
    task, batch = tiny_task("bert"), a_batch()
    before, own = bits(task.model), bits(task.params())
    params, seen, frozen = noisy(task), [], []
    names = set(task.names)
    block: Any = task.model.get_submodule("base_model.model.bert.encoder.layer.1")
    with ThreadPoolExecutor(1) as pool:

        def look(*_: Any) -> None:
            if not seen:
                seen.append(pool.submit(task.params))
                frozen.append({name: value for name, value in bits(task.model).items() if name not in names})
                with pytest.raises(TimeoutError):
                    seen[0].result(0.2)

        handle = block.register_forward_hook(look)
        task.losses(params, batch)
        handle.remove()
        assert bits(seen[0].result(30)) == own
    assert frozen[0] == {name: value for name, value in before.items() if name not in names}
    assert bits(task.model) == before
