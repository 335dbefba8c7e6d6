"""The mean of the last rounds' models as the result of a method, for any method (`method.tail_average`).

Each round's model is the mean of a few clients, and at a high learning rate it moves to and fro between rounds. The mean over the last
rounds does not (tail averaging: Jain et al., JMLR 2018; of a network's weights: Izmailov et al., UAI 2018). It takes no step and no
byte more, and nothing of a privacy budget: it is made of models that have been given out. Only what comes after these rounds sees it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..core.errors import UserError
from ..core.method import Folding, Phase, Received
from ..core.rng import Key
from ..core.task import Task
from ..core.types import Round
from .aggregation import Then
from .extended import extended, values_of


@dataclass(frozen=True)
class TailAveraged:
    """A method whose tensors, behind the last round of its longest phase, are the mean of those after each of the phase's last rounds.

    Everything that is not said here is the method's: it sees its own state, with a field more.

    Attributes:
        share: of the phase's rounds, rounded up.
    """

    inner: Any
    share: float

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # asked while a copy is made
            raise AttributeError(name)
        return getattr(self.inner, name)

    @property
    def server_state(self) -> type[Any]:
        """The method's, and the mean so far."""
        return extended(self.inner.server_state, "tail")

    @property
    def phases(self) -> tuple[Phase[Any, Any, Any, Any], ...]:
        """The method's."""
        longest = self._longest.name
        return tuple(self._averaging(phase) if phase.name == longest else phase for phase in self.inner.phases)

    def init(self, task: Task, key: Key) -> Any:
        """The method's."""
        return self._outer(self.inner.init(task, key))

    def summary(self, server: Any) -> Mapping[str, Any]:
        """The method's, and how many rounds the mean is of."""
        return {**self.inner.summary(server), "averaged_rounds": self._number(self._longest.num_rounds)}

    @property
    def _longest(self) -> Phase[Any, Any, Any, Any]:
        return max(reversed(self.inner.phases), key=lambda phase: phase.num_rounds)

    def _number(self, num_rounds: int) -> int:
        return min(num_rounds, max(1, math.ceil(self.share * num_rounds - 1e-9)))

    def _averaging(self, phase: Phase[Any, Any, Any, Any]) -> Phase[Any, Any, Any, Any]:
        def aggregate(server: Any, received: Sequence[Received[Any]], now: Round) -> Any:
            return self._after(server, now, phase.aggregate(server, received, now))

        def fold(server: Any, now: Round) -> Folding[Any, Any] | None:
            inner = None if phase.fold is None else phase.fold(server, now)
            return None if inner is None else Then(inner, partial(self._after, server, now))

        return replace(phase, aggregate=aggregate, fold=fold)

    def _after(self, before: Any, now: Round, after: Any) -> Any:
        """The state after a round, given the one before it and what the method makes of it."""
        first = now.num_rounds - self._number(now.num_rounds)
        after = self._outer(after)
        if now.index < first:
            return after
        seen = now.index - first + 1
        mean = {n: value if seen == 1 else torch.lerp(before.tail[n], value, 1 / seen) for n, value in after.params.items()}
        return replace(after, params=mean, tail={}) if now.index == now.num_rounds - 1 else replace(after, tail=mean)

    def _outer(self, state: Any) -> Any:
        kind = self.server_state
        return state if isinstance(state, kind) else kind(**values_of(state))


def averaged(method: Any, share: float) -> TailAveraged:
    """A method with the mean that `method.tail_average` asks for.

    Raises:
        UserError: a method from outside whose server's state has no tensors `params`.
    """
    if "params" not in method.server_state.__wire_fields__:
        raise UserError(
            f"method.tail_average: got {share} with a method whose server's state, {method.server_state.__name__}, has no field `params`, "
            "the tensors that are averaged; give it one, or remove this key"
        )
    return TailAveraged(method, share)
