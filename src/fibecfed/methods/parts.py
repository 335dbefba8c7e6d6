"""What `FedAvg` is put together from: small frozen values that print, pickle and compare.

| part | kinds | decides |
|---|---|---|
| names | `Names` | which tensors are trained; which of them are sent |
| curriculum | `AllData`, `Competence`, `GrowingLength`, `ShortFirst` | which examples a client trains on, cut to how many tokens |
| targets | `TrueLabels`, `SelfEvolution` | what the loss compares with, and how much an example counts |
| aggregation | those of aggregation.py | how the answers become the server's next model |
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.classification import Classification, classes_of, classification
from ..core.method import Load
from ..core.task import Task
from ..core.trees import placed
from ..core.types import Examples, Params, Round
from ..local.batches import PASS_BATCH, batches, by_length
from ..local.curriculum import ceil_share, easy_to_hard
from ..local.options import TrainingOptions

HEAD = "modules_to_save"
"""Part of the name of every tensor of a classification head."""

ADAPTER = "adapter."
"""Part of the name of every tensor of an adapter that is not LoRA."""

_ROUNDING = 1e-9  # far above what a product of shares is off by in float64


# ---- names


@dataclass(frozen=True)
class Names:
    """Some of a task's tensors, by parts of their names.

    Attributes:
        only: a name must hold one of these; empty: any name will do.
        without: and none of these.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def of(self, names: Collection[str]) -> list[str]:
        """Those of `names` that are meant, sorted."""
        return sorted(name for name in names if self._holds(name))

    def _holds(self, name: str) -> bool:
        return (not self.only or any(part in name for part in self.only)) and not any(part in name for part in self.without)


EVERYTHING = Names()
NOTHING = Names(without=("",))
FROZEN_A = Names(only=("lora_A",))
"""What FFA-LoRA leaves as it was drawn."""


# ---- curriculum


class Curriculum(Protocol):
    """Which of a client's examples are trained on in a round."""

    @property
    def key(self) -> str:
        """The key of the configuration that says to how many tokens texts are cut at first; empty where they are not."""
        ...

    def positions(self, train: Examples, now: Round, batch_size: int) -> Tensor:
        """Positions of the round's examples, int64; their order means nothing."""
        ...

    def num_examples(self, size: int, now: Round, batch_size: int) -> int:
        """How many of `size` examples that is, about."""
        ...

    def max_length(self, now: Round) -> int | None:
        """Tokens that the round's examples are cut to; None: whole."""
        ...


@dataclass(frozen=True)
class AllData:
    """Every example, whole, in every round."""

    key = ""

    def positions(self, train: Examples, now: Round, batch_size: int) -> Tensor:
        return torch.arange(len(train))

    def num_examples(self, size: int, now: Round, batch_size: int) -> int:
        return size

    def max_length(self, now: Round) -> int | None:
        return None


@dataclass(frozen=True)
class Competence:
    """Competence-based curriculum (Platanios et al., NAACL 2019): the examples whose difficulty has a CDF of at most c(t).

    c(t) = min(1, sqrt(t (1 - c0^2) / T' + c0^2)), c0 = `start`, t = round, T' = `share` x rounds. The difficulty of a text is
    -sum_w log p(w) over its words, p from the client's own texts [C; the paper: from the whole corpus, which no client knows]; its CDF is
    its rank among the client's examples over their number. At least one batch [C].
    """

    start: float
    share: float

    key = ""

    def competence(self, now: Round) -> float:
        """c(t)."""
        u = now.index / (self.share * now.num_rounds)
        return min(1.0, math.sqrt(u * (1 - self.start**2) + self.start**2))

    def positions(self, train: Examples, now: Round, batch_size: int) -> Tensor:
        return easy_to_hard(train.information)[: self.num_examples(len(train), now, batch_size)]

    def num_examples(self, size: int, now: Round, batch_size: int) -> int:
        # rank / n <= c; at full competence rounding must not leave one out
        return min(size, max(batch_size, math.floor(self.competence(now) * size + _ROUNDING)))

    def max_length(self, now: Round) -> int | None:
        return None


@dataclass(frozen=True)
class GrowingLength:
    """Sequence length warm-up (Li et al., NeurIPS 2022): texts are cut to a length that grows with the rounds.

    length(t) = start + (longest - start) min(1, t / (share T)), rounded down to a multiple of `step`; whole from t = share T on.
    """

    start: int
    step: int
    share: float
    longest: int

    key = "method.start"

    def positions(self, train: Examples, now: Round, batch_size: int) -> Tensor:
        return torch.arange(len(train))

    def num_examples(self, size: int, now: Round, batch_size: int) -> int:
        return size

    def max_length(self, now: Round) -> int | None:
        u = now.index / (self.share * now.num_rounds)
        if u >= 1 - _ROUNDING:
            return None
        length = self.start + (self.longest - self.start) * u
        cut = max(self.start, math.floor(length / self.step + _ROUNDING) * self.step)
        return cut if cut < self.longest else None


