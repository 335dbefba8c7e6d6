"""How much of `resources.activation_cache_mb` a run will fill, for `fibecfed check`: its batches are gone through without computing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from .build import Prepared
from .data.text import TableExamples, padded_length
from .engine.evaluation import sample
from .engine.loop import planned, schedule
from .local.batches import PASS_BATCH, by_length, grouped_by_length, length_batches


def trained_names(prepared: Prepared) -> list[str]:
    """What the run trains, as far as is known before it: all trainable tensors, unless the method says otherwise."""
    method, task = prepared.method, prepared.task
    asked = getattr(method, "trains", None)
    if asked is None:
        return list(task.names)
    last = schedule(method)[-1]
    return list(asked(task, method.outlook(method.init(task, prepared.inputs.key), last)[-1]))


def planned_bytes(prepared: Prepared) -> int:
    """What the cache holds at the end of the run, at most its budget; 0 where there is none or nothing for it to keep."""
    size, first = prepared.activation, prepared.task.first_block(trained_names(prepared))
    if size is None or first == 0:
        return 0
    budget = prepared.inputs.config.resources.activation_cache_mb * 2**20 // size.page * size.page
    seen: set[tuple[Any, ...]] = set()
    total = 0
    for batch in _batches(prepared):
        table = id(batch.examples.table)
        new = {(table, row, batch.width, batch.padded) for row in batch.examples.indices[batch.rows].tolist()} - seen
        seen |= new
        total += len(new) * size.of(batch.width)
        if total >= budget:
            return budget
    return total


class _Batch(NamedTuple):
    """Which examples at which positions, to how many tokens they are padded, and whether any is shorter."""

    examples: TableExamples
    rows: Tensor
    width: int
    padded: bool


def _batches(prepared: Prepared) -> Iterator[_Batch]:
    """The batches of the run's trainings and evaluations, in orders like those of the run."""
    inputs, method = prepared.inputs, prepared.method
    config, data, key = inputs.config, inputs.data, inputs.key
    size, training = config.federation.cohort_size(len(data.clients)), config.training
    for phase, now, clients in planned(method, data.clients, size, key.fold("run"), config.federation, prepared.privacy is not None):
        for client in clients if phase.trains else ():
            train: Any = data.client(client).train
            stream = key.fold("plan", client)
            load = method.load(len(train), now, size / len(data.clients))
            per_epoch = load.steps * training.gradient_accumulation / training.local_epochs
            used = stream.permutation(len(train))[: round(per_epoch * training.batch_size)]
            if load.passes >= 1:
                yield from _cut(train, by_length(train), PASS_BATCH)
            for epoch in range(training.local_epochs):
                order = used[stream.fold(now.number, epoch).permutation(len(used))]
                if training.group_by_length:
                    order = grouped_by_length(train, order, training.batch_size, stream.fold(now.number, epoch, "groups"))
                yield from _cut(train, order, training.batch_size)
    parts: list[Any] = []
    for client in sample(data.clients, config.evaluation.clients, key.fold("run")):
        parts += [data.client(client).test, data.client(client).validation]
    for part in [*parts, *([data.test, data.validation] if method.is_personal else [])]:
        order = by_length(part)
        for batch in length_batches(part, config.evaluation.batch_size):
            mask = batch["attention_mask"]
            rows, order = order[: len(mask)], order[len(mask) :]
            yield _Batch(part, rows, mask.shape[1], not bool(mask.all()))


def _cut(examples: TableExamples, order: Tensor, size: int) -> Iterator[_Batch]:
    for rows in order.split(size) if len(order) else ():
        lengths = examples.lengths[rows]
        width = padded_length(int(lengths.max()))
        yield _Batch(examples, rows, width, bool((lengths < width).any()))
