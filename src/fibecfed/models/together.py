"""Several clients' batches in one pass of a model: each row of the joined batch with the tensors of the client that it belongs to.

The base model is frozen and the same for all. What a client trains are linear maps (LoRA's A and B, the head), so that a joined pass is
the model's own, in which these maps multiply the rows of each client by its own matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from ..core.errors import UserError
from ..core.rng import Key
from ..core.task import Tape
from ..core.types import Batch, Params
from ..local.gradients import Wanted
from .depth import LowerBlocks
from .dropout import each_from_its_own
from .maps import PerExample, TrainedLinear, widened
from .turns import Stream, continued

PASS = 60
"""Tokens that take as long as a pass takes whatever its size, on a CPU [C]: batches of different lengths are joined where the padding that
they get takes less. On a GPU small passes wait for the launch of their kernels, and all are joined."""

IGNORED = -100
"""Label of a token that is not to be predicted."""

_NOT_TOKENS = ("labels", "targets", "weights")


class JoinableModel(Protocol):
    """As much of an adapted model as joined passes need."""

    model: nn.Module
    lower_blocks: LowerBlocks | None

    @property
    def lock(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dropout(self) -> float: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def linears(self) -> Sequence[TrainedLinear]: ...

    def first_block(self, names: Collection[str]) -> int: ...

    def losses(self, params: Params, batch: Batch) -> Tensor: ...

    def traced(self, params: Params, batch: Batch) -> tuple[Tensor, Tape]: ...


class JoinedPasses:
    """Passes over the batches of several clients; implements `local.gradients.Together`.

    Joined are batches with the same fields, of clients that train the same linear maps, of the same sizes, and nothing else; all other
    tensors must be equal. With dropout each client draws its masks from its own stream, in the shapes that its batch has alone, so that
    only batches of one length are joined.
    """

    def __init__(self, model: JoinableModel, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id
        self._in_maps = frozenset(name for one in model.linears for name in (one.weight, one.bias) if name)
        self._compared: dict[tuple[int, int], tuple[bool, Tensor, Tensor]] = {}  # by identity, which the tensors beside it make sure

    @property
    def unjoined(self) -> tuple[str, ...]:
        """Trainable tensors that lie in no linear map: no pass in which one of them is trained can be joined."""
        return tuple(sorted(set(self._model.names) - self._in_maps))

    # Which

    def groups(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """As `Together.groups`."""
        alike: dict[Hashable, list[int]] = {}
        for place, one in enumerate(wanted):
            alike.setdefault(self._kind(one), []).append(place)
        found = list[list[int]]()
        for places in alike.values():
            same = [place for place in places if self._agree(wanted[places[0]], wanted[place])]
            widths = [wanted[place].batch["attention_mask"].shape for place in same]
            found += [[same[i] for i in group] for group in by_length(widths, PASS if self._model.device.type == "cpu" else None)]
            found += [[place] for place in places if place not in same]
        return sorted(found)

    def _kind(self, one: Wanted) -> Hashable:
        """What two batches must have in common to be joined."""
        trained = frozenset(name for name, value in one.params.items() if value.requires_grad)
        if not trained <= self._in_maps:
            return object()
        shapes = tuple(value.shape for name, value in sorted(one.params.items()) if name in self._in_maps)
        width = None if one.stream is None else one.batch["attention_mask"].shape[1]
        return frozenset(one.params), trained, shapes, frozenset(one.batch), one.apart, width

    def _agree(self, one: Wanted, other: Wanted) -> bool:
        """Whether all but the linear maps are the same."""
        return all(self._equal(value, other.params[name]) for name, value in one.params.items() if name not in self._in_maps)

    def _equal(self, a: Tensor, b: Tensor) -> bool:
        """Of tensors that nobody writes to: each two are compared once."""
        if a is b:
            return True
        found = self._compared.get((id(a), id(b)))
        if found is None:
            found = self._compared[id(a), id(b)] = torch.equal(a, b), a, b
        return found[0]

    # How

    def losses(self, wanted: Sequence[Wanted]) -> tuple[Tensor, Tape]:
        """As `Together.losses`."""
        params = wanted[0].params  # of the maps themselves only whether they are trained counts
        batch = joined([one.batch for one in wanted], self._pad_id)
        sizes = [len(one.batch["attention_mask"]) for one in wanted]
        streams = [one.stream for one in wanted if isinstance(one.stream, Stream)]
        with self._model.lock, self._drawing(streams, sizes), self._own_maps(wanted, sizes), self._kept_outputs(wanted):
            if all(one.traced is None for one in wanted):
                return self._model.losses(params, batch), Tape(())
            return self._model.traced(params, batch)

    def stream(self, key: Key) -> Stream | None:
        """As `Together.stream`."""
        return Stream(key, self._model.device) if self._model.dropout else None

    @contextlib.contextmanager
    def drawing(self, stream: object) -> Iterator[None]:
        """As `Together.drawing`."""
        if not isinstance(stream, Stream):
            yield
            return
        with self._model.lock, continued(stream), self._training():
            yield

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        self._model.model.train()
        try:
            yield
        finally:
            self._model.model.eval()

    @contextlib.contextmanager
    def _drawing(self, streams: Sequence[Stream], sizes: Sequence[int]) -> Iterator[None]:
        if not streams:
            yield
            return
        with self._training(), each_from_its_own(streams, sizes):
            yield

    @contextlib.contextmanager
    def _own_maps(self, wanted: Sequence[Wanted], sizes: Sequence[int]) -> Iterator[None]:
        """Inside, the linear maps multiply each client's rows by its own matrix. One that is not trained and the same for all is left."""
        replaced = list[nn.Module]()
        try:
            for one in self._model.linears:
                weights = [own.params[one.weight] for own in wanted]
                biases = None if one.bias is None else [own.params[one.bias] for own in wanted]
                tensors = [weights] if biases is None else [weights, biases]
                if any(of[0].requires_grad or not all(self._equal(of[0], other) for other in of[1:]) for of in tensors):
                    vars(one.module)["forward"] = _own_product(one.module, one.weight, weights, biases, sizes)
                    replaced.append(one.module)
            yield
        finally:
            for module in replaced:
                del module.__dict__["forward"]

    @contextlib.contextmanager
    def _kept_outputs(self, wanted: Sequence[Wanted]) -> Iterator[None]:
        """Inside, outputs of lower blocks are kept and used only if they are the same function for all."""
        model, first = self._model, wanted[0]
        lower = model.lower_blocks
        begin = model.first_block([name for name, value in first.params.items() if value.requires_grad])
        below = [name for name in first.params if model.first_block([name]) < begin] if lower is not None else []
        if not all(self._equal(first.params[name], one.params[name]) for one in wanted[1:] for name in below):
            model.lower_blocks = None
        try:
            yield
        finally:
            model.lower_blocks = lower