@dataclass(frozen=True)
class ShortFirst:
    """Staged training (Press et al., ACL 2021): texts cut to `cut` tokens in the first `share` of the rounds, whole afterwards."""

    cut: int
    share: float

    key = "method.cut"

    def positions(self, train: Examples, now: Round, batch_size: int) -> Tensor:
        return torch.arange(len(train))

    def num_examples(self, size: int, now: Round, batch_size: int) -> int:
        return size

    def max_length(self, now: Round) -> int | None:
        return self.cut if now.index < ceil_share(self.share, now.num_rounds) else None


ALL_DATA = AllData()


# ---- targets


class Targets(Protocol):
    """What the loss of a round compares the model's answers with."""

    def beside(self, task: Task, params: Params, train: Examples, now: Round) -> Mapping[str, Tensor]:
        """What is laid beside the examples in a batch, one row for each of `train`, or nothing."""
        ...

    def passes(self, now: Round) -> int:
        """How often each example goes forward for that."""
        ...


@dataclass(frozen=True)
class TrueLabels:
    """The labels, every example counting once."""

    def beside(self, task: Task, params: Params, train: Examples, now: Round) -> Mapping[str, Tensor]:
        return {}

    def passes(self, now: Round) -> int:
        return 0


TRUE_LABELS = TrueLabels()


@dataclass(frozen=True)
class SelfEvolution:
    """Self-evolution learning (Zhong et al., Findings of ACL 2023), carried over from tokens to examples [C].

    From round `after` T on a client first asks the model it starts the round with: p(s) are its class probabilities of example s. The
    examples whose probability of the true label is below the client's median are the informative ones: each counts `weight` times, with the
    target (1 - smoothing) one-hot + smoothing p(s). The others keep the one-hot target and count once.

    p(s) is that of the round's start [C]. Were it the model's at each step, kept out of the gradient, the gradient of the smoothed loss
    would be exactly (1 - smoothing) times that of the plain one: no smoothing at all.
    """

    after: float
    smoothing: float
    weight: float

    def beside(self, task: Task, params: Params, train: Examples, now: Round) -> Mapping[str, Tensor]:
        if not self.passes(now):
            return {}
        who, instead = "self-evolution", "choose another method"
        return self.smoothed(probabilities(classification(task, who, instead), params, train), classes_of(train, who, instead))

    def smoothed(self, p: Float[Tensor, "examples classes"], labels: Tensor) -> dict[str, Tensor]:
        """Targets (examples, classes) and weights (examples,) from the class probabilities."""
        true = p.gather(1, labels[:, None]).squeeze(1)
        hard = true < true.double().quantile(0.5)
        one_hot = torch.nn.functional.one_hot(labels, p.shape[1]).to(p)
        targets = torch.where(hard[:, None], (1 - self.smoothing) * one_hot + self.smoothing * p, one_hot)
        return {"targets": targets, "weights": torch.where(hard, self.weight, 1.0)}

    def passes(self, now: Round) -> int:
        return int(now.index >= math.ceil(self.after * now.num_rounds - _ROUNDING))


def probabilities(task: Classification, params: Params, examples: Examples) -> Float[Tensor, "examples classes"]:
    """Class probabilities of every example, without dropout, in the order of the examples."""
    order, params = by_length(examples), placed(params, task.device)
    found = torch.cat([task.logits(params, batch).cpu().softmax(-1) for batch in batches(examples, order, PASS_BATCH)])
    return torch.empty_like(found).index_copy_(0, order, found)


# ---- what is planned


def trained_on(used: int, training: TrainingOptions, *, epochs: int | None = None, passes: float = 0.0) -> Load:
    """The load of a training on so many examples, `passes` examples going through the model besides."""
    per_epoch = math.ceil(math.ceil(used / training.batch_size) / training.gradient_accumulation)
    steps = (training.local_epochs if epochs is None else epochs) * per_epoch
    steps = min(steps, training.max_steps) if training.max_steps else steps
    return Load(steps, passes)


# ---- layers


def first_and_last(server: Any, least: int, most: int, num_layers: int) -> tuple[Any, Any]:
    """Two states between whose messages' sizes the real ones lie: with the least number of layers shared, the first ones, and with the
    most, the last ones, whose indices have more digits."""
    return replace(server, layers=tuple(range(least))), replace(server, layers=tuple(range(num_layers - most, num_layers)))


def of_layers(params: Params, tensor_layers: Sequence[int], layers: Sequence[int], *, head: bool = True) -> dict[str, Tensor]:
    """The tensors of some layers, and the head's (layer -1) if asked for.

    Args:
        tensor_layers: the layer of each tensor of `params` in sorted order.
    """
    kept = {*layers, *((-1,) if head else ())}
    return {name: params[name] for name, layer in zip(sorted(params), tensor_layers, strict=True) if layer in kept}
