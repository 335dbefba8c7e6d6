"""How the answers of a round become the server's next model: a part of `FedAvg` and `FibecFed` alike.

| part | next model |
|---|---|
| `Mean` | the mean, weighted by n_k (McMahan et al. 2017) |
| `ServerMomentum` | a step with momentum along the change of the mean (Hsu et al. 2019) |
| `ServerAdam`, `ServerYogi` | a step of that optimiser along it (Reddi et al. 2021) |
| `Exact` | the mean of the factors, and beside the weights what their product misses (Singhal et al. 2025) |

Only the tensors that were sent move. What a part remembers is in the server's state: `extra`, and for `Exact` the names of the LoRA maps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.method import Folding, Received
from ..core.task import DELTA, LowRank, Task
from ..core.trees import WeightedSum, weighted_mean
from ..core.types import Params
from ..core.wire import Tensors, message
from ..local.lowrank import product
from .server_options import ServerOptions

FIRST, SECOND, RESIDUAL = "first/", "second/", "residual/"
"""What `extra` holds, in front of a tensor's name: first and second moment, and the residual of a weight."""


@message
class ServerModel:
    """The server's state: all trainable tensors, and what the aggregation remembers.

    maps: weight, A and B of every LoRA map in turn, and scaling: alpha / r; both for exact aggregation alone. tensor_layers: where not
    every block is trained, the layer of each tensor of `params` in sorted order, -1 for the head; trained: blocks that are trained, none
    where all are or they are not chosen yet; information: "blocks" = Fisher information of each, 0 until measured, where it decides.
    """

    params: Tensors
    extra: Tensors = field(default_factory=dict[str, Tensor])
    maps: tuple[str, ...] = ()
    scaling: float = 1.0
    tensor_layers: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()
    information: Tensors = field(default_factory=dict[str, Tensor])


class Aggregation(Protocol):
    """How answers become the next model. The server's state is any message class with the fields of `ServerModel`."""

    def start(self, task: Task) -> Mapping[str, Any]:
        """The state's fields beside `params` at the start, where they differ from their defaults."""
        ...

    def step(self, server: Any, received: Sequence[Received[Any]]) -> Any:
        """The state after a round, from messages with `shared` and `num_samples`."""
        ...

    def fold(self, server: Any) -> Folding[Any, Any] | None:
        """`step` for messages that come one after the other; None where it needs all of them at once."""
        ...

    def beside(self, server: Any, shared: Collection[str]) -> dict[str, Tensor]:
        """What is added to frozen weights where the tensors named `shared` are used: weight -> (d_out, d_in)."""
        ...


class FoldedMean:
    """Makes a state of the mean by n_k of messages that are folded in one by one (`core.method.Folding`).

    Args:
        finish: the state, given the mean of each field.
        fields: of the messages, whose tensors are averaged.
    """

    def __init__(self, finish: Callable[..., Any], *fields: str) -> None:
        self._finish = finish
        self._sums = {field: WeightedSum() for field in fields}

    def add(self, received: Received[Any], /) -> None:
        """Add n_k times the tensors of each field."""
        for name, total in self._sums.items():
            total.add(getattr(received.message, name), received.message.num_samples)

    def state(self) -> Any:
        """As `finish` makes it."""
        return self._finish(*(total.mean() for total in self._sums.values()))


class Then:
    """As `inner`, and `change` makes the state after the round of the one that it makes."""

    def __init__(self, inner: Folding[Any, Any], change: Callable[[Any], Any]) -> None:
        self._inner, self._change = inner, change

    def add(self, received: Received[Any], /) -> None:
        """The next answer."""
        self._inner.add(received)

    def state(self) -> Any:
        """The state after the round."""
        return self._change(self._inner.state())