def reject_unjoined(unjoined: Sequence[str], size: int, kind: str) -> None:
    """Reject a method whose passes are to be joined and cannot be.

    Args:
        unjoined: of its task.
        size: `resources.cohort_batch`.
        kind: the method's.

    Raises:
        UserError: with what it trains.
    """
    if size > 1 and unjoined:
        raise UserError(
            f'resources.cohort_batch: got {size} with `method.kind` = "{kind}", which trains {unjoined[0]}; passes of several clients are '
            "joined where only linear maps are trained, such as LoRA and a head; set it to 1"
        )


def _own_product(
    module: nn.Linear, name: str, weights: Sequence[Tensor], biases: Sequence[Tensor] | None, sizes: Sequence[int]
) -> Callable[[Tensor], Tensor]:
    """A linear map's forward: rows of each client times its own matrix. One product of batches where all have as many rows."""
    rows, even = sum(sizes), len(set(sizes)) == 1

    def product(x: Tensor) -> Tensor:
        own: list[Any] = list(biases) if biases is not None else [module.bias] * len(sizes)
        if not even:
            parts = zip(x.split(list(sizes)), weights, own, strict=True)
            return torch.cat([linear(part, weight, bias) for part, weight, bias in parts])
        of_clients, matrices = x.reshape(len(sizes), -1, x.shape[-1]), torch.stack(list(weights)).transpose(1, 2)
        added = None if own[0] is None else torch.stack(own).unsqueeze(1)
        found = torch.bmm(of_clients, matrices) if added is None else torch.baddbmm(added, of_clients, matrices)
        return found.view(*x.shape[:-1], -1)

    def forward(x: Tensor) -> Tensor:
        x = widened(x, rows)
        if len(x) != rows:
            raise ValueError(f"{name}: got an input of shape {tuple(x.shape)}, expected one row for each of the {rows} examples")
        found = product(x)
        return found.as_subclass(PerExample) if isinstance(x, PerExample) else found

    return forward


def joined(batches: Sequence[Batch], pad_id: int) -> Batch:
    """One batch of all their examples, padded on the right to the longest."""
    width = max(batch["attention_mask"].shape[1] for batch in batches)

    def fitted(name: str, value: Tensor) -> Tensor:
        value = value.to(batches[0][name].device)
        if value.ndim < 2 or (name in _NOT_TOKENS and all(batch[name].shape[1:] == value.shape[1:] for batch in batches)):
            return value
        fill = pad_id if name == "input_ids" else IGNORED if name == "labels" else 0
        return pad(value, (0, width - value.shape[1]), value=fill)

    return {name: torch.cat([fitted(name, batch[name]) for batch in batches]) for name in batches[0]}


def by_length(shapes: Sequence[Sequence[int]], cost: int | None) -> list[list[int]]:
    """Places of batches (examples, tokens) that are joined so that all passes together take the least.

    A pass takes `cost` tokens, and those of its batches, each padded to the longest; None: all are joined. Batches that are joined follow
    each other in order of length, so that the best cut of that order is the best of all.

    >>> by_length([(8, 16), (8, 64), (8, 24)], 100)
    [[0, 2], [1]]
    """
    if cost is None:
        return [list(range(len(shapes)))] if shapes else []
    order = sorted(range(len(shapes)), key=lambda place: (shapes[place][1], place))
    best: list[tuple[float, list[list[int]]]] = [(0.0, [])]
    for end in range(1, len(order) + 1):
        longest = shapes[order[end - 1]][1]
        found = []
        for start in range(end):
            group = order[start:end]
            tokens = longest * sum(shapes[place][0] for place in group)
            found.append((best[start][0] + cost + tokens, [*best[start][1], sorted(group)]))
        best.append(min(found, key=lambda one: one[0]))
    return sorted(best[-1][1])
