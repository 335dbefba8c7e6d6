"""The memory of a run, found by doing once what takes the most: a client's part of each phase and an evaluation, on the longest texts."""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import replace
from typing import Any

import torch

from .build import Prepared, build_method
from .core.method import ClientView, Phase
from .core.types import ClientData, Examples, Round
from .engine.scoring import totals
from .local.batches import PASS_BATCH


def peak_memory() -> int:
    """Bytes of this process's memory at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rehearse(prepared: Prepared) -> int:
    """What `peak_memory` says after a client's part of the last round of each phase (and of its first, if only that one measures
    something), and an evaluation, both on the longest texts.

    Nothing is kept, of activations neither. Local training is one epoch, which takes no less memory than several.
    """
    inputs, task = prepared.inputs, prepared.task
    config, task.lower_blocks = inputs.config, None
    brief = config.training.model_copy(update={"local_epochs": 1})
    method = build_method(replace(inputs, config=config.model_copy(update={"training": brief})))
    client, key = inputs.data.clients[0], inputs.key.fold("rehearsal")
    # No method makes a larger batch of its own than PASS_BATCH; those of training and of evaluation are of the configuration.
    train = _longest(inputs.data.train, 2 * max(PASS_BATCH, config.training.batch_size))
    data = ClientData(train, inputs.data.validation, inputs.data.test)
    start = server = method.init(task, inputs.key)
    for number, phase in enumerate(method.phases):
        first, last = (Round(phase.name, index, phase.num_rounds, number) for index in (0, phase.num_rounds - 1))
        passes = [method.load(len(train), now, 1.0).passes for now in (first, last)]
        for now in (first, last) if passes[0] > passes[1] else (last,):
            server = method.outlook(start, now)[-1]
            view = ClientView(client, task, data, method.init_client(task, client, inputs.key), key)
            with contextlib.suppress(FloatingPointError):  # what diverges on these few texts need not in the run
                phase.client_update(view, _message(phase, server, now, client), now)
    scored = inputs.data.test if len(inputs.data.test) else inputs.data.train
    batch_size = config.evaluation.batch_size
    totals(task, method.server_params(server), _longest(scored, batch_size), batch_size)
    return peak_memory()


def _message(phase: Phase[Any, Any, Any, Any], server: Any, now: Round, client: str) -> Any:
    sent = phase.broadcast(server, now)
    return sent if phase.address is None else phase.address(server, sent, client)


def _longest(examples: Any, number: int) -> Examples:
    return examples.select(torch.argsort(examples.lengths, descending=True, stable=True)[:number])
