"""One local training of every client after a method's last round, for any method (`method.finetune`).

With "validated" a client keeps the point halfway between the method's model and its own, unless its validation part speaks for one of
these by more than chance: alike clients lose by a training on their few examples, one-sided ones gain. Where every client takes part in
every round, each has a model of its own from the last one already, and nobody trains once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.method import ClientView, Load, Method, Phase, Received, Update, Work
from ..core.rng import Key
from ..core.task import Task, Use
from ..core.types import ClientId, Params, Round
from ..core.wire import message
from ..local.difficulty import losses_per_token
from .extended import extended, values_of
from .fedavg import work_of

PHASE = "finetune"


@message
class Done:
    """Client to server: it has trained for itself; nothing of it leaves."""


@dataclass(frozen=True)
class Finetuned:
    """A method, and after its last round one training of every client from the model it then has, whose result it keeps for itself.

    Attributes:
        inner: the method; its `train(client, params, now)` is the training, or its `finetuned(client, message, now)`, where the message
            says what is trained.
        num_clients: K.
        steps: fractions of the way from the method's model to the trained one, between which the client's validation part chooses.
        asks_all: whether every round asks every client, at one learning rate.
    """

    inner: Any
    num_clients: int
    steps: tuple[float, ...] = (1.0,)
    asks_all: bool = False

    is_personal = True

    @property
    def uses(self) -> frozenset[Use]:
        """The method's."""
        return getattr(self.inner, "uses", frozenset())

    @property
    def server_state(self) -> type[Any]:
        """The method's."""
        return self.inner.server_state

    @property
    def client_state(self) -> type[Any]:
        """The method's, and what the client keeps."""
        return with_tuned(self.inner.client_state)

    @property
    def phases(self) -> tuple[Phase[Any, Any, Any, Any], ...]:
        """The method's, and the last training, which gets what the method's last phase sends."""
        last = self.inner.phases[-1]
        keeps = last.name if self._reuses else None
        rows = tuple(replace(phase, client_update=_on_inner(self.inner, phase.client_update, keeps)) for phase in self.inner.phases)
        row = (PHASE, 1, self.num_clients, last.down, Done, last.broadcast, self._finetune, _keep)
        alone = Phase(*row, address=last.address, sums=last.sums)
        return (*rows, alone)

    def init(self, task: Task, key: Key) -> Any:
        """The method's."""
        return self.inner.init(task, key)

    def init_client(self, task: Task, client: ClientId, key: Key) -> Any:
        """The method's; nothing is kept yet."""
        return _outer(self.inner, self.inner.init_client(task, client, key))

    def personalise(self, message: Any, state: Any) -> Params:
        """What the client kept, or until then the method's model."""
        return state.tuned or self.inner.personalise(message, _inner(self.inner, state))

    def server_params(self, server: Any) -> Params:
        """The method's."""
        return self.inner.server_params(server)

    def summary(self, server: Any) -> Mapping[str, Any]:
        """The method's."""
        return self.inner.summary(server)

    def load(self, size: int, now: Round, chance: float) -> Load:
        """The method's; the last training is one of its last rounds."""
        return self.inner.load(size, self._last(now) if now.phase == PHASE else now, chance)

    def trains_others(self, now: Round) -> bool:
        """Whether nobody trains in a round who did in the one before."""
        return now.phase == PHASE and self._reuses

    def validation_passes(self, now: Round) -> int:
        """How often a client predicts its validation part in a round."""
        return len(self.steps) if now.phase == PHASE and self.steps != (1.0,) else 0

    def outlook(self, server: Any, now: Round) -> Sequence[Any]:
        """The method's; the last training gets what its last phase sends."""
        return self.inner.outlook(server, self._last(now) if now.phase == PHASE else now)

    def trains(self, task: Task, server: Any) -> Sequence[str]:
        """What the method trains; all tensors, where it does not say."""
        asked = getattr(self.inner, "trains", None)
        return list(task.names) if asked is None else asked(task, server)

    def shortest(self) -> tuple[int, str] | None:
        """The method's."""
        return self.inner.shortest()

    def train(self, client: ClientView[Any], params: Params, now: Round) -> Any:
        """The method's."""
        return self.inner.train(_with_inner_state(self.inner, client), params, now)

    @property
    def _reuses(self) -> bool:
        """Whether a client's training of the last round is its last one: where all have one, and it trains all that a training alone
        would, so that the method says so by `trains_whole` and hands over the model. Where few are asked, the others would train from
        the last mean and these from the one before it, which scored lower."""
        return self.asks_all and self.steps != (1.0,) and getattr(self.inner, "trains_whole", False)

    def _last(self, now: Round) -> Round:
        """As in the round behind the last one: the curriculum has come to its end, and the learning rate is the rounds' mean one."""
        last = self.inner.phases[-1]
        return replace(now, phase=last.name, index=last.num_rounds, num_rounds=last.num_rounds, alone=True)

    def _finetune(self, client: ClientView[Any], message: Any, now: Round) -> Update[Any, Done]:
        inner = _inner(self.inner, client.state)
        own, before = getattr(self.inner, "finetuned", None), self.inner.personalise(message, inner)
        if client.state.last:
            after, work = client.state.last, Work()
        else:
            if own is None:
                result = self.train(client, before, self._last(now))
            else:
                result = own(_with_inner_state(self.inner, client), message, self._last(now))
            after, work = result.params, work_of(result)
        kept, notes = self._chosen(client, before, after)
        return Update(Done(), _outer(self.inner, inner, tuned=kept), work, notes)

    def _chosen(self, client: ClientView[Any], before: Params, after: Params) -> tuple[Params, dict[str, Any]]:
        """What the client keeps, nothing where that is the method's model; and the mean losses that it was chosen by, nat."""
        if self.steps == (1.0,):
            return after, {}
        examples = client.data.validation
        found = {step: between(before, after, step) for step in self.steps}
        if not len(examples):
            return found[middle(self.steps)], {}
        losses = {step: losses_per_token(client.task, params, examples).double() for step, params in found.items()}
        kept = chosen_step(losses)
        notes = {"kept_step": kept, "validation_losses": [round(float(one.mean()), 6) for one in losses.values()]}
        return found[kept] if kept else {}, notes


