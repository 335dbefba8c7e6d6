"""Which transformer blocks a method trains: those whose trainable tensors hold the most Fisher information, measured before round 0 [C].

The others stay as pre-trained: their tensors are neither updated nor sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.method import ClientView, Load, Phase, Received, Update
from ..core.rng import Key
from ..core.task import Task
from ..core.types import Params, Round
from ..core.wire import message
from ..local import selection
from ..local.batches import PASS_BATCH, batches
from ..local.fisher import fisher_pass
from ..local.options import LayerOptions
from .options import DepthParts
from .parts import of_layers

PHASE, BLOCKS = "depth", "blocks"
NO_BLOCK = (-1,)
"""The trained blocks where there are none: an empty tuple stands for all."""


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
        amount: a number of blocks, 0 for the head alone, or a fraction of them; with the rule "coverage" a fraction of the Fisher
            information.
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
        return self.rule in ("fisher", "coverage") and self.amount != 0

    def phase(
        self, choose: Callable[[Any, Sequence[Received[Information]], Round], Any], num_blocks: Callable[[Any], int]
    ) -> Phase[Any, Any, Any, Any]:
        """The phase that measures.

        Args:
            choose: makes the server's next state of the answers.
            num_blocks: of the model, given the server's state.
        """
        row = (PHASE, 1, self.clients, AskInformation, Information, _ask, self._measure, choose)
        return Phase(*row, template=partial(_template, num_blocks), trains=False)

    def load(self, size: int) -> Load:
        """What measuring takes on a client with so many training examples."""
        return Load(passes=min(self.examples, size))

    def choices(self, num_layers: int) -> list[tuple[int, ...]]:
        """Sets of blocks between whose messages' sizes those of the trained ones lie; the last ones are the largest."""
        return [blocks for number in self.numbers(num_layers) for blocks in ends(range(num_layers), number)]

    def at_start(self, num_layers: int) -> tuple[int, ...]:
        """The trained blocks, where nothing must be measured; else none yet."""
        return () if self.measures else self.chosen(torch.zeros(num_layers))

    def chosen(self, information: Tensor) -> tuple[int, ...]:
        """The trained blocks, 0-based, ascending; `NO_BLOCK` for none."""
        if self.amount == 0:
            return NO_BLOCK
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


def depth_of(options: DepthParts, key: Key, measured: LayerOptions | None = None) -> Depth | None:
    """The part that `method.depth` asks for; None: every block is trained.

    Args:
        measured: how many clients measure, each on how many examples: as many as FibecFed's importance.
    """
    if options.depth is None or (options.depth == 1 and isinstance(options.depth, float)):
        return None
    by = measured or LayerOptions()
    return Depth(options.depth, options.depth_rule, by.importance_examples, by.importance_clients, key)


def mean_information(received: Sequence[Received[Information]]) -> Tensor:
    """sum_k n_k F_k / sum_k n_k over the clients that answered."""
    return selection.aggregate_importance([r.message.information for r in received], [r.message.num_samples for r in received])


def untrained(task: Task, trained: Sequence[int]) -> list[str]:
    """Names of the tensors in blocks that are not trained; where `trained` is empty all blocks are."""
    return [name for name in task.names if trained and (layer := task.layer_of(name)) is not None and layer not in trained]


def ends(indices: Sequence[int], number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first and the last so many: of those that may be chosen, the ones with the fewest and the most digits."""
    return tuple(indices[:number]), tuple(indices[-number:])


# ---- for a server's state with `params`, and where there is a depth `tensor_layers`, `trained` and `information`


def start(depth: Depth | None, task: Task) -> dict[str, Any]:
    """Those fields before the first round: the trained blocks, where nothing must be measured, and what is measured as 0."""
    if depth is None:
        return {}
    where = [task.layer_of(name) for name in sorted(task.names)]
    return {
        "tensor_layers": tuple(-1 if layer is None else layer for layer in where),
        "trained": depth.at_start(task.num_layers),
        "information": {BLOCKS: torch.zeros(task.num_layers)} if depth.measures else {},
    }


def phases(depth: Depth | None) -> tuple[Phase[Any, Any, Any, Any], ...]:
    """The phase that measures, where one is needed."""
    return () if depth is None or not depth.measures else (depth.phase(partial(_choose, depth), _num_blocks),)


def outlook(depth: Depth | None, server: Any) -> tuple[Any, ...]:
    """`Method.outlook` as far as it depends on which blocks are trained."""
    if depth is None or server.trained:
        return (server,)
    return tuple(replace(server, trained=blocks) for blocks in depth.choices(_num_blocks(server)))


def of_trained(server: Any, params: Params) -> Params:
    """Those of all tensors that lie in trained blocks, or in none."""
    return of_layers(params, server.tensor_layers, server.trained) if server.trained else params


def summary(server: Any) -> dict[str, Any]:
    """What a method's summary says of it."""
    if not server.trained:
        return {}
    measured = {"information": [float(f"{one:.6g}") for one in server.information[BLOCKS]]} if server.information else {}
    return {"trained_layers": [block for block in server.trained if (block,) != NO_BLOCK], **measured}


def _choose(depth: Depth, server: Any, received: Sequence[Received[Information]], now: Round) -> Any:
    mean = mean_information(received)
    return replace(server, trained=depth.chosen(mean), information={BLOCKS: mean})


def _num_blocks(server: Any) -> int:
    return len(server.information[BLOCKS])


def _ask(server: Any, now: Round) -> AskInformation:
    return AskInformation()


def _template(num_blocks: Callable[[Any], int], server: Any, now: Round) -> Information:
    return Information(torch.zeros(num_blocks(server)), 1)
