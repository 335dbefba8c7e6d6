"""Which transformer blocks a method trains: those whose trainable tensors hold the most Fisher information, measured before round 0 [C].

The others stay as pre-trained: their tensors are neither updated nor sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.method import ClientView, Phase, Received, Update
from ..core.rng import Key
from ..core.task import Task
from ..core.types import Round
from ..core.wire import message
from ..local import selection
from ..local.batches import PASS_BATCH, batches
from ..local.fisher import fisher_pass
from .options import FibecFedOptions

PHASE = "depth"


@message
class AskInformation:
    """Server to client: measure the Fisher information of the blocks of the model at the start, which both draw from the seed."""


@message
class Information:
    """Client to server: Fisher information of each block, and how many training examples it holds (n_k)."""

    information: Tensor
    num_samples: int


@dataclass(frozen=True)
class Depth:
    """How many blocks, and which.

    Attributes:
        amount: a number of blocks, or a fraction of them; with the rule "coverage" a fraction of the Fisher information.
        examples: most examples that a client measures on.
        clients: how many measure.
        key: random stream of the rule random.
    """

    amount: int | float
    rule: Literal["fisher", "coverage", "last", "random"]
    examples: int
    clients: int
    key: Key

    @property
    def measures(self) -> bool:
        """Whether it must be measured."""
        return self.rule in ("fisher", "coverage")

    def phase(self, choose: Callable[[Any, Sequence[Received[Information]], Round], Any]) -> Phase[Any, Any, Any, Any]:
        """The phase that measures; `choose` makes the server's next state of the answers."""
        row = (PHASE, 1, self.clients, AskInformation, Information, _ask, self._measure, choose)
        return Phase(*row, template=_template, trains=False)

    def at_start(self, num_layers: int) -> tuple[int, ...]:
        """The trained blocks, where nothing must be measured; else none yet."""
        return () if self.measures else self.chosen(torch.zeros(num_layers))

    def chosen(self, information: Tensor) -> tuple[int, ...]:
        """The trained blocks, 0-based, ascending."""
        return selection.trained_blocks(self.amount, self.rule, information, self.key)

    def numbers(self, num_layers: int) -> tuple[int, ...]:
        """How many there may be, least and most."""
        if self.rule == "coverage":
            return (1, num_layers)
        return (len(self.chosen(torch.zeros(num_layers))),)

    def _measure(self, client: ClientView[Any], message: AskInformation, now: Round) -> Update[Any, Information]:
        train, start = client.data.train, client.state.own
        drawn = client.key.fold(PHASE).permutation(len(train))[: self.examples]
        found = fisher_pass(client.task, start, batches(train, drawn, PASS_BATCH))
        information = selection.block_information(client.task, found.neurons)
        notes = {"information": [float(f"{value:.6g}") for value in information]}
        return Update(Information(information, train.weight), client.state, notes=notes)


def depth_of(options: FibecFedOptions, key: Key) -> Depth | None:
    """The part that `method.depth` asks for; None: every block is trained."""
    if options.depth is None or (options.depth == 1 and isinstance(options.depth, float)):
        return None
    return Depth(options.depth, options.depth_rule, options.layers.importance_examples, options.layers.importance_clients, key)


def mean_information(received: Sequence[Received[Information]]) -> Tensor:
    """sum_k n_k F_k / sum_k n_k over the clients that answered."""
    return selection.aggregate_importance([r.message.information for r in received], [r.message.num_samples for r in received])


def untrained(task: Task, trained: Sequence[int]) -> list[str]:
    """Names of the tensors in blocks that are not trained; where `trained` is empty all blocks are."""
    return [name for name in task.names if trained and (layer := task.layer_of(name)) is not None and layer not in trained]


def _ask(server: Any, now: Round) -> AskInformation:
    return AskInformation()


def _template(server: Any, now: Round) -> Information:
    return Information(torch.zeros(len(server.importance)), 1)