VALIDATED = (0.0, 0.5, 1.0)
"""[C] What `method.finetune` = "validated" chooses between."""
SURE = 0.25
"""[C] Standard errors by which the loss on a client's validation part must be lower than that of the step halfway."""


def finetuned(method: Any, how: bool | str, num_clients: int, asks_all: bool = False) -> Finetuned:
    """A method with the last training that `method.finetune` asks for."""
    return Finetuned(method, num_clients, VALIDATED if how == "validated" else (1.0,), asks_all)


def chosen_step(losses: Mapping[float, Float[Tensor, " examples"]]) -> float:
    """The middle one of some steps, or the best of those whose mean loss is lower by more than a quarter of a standard error.

    A mean of two models is seldom far from the better one, so a few examples that say otherwise have to agree.

    Args:
        losses: step -> loss of each example, in one order. The error is that of the differences, example by example, and unknown of a
            single example. Where the training diverged, so that the middle has no finite losses, it is the first step.
    """
    center = middle(losses)
    if not torch.isfinite(losses[center]).all():
        return min(losses)
    less = {step: losses[center] - one for step, one in losses.items()}
    sure = [step for step, one in less.items() if len(one) > 1 and one.mean() > SURE * one.std() / len(one) ** 0.5]
    return max(sure, key=lambda step: float(less[step].mean()), default=center)


def middle(steps: Iterable[float]) -> float:
    """Of an odd number of steps; of an even one the next above."""
    ordered = sorted(steps)
    return ordered[len(ordered) // 2]


def between(before: Params, after: Params, step: float) -> Params:
    """The point at a fraction of the way from one model to the other; its ends are these models, bit for bit."""
    if step in (0, 1):
        return after if step else before
    return {name: value if before[name] is value else torch.lerp(before[name], value, step) for name, value in after.items()}


def with_tuned(state: type[Any]) -> type[Any]:
    """The message class of a client's state with `tuned`, the model that it keeps, and `last`, the one trained in the last round."""
    return extended(state, "tuned", "last")


def _inner(method: Method[Any, Any], state: Any) -> Any:
    return method.client_state(**values_of(state, method.client_state))


def _outer(method: Method[Any, Any], state: Any, **kept: Params) -> Any:
    return with_tuned(method.client_state)(**values_of(state), **kept)


def _with_inner_state(method: Method[Any, Any], client: ClientView[Any]) -> ClientView[Any]:
    return replace(client, state=_inner(method, client.state))


def _on_inner(method: Method[Any, Any], update: Callable[..., Update[Any, Any]], keeps: str | None) -> Callable[..., Update[Any, Any]]:
    """A client's update of the method, on the state that also holds what the client keeps.

    Args:
        keeps: the phase at whose last round the model that the client trained stays with it.
    """

    def outer(client: ClientView[Any], message: Any, now: Round) -> Update[Any, Any]:
        found = update(_with_inner_state(method, client), message, now)
        model = found.model if now.phase == keeps and now.index == now.num_rounds - 1 else None
        return replace(found, state=_outer(method, found.state, tuned=client.state.tuned, last=dict(model or {})), model=None)

    return outer


def _keep(server: Any, received: Sequence[Received[Done]], now: Round) -> Any:
    return server
