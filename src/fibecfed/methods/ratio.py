"""The fraction of the layers that clients' curvature calls for: the messages of a phase that asks for it, and both of its halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ..core.method import ClientView, Received, Update
from ..core.types import Params, Round
from ..core.wire import message
from ..local.options import TrainingOptions
from ..local.spectrum import spectrum


@message
class AskRatio:
    """Server to client: compute which fraction of the layers should be shared, from the curvature of your loss."""


@message
class Ratio:
    """Client to server: the fraction of the layers that its curvature calls for (r_k), and n_k."""

    ratio: float
    num_samples: int


def ask_ratio(server: Any, now: Round) -> AskRatio:
    """The broadcast."""
    return AskRatio()


def measured(
    client: ClientView[Any], params: Params, rule: Literal["layer_gap", "plateau"], training: TrainingOptions
) -> Update[Any, Ratio]:
    """r_k of one batch of twice the training's size [C], at `params`; its eigenvalues go into the notes."""
    train = client.data.train
    drawn = client.key.fold("spectrum").permutation(len(train))[: 2 * training.batch_size]
    found = spectrum(client.task, params, train.batch(drawn.tolist()), rule, training.learning_rate, client.key.fold("probe"))
    notes = {"ratio": found.ratio, "eigenvalues": list(found.eigenvalues), "lipschitz": found.lipschitz, "gap": found.gap}
    return Update(Ratio(found.ratio, train.weight), client.state, notes=notes)


def mean_ratio(received: Sequence[Received[Ratio]]) -> float:
    """r = sum_k n_k r_k / sum_k n_k [C]."""
    total = sum(r.message.num_samples for r in received)
    return sum(r.message.ratio * r.message.num_samples for r in received) / total


def no_share(server: Any, message: Ratio) -> str | None:
    """r_k is a fraction of the layers."""
    return None if 0 <= message.ratio <= 1 else f"ratio is {message.ratio}, expected a share between 0 and 1"
