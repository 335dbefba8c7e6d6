"""Importance of layers, measured by clients for the rules that need it: in a separate round [S], or in the first tuning round [C]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.method import ClientView, Folding, Phase, Received, Update
from ..core.types import Params, Round
from ..core.wire import message
from ..local import selection
from ..local.batches import PASS_BATCH, batches
from ..local.options import LayerOptions
from ..local.sensitivity import layer_sensitivity
from .aggregation import FoldedMean

PHASE = "importance"
NAME = "layers"
"""Under which a client's answer to the first tuning round holds its importances."""


@message
class AskImportance:
    """Server to client: measure the importance of the layers of the model at the start, which both draw from the seed."""


@message
class Importance:
    """Client to server: importance of its layers (I_k), and how many training examples it holds (n_k)."""

    importance: Tensor
    num_samples: int


@dataclass(frozen=True)
class Measuring:
    """What the options say about it."""

    options: LayerOptions

    @property
    def needed(self) -> bool:
        """Whether the rule asks for it."""
        return self.options.rule in ("share", "count", "coverage", "layer_gap", "plateau")

    @property
    def is_separate(self) -> bool:
        """Whether it has a separate round."""
        return self.needed and self.options.importance_round == "separate"

    @property
    def is_first(self) -> bool:
        """Whether it is part of the first tuning round."""
        return self.needed and self.options.importance_round == "first"

    def is_in(self, now: Round) -> bool:
        """Whether this is the tuning round in which it is measured."""
        return self.is_first and now.phase == "tune" and now.index == 0

    def phase(self, choose: Callable[[Any, Sequence[Received[Importance]], Round], Any]) -> Phase[Any, Any, Any, Any]:
        """The separate round; `choose` makes the server's next state of the answers."""
        row = (PHASE, 1, self.options.importance_clients, AskImportance, Importance, _ask, self._answer, choose)
        return Phase(*row, trains=False)

    def num_passes(self, size: int) -> int:
        """Examples that go forward and backward, or forward twice, on a client with `size` of them."""
        return 2 * min(self.options.importance_examples, size)

    def of(self, client: ClientView[Any], params: Params) -> Tensor:
        """I_k at `params`, float32 (L,), on `importance_examples` of the client's training examples drawn from its key."""
        train, options = client.data.train, self.options
        drawn = client.key.fold("importance").permutation(len(train))[: options.importance_examples]
        some = batches(train, drawn, PASS_BATCH)
        return layer_sensitivity(client.task, params, some, options.noise_scale, options.norm, options.importance)

    def first_layers(self, ratio: float | None, among: Sequence[int]) -> tuple[int, ...]:
        """The global layers of the first tuning round, if it is measured in it: all of `among`, or the last ones.

        Args:
            ratio: as for `selection.number_of_layers`.
        """
        options = self.options
        if options.first_layers == "all":
            return tuple(among)
        unknown = torch.zeros(len(among))
        if options.rule == "coverage":  # how many hold that fraction is not known yet
            options = options.model_copy(update={"rule": "last", "value": None})
        if options.rule == "count" and options.value is not None:
            options = options.model_copy(update={"value": min(options.value, len(among))})
        return tuple(among)[-selection.number_of_layers(options, unknown, ratio) :]

    def folding(self, inner: Folding[Any, Any], choose: Callable[[Any, Tensor], Any]) -> Folding[Any, Any]:
        """That of the first tuning round: as `inner`, then `choose` makes the state of its state and of the mean importance."""
        return _Folding(inner, choose)

    def _answer(self, client: ClientView[Any], message: AskImportance, now: Round) -> Update[Any, Importance]:
        found = self.of(client, client.state.own)
        return Update(Importance(found, client.data.train.weight), client.state, notes=noted(found))


class _Folding:
    def __init__(self, inner: Folding[Any, Any], choose: Callable[[Any, Tensor], Any]) -> None:
        self._inner, self._choose = inner, choose
        self._importance = FoldedMean(lambda mean: mean[NAME], "importance")

    def add(self, received: Received[Any], /) -> None:
        self._inner.add(received)
        self._importance.add(received)

    def state(self) -> Any:
        return self._choose(self._inner.state(), self._importance.state())


def noted(importance: Tensor) -> dict[str, Any]:
    """What the records of a simulation say of a client's importances."""
    return {"importance": [round(float(one), 6) for one in importance]}


def _ask(server: Any, now: Round) -> AskImportance:
    return AskImportance()