class _OfMean:
    """An aggregation that needs nothing of the messages but their mean, and adds nothing beside the weights."""

    def start(self, task: Task) -> Mapping[str, Any]:
        return {}

    def toward(self, server: Any, mean: Params) -> Any:
        """The state after a round whose messages have this mean."""
        raise AssertionError("every aggregation has its own step")

    def step(self, server: Any, received: Sequence[Received[Any]]) -> Any:
        return self.toward(server, mean_by_size(received))

    def fold(self, server: Any) -> Folding[Any, Any] | None:
        return FoldedMean(lambda mean: self.toward(server, mean), "shared")

    def beside(self, server: Any, shared: Collection[str]) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Mean(_OfMean):
    """w <- sum_k n_k w_k / sum_k n_k."""

    def toward(self, server: Any, mean: Params) -> Any:
        return replace(server, params={**server.params, **mean})


MEAN = Mean()


def schedules_of(aggregation: Aggregation) -> tuple[str, ...]:
    """`Phase.schedules` of a phase whose answers are aggregated so: what needs nothing but their mean can be buffered."""
    return ("synchronous", "over-select", "buffered") if isinstance(aggregation, _OfMean) else ("synchronous", "over-select")


def pools(aggregation: Aggregation) -> bool:
    """`Phase.pools` of a phase whose answers are aggregated so, and used for nothing else."""
    return isinstance(aggregation, _OfMean)


class _ServerStep(_OfMean):
    """A server optimiser, whose gradient is minus the change that the mean would make."""

    def moved(self, value: Tensor, change: Tensor, memory: dict[str, Tensor], name: str) -> Tensor:
        """The tensor after its step; `memory` is the next `extra`, and is written to."""
        raise AssertionError("every server optimiser has its own step")

    def toward(self, server: Any, mean: Params) -> Any:
        params, memory = dict(server.params), dict(server.extra)
        for name, value in mean.items():
            params[name] = self.moved(params[name], value - params[name], memory, name)
        return replace(server, params=params, extra=memory)


@dataclass(frozen=True)
class ServerMomentum(_ServerStep):
    """FedAvgM: m <- momentum m + change, w <- w + learning_rate m, m = 0 at the start (Hsu et al. 2019, arXiv 1909.06335)."""

    learning_rate: float
    momentum: float

    def moved(self, value: Tensor, change: Tensor, memory: dict[str, Tensor], name: str) -> Tensor:
        before = memory.get(FIRST + name)
        memory[FIRST + name] = change if before is None else self.momentum * before + change
        return value + self.learning_rate * memory[FIRST + name]


@dataclass(frozen=True)
class _Adaptive(_ServerStep):
    """FedOpt (Reddi et al., ICLR 2021, algorithm 2): m <- momentum m + (1 - momentum) change, w <- w + learning_rate m / (sqrt(v) + tau).

    Attributes:
        momentum, beta2: beta_1 and beta_2 of the paper. m = 0 and v = tau^2 at the start; nothing corrects for that, as in the paper.
        tau: keeps steps along hardly changing tensors small.
    """

    learning_rate: float
    momentum: float
    beta2: float
    tau: float

    def moved(self, value: Tensor, change: Tensor, memory: dict[str, Tensor], name: str) -> Tensor:
        first = memory.get(FIRST + name, torch.zeros_like(change))
        second = memory.get(SECOND + name, torch.full_like(change, self.tau**2))
        memory[FIRST + name] = first = self.momentum * first + (1 - self.momentum) * change
        memory[SECOND + name] = second = self.second(second, change.square())
        return value + self.learning_rate * first / (second.sqrt() + self.tau)

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        """v, given the one before and the change's square."""
        raise AssertionError("every adaptive step has its own second moment")


@dataclass(frozen=True)
class ServerAdam(_Adaptive):
    """FedAdam: v <- beta2 v + (1 - beta2) change^2."""

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * before + (1 - self.beta2) * square


@dataclass(frozen=True)
class ServerYogi(_Adaptive):
    """FedYogi: v <- v - (1 - beta2) change^2 sign(v - change^2)."""

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        return before - (1 - self.beta2) * square * torch.sign(before - square)


