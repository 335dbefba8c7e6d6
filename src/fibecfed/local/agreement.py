"""How far clients agree on a layer: how alike their updates are, beside how reliable one client's update is.

The update of client k in a layer is d_k = theta_k + noise: its signal, and the noise of its examples. S = E<theta_k, theta_j> is what two
clients have in common, W = E||theta_k||^2 the signal of one, W - S = tau^2 what is its own, N the noise. Here all are relative to W + N:

    between = S / (W + N)   mean cosine of the updates of two clients
    within  = W / (W + N)   reliability of one client's: from two halves of its own gradients, corrected for their length
    between / within        correlation of the clients' signals, corrected for attenuation (Spearman 1904)

Everything here is [C]: the source states no such rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.task import Task
from ..core.types import Params


class GradientHalves:
    """The gradients of every second optimiser step, and of the others, summed apart: two measurements of one client's signal.

    Args:
        adaptive: the optimiser divides each coordinate by the root of its mean square. So are the sums here, that they measure its update;
            else the few coordinates of the largest gradients would decide, and most of its noise would not be seen.
    """

    def __init__(self, adaptive: bool = True) -> None:
        self._sums: list[list[Tensor]] = [[], []]
        self._squares: list[Tensor] | None = [] if adaptive else None
        self._steps = 0

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Those of the next step, one of each tensor; they are not kept."""
        if self._squares is not None:
            squares = [grad.detach().square() for grad in gradients]
            self._squares = [a + b for a, b in zip(self._squares, squares, strict=True)] if self._squares else squares
        half = self._steps % 2
        known = self._sums[half]
        self._sums[half] = (
            [grad.detach().clone() for grad in gradients] if not known else [a + b for a, b in zip(known, gradients, strict=True)]
        )
        self._steps += 1

    def products(self, names: Sequence[str]) -> dict[str, Float[Tensor, " two"]]:
        """<G1, G2> and (||G1||^2 + ||G2||^2) / 2 of each tensor, float64 on the CPU; nothing before there are two steps."""
        if self._steps < 2:
            return {}
        halves = zip(names, *(self._scaled(half) for half in self._sums), strict=True)
        return {name: torch.stack([_dot(a, b), (_dot(a, a) + _dot(b, b)) / 2]).cpu() for name, a, b in halves}

    def _scaled(self, half: Sequence[Tensor]) -> list[Tensor]:
        if self._squares is None:
            return list(half)
        return [torch.where(squares > 0, value / squares.sqrt(), value) for value, squares in zip(half, self._squares, strict=True)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum()


def within_layers(task: Task, products: Mapping[str, Tensor]) -> Float[Tensor, "layers+1 2"]:
    """`GradientHalves.products` summed by layer, the head last, each over the layer's second number: the cosine of the halves, and 1.

    Float32; zeros for a layer of which nothing is known.
    """
    sums = torch.zeros(task.num_layers + 1, 2, dtype=torch.float64)
    for name, value in sorted(products.items()):
        layer = task.layer_of(name)
        sums[task.num_layers if layer is None else layer] += value
    power = sums[:, 1:]
    return torch.where(power > 0, sums / power.clamp(min=torch.finfo(torch.float64).tiny), torch.zeros_like(sums)).float()


class UpdateDirections:
    """Sum of the directions d_k / ||d_k|| of the clients' updates in each layer, for clients that come one after the other.

    A direction tells no client's number of examples or steps.

    Args:
        before: the tensors that were sent.
        layers: name -> place of its layer.
        num: number of places.
    """

    def __init__(self, before: Params, layers: Mapping[str, int], num: int) -> None:
        self._before, self._layers = before, layers
        self._sums: dict[str, Tensor] = {}
        self._clients = torch.zeros(num, dtype=torch.float64)

    def add(self, after: Params) -> None:
        """The tensors of a client after its training; others than those that were sent are left out."""
        names = sorted(self._before.keys() & after.keys())
        update = {name: after[name].double() - self._before[name].double() for name in names}
        squares = torch.zeros_like(self._clients)
        for name, value in update.items():
            squares[self._layers[name]] += value.square().sum()
        self._clients += squares > 0
        for name, value in update.items():
            square = squares[self._layers[name]]
            if square > 0:
                direction = value / square.sqrt()
                self._sums[name] = direction if name not in self._sums else self._sums[name].add_(direction)

    def between(self) -> Float[Tensor, "layers+1 2"]:
        """Of each layer the sum over the pairs of clients of the cosine of their updates, and the number of pairs; float64."""
        squares = torch.zeros_like(self._clients)
        for name, value in sorted(self._sums.items()):
            squares[self._layers[name]] += value.square().sum()
        return torch.stack([(squares - self._clients) / 2, self._clients * (self._clients - 1) / 2], dim=1)


def reliability(cosine: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """W / (W + N) of a whole measurement, given the cosine r of two halves of it: 2 r / (1 + r) (Spearman-Brown), 0 where r < 0."""
    positive = cosine.clamp(0, 1)
    return 2 * positive / (1 + positive)


def stays(between: Float[Tensor, " layers"], within: Float[Tensor, " layers"], num_clients: int) -> Bool[Tensor, " layers"]:
    """Whether a layer is better kept by each client than shared.

    It is where two things hold. tau^2 > K S: the mean of all K clients' signals, whose squared length is S + tau^2 / K, tells what single
    clients brought into it rather than what they have in common. tau^2 > N: a client's own update misses less of its signal than the mean
    does (the James-Stein comparison of one's own measurement with the common mean), so that no noise is taken for a difference.

    Args:
        between: S / (W + N).
        within: W / (W + N).
        num_clients: K.
    """
    own, noise = within - between, 1 - within
    return (own > num_clients * between) & (own > noise)