@dataclass(frozen=True)
class Exact:
    """FedEx-LoRA (Singhal et al., ACL 2025, arXiv 2410.09432): W + scaling B A + residual is the mean of the clients' products.

    A and B are the mean factors. The residual of a round is added to those of the rounds before it, and is sent down beside the factors.
    Only maps whose A and B are both shared have one.
    """

    def start(self, task: Task) -> Mapping[str, Any]:
        found = task.low_rank()
        names = tuple(name for pair in found for name in (pair.weight, pair.a, pair.b))
        return {"maps": names, "scaling": found[0].scaling if found else 1.0}

    def step(self, server: Any, received: Sequence[Received[Any]]) -> Any:
        sent, weights = [r.message.shared for r in received], [float(r.message.num_samples) for r in received]
        mean = mean_by_size(received)
        before, memory = self.beside(server, mean.keys()), dict(server.extra)
        for pair in _pairs(server, mean.keys()):
            old = before[pair.weight]
            memory[RESIDUAL + pair.weight] = (old.double() + exact_residual(mean, sent, weights, pair)).to(old)
        return replace(server, params={**server.params, **mean}, extra=memory)

    def fold(self, server: Any) -> Folding[Any, Any] | None:
        return None

    def beside(self, server: Any, shared: Collection[str]) -> dict[str, Tensor]:
        params, known = server.params, server.extra
        return {
            pair.weight: known.get(RESIDUAL + pair.weight, params[pair.b].new_zeros(len(params[pair.b]), params[pair.a].shape[1]))
            for pair in _pairs(server, shared)
        }


def exact_residual(mean: Params, sent: Sequence[Params], weights: Sequence[float], pair: LowRank) -> Tensor:
    """scaling (sum_k p_k B_k A_k - B A), p_k = weight_k / sum of the weights, A and B the mean factors; float64, (d_out, d_in)."""
    total = sum(weights)
    exact = torch.zeros(len(mean[pair.b]), mean[pair.a].shape[1], dtype=torch.float64)
    for params, weight in zip(sent, weights, strict=True):
        exact += weight / total * product(params, pair)
    return exact - product(mean, pair)


def residual_ratio(server: Any) -> float | None:
    """How large the residuals are beside what the factors add: the root of the sums of squares, one over the other; None at the start."""
    inside = sum(float(product(server.params, pair).square().sum()) for pair in _pairs(server, server.params)) ** 0.5
    beside = sum(float(value.double().square().sum()) for name, value in server.extra.items() if name.startswith(RESIDUAL)) ** 0.5
    return beside / inside if inside else None


def deltas(residual: Params) -> dict[str, Tensor]:
    """Residuals under the names by which a task adds them to its frozen weights."""
    return {name + DELTA: value for name, value in residual.items()}


def mean_by_size(received: Sequence[Received[Any]], field: str = "shared") -> dict[str, Tensor]:
    """sum_k n_k w_k / sum_k n_k over the clients that answered, of the tensors in a field of their messages."""
    return weighted_mean([getattr(r.message, field) for r in received], [r.message.num_samples for r in received])


def _pairs(server: Any, shared: Collection[str]) -> list[LowRank]:
    """The LoRA maps whose two factors are both shared."""
    names = server.maps
    found = (LowRank(names[i], names[i + 1], names[i + 2], server.scaling) for i in range(0, len(names), 3))
    return [pair for pair in found if pair.a in shared and pair.b in shared]


def aggregation_of(name: str, options: ServerOptions) -> Aggregation:
    """The part that `method.aggregation` names. "ffa" is the mean of what its method sends, which leaves A out."""
    if name == "exact":
        return Exact()
    if name == "fedavgm":
        return ServerMomentum(options.learning_rate or 1.0, options.momentum)
    if name in ("fedadam", "fedyogi"):
        kind = ServerAdam if name == "fedadam" else ServerYogi
        return kind(learning_rate=options.learning_rate or 0.01, momentum=options.momentum, beta2=options.beta2, tau=options.tau)
    return MEAN
