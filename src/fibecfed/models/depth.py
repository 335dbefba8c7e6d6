"""The blocks below all that is trained: they run without a graph, and where their output is kept, they do not run at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..core.types import Batch, Params
from .activations import Activations
from .maps import removing

Forward: TypeAlias = Callable[[Batch], Tensor]
"""A batch's inputs -> what the whole model makes of them."""

ENOUGH = 4
"""Rows of a shape of batch that must have come out with the same bits in another batch, before kept ones replace such a batch."""


@contextlib.contextmanager
def graph_from(blocks: Sequence[nn.Module], first: int) -> Iterator[None]:
    """Inside, blocks before number `first` run without a graph; so does what the body does between them."""
    before = torch.is_grad_enabled()
    if first <= 0 or not before:
        yield
        return

    def off(*_: Any) -> None:
        torch.set_grad_enabled(False)

    def on(*_: Any) -> None:
        torch.set_grad_enabled(True)

    ends = blocks[first].register_forward_pre_hook(on) if first < len(blocks) else blocks[-1].register_forward_hook(on)
    try:
        with removing([blocks[0].register_forward_pre_hook(off), ends]):
            yield
    finally:
        torch.set_grad_enabled(before)


def begins_of(layers: Mapping[str, int | None], norms: Collection[str], in_front: str, front: int, num_layers: int) -> dict[str, int]:
    """The first block whose input or weights each trainable tensor has a part in; L for the head, which has one in none.

    Args:
        layers: name of a tensor -> its block; None for one that lies in none.
        norms: names of normalisation layers' tensors; outside the blocks they may stand before them.
        in_front: how the names of an adapter's tensors begin.
        front: the first block that an adapter's tensors outside the blocks have a part in.
    """

    def begin(name: str, layer: int | None) -> int:
        if layer is not None:
            return layer
        if name.startswith(in_front):
            return front
        return 0 if name in norms or "lora_" in name else num_layers

    return {name: begin(name, layer) for name, layer in layers.items()}


_Form: TypeAlias = Callable[[Tensor], Any]
"""From hidden states to what a block returns."""


@dataclass
class _Base:
    """What kept outputs are the outputs of: the blocks before number `first`, with these tensors in them.

    Attributes:
        forms: of the lower blocks, None for one that returns more than its hidden states.
    """

    first: int
    lower: dict[str, Tensor]
    forms: list[_Form | None] = field(default_factory=list["_Form | None"])

    def is_of(self, lower: Params) -> bool:
        """Whether the blocks before number `first` compute the same with these."""
        return lower.keys() == self.lower.keys() and all(torch.equal(lower[name].to(value), value) for name, value in self.lower.items())


class LowerBlocks:
    """Outputs of the blocks below the lowest trained one, kept for single examples over epochs, rounds, clients and evaluations.

    A call gets the same bits whether its rows are kept or computed. Rows are kept under everything that their bits depend on: the
    example's tokens, how far its batch is padded, whether there is any padding in it (attention takes another way where there is none),
    and the kind of attention. That they do not depend on the other examples of the batch and on their number is a property of the
    kernels at hand. It is not taken for granted: `ENOUGH` rows of the first batch of each shape are computed once more by themselves and
    compared, and so are some kept rows whenever others are missing beside them. If a bit differs, from then on only whole batches replace
    the same whole batches.

    What is kept is of one choice of untrained blocks with one set of values. A training with another choice or other values drops it; a
    call without gradients uses what is kept if its values are the same, and else computes.

    Args:
        blocks: all blocks of the body, in order.
        budget: bytes for what is kept.
    """

    def __init__(self, blocks: Sequence[nn.Module], budget: int) -> None:
        self.kept = Activations(budget)
        self.by_row = True
        self.found = self.computed = 0
        """Rows that were kept already, and that were computed, so far."""
        self._blocks = blocks
        self._base: _Base | None = None
        self._compared: Counter[tuple[Any, ...]] = Counter()
        self.skipped = 0
        """Blocks that do not run in the present call: what is in them and below has no part in it."""
        self._before = 0  # positions before those of the text in what was kept last

    def run(self, forward: Forward, batch: Batch, first: int | None, lower: Callable[[int], Params], attention: str) -> Tensor:
        """`forward(batch)`, with the blocks at the bottom left out if their output is kept.

        Args:
            batch: the inputs alone, on the CPU: `input_ids`, `attention_mask` and the like, each (batch, token).
            first: the lowest block in which anything is trained in this call; None where the call has no gradients.
            lower: number of a block -> the tensors in and below the blocks before it.
            attention: which implementation the body uses.
        """
        base = self._base_of(first, lower)
        if base is None:
            return forward(batch)
        rows = _Rows.of(batch, attention, self.by_row)
        known = [row for row, key in enumerate(rows.keys) if key in self.kept]
        hidden = self._from_kept(base, forward, rows, known)
        if hidden is not None:
            with self._skipping(base, hidden):
                return forward(batch)
        with self._watching(base) as outputs:
            result = forward(batch)
        self.computed += len(rows.keys)
        if len(outputs) == 1 and len(outputs[0]) == len(rows.keys):
            self._learn(base, forward, rows, known, outputs[0].detach())
        return result

    def ahead(self, forward: Forward, batches: Sequence[Batch], first: int, lower: Callable[[int], Params], attention: str) -> None:
        """Keep what these batches of a training will ask for, as far as it fits without another row going.

        Rows that are missing are computed in batches as large as those, instead of a few at a time beside the kept ones of each.

        Args:
            first: the lowest block in which anything is trained. The others are those of `run`.
        """
        base = self._base_of(first, lower)
        if base is None or not self.by_row:
            return
        alike: dict[Any, list[_Rows]] = {}
        for batch in batches:
            rows = _Rows.of(batch, attention, self.by_row)
            forms = tuple((name, value.shape[1:], value.dtype) for name, value in sorted(batch.items()))
            alike.setdefault((forms, rows.padded), []).append(rows)
        for group in alike.values():
            if not self._fill(base, forward, _Rows.joined(group), max(len(rows.keys) for rows in group)):
                return

    def _fill(self, base: _Base, forward: Forward, rows: _Rows, size: int) -> bool:
        """Keep rows that are missing, `size` at a time; whether that went well and there is room for more."""
        places = {key: row for row, key in reversed(list(enumerate(rows.keys)))}
        known, missing = ([row for key, row in places.items() if (key in self.kept) is there] for there in (True, False))
        for start in range(0, len(missing), size):
            new = missing[start : start + size]
            beside = known[: len(new) // 4 * 4 + 4 - len(new)] if len(new) < size else []
            part = rows.part([*new, *beside])
            if not self.kept.has_room(len(new), part.num_tokens + self._before):
                return False
            if part.padded != rows.padded:
                continue
            output = self._alone(base, forward, part.batch)
            if output is None or len(output) != len(part.keys):
                return False
            self.computed += len(part.keys)
            if not beside:
                self._learn(base, forward, part, (), output)
            elif self._same(self.kept.rows(part.keys[len(new) :]), output[len(new) :]):
                self.kept.keep(part.keys, output)
            if not self.by_row:
                return False
            known += new
        return True

    def tried(self, forward: Forward, batch: Batch, first: int) -> Tensor | None:
        """The output of the blocks before number `first`; None where the body needs more of them, so that they cannot be left out."""
        base = _Base(first, {})
        with torch.no_grad(), contextlib.suppress(Exception):  # hundreds of families, each with its own code
            with self._watching(base) as outputs:
                result = forward(batch)
            with self._skipping(base, outputs[0]):
                same = torch.equal(forward(batch), result)
            if same and len(outputs) == 1 and len(outputs[0]) == len(batch["attention_mask"]):
                return outputs[0]
        return None

    def _base_of(self, first: int | None, lower: Callable[[int], Params]) -> _Base | None:
        """What is kept, or will be, is the output of this; None where it is of no use to the call."""
        base = self._base
        if first is None:
            return base if base is not None and base.is_of(lower(base.first)) else None
        if first == 0:
            return None
        values = lower(first)
        if base is None or base.first != first or not base.is_of(values):
            self.kept.clear()
            self._base = base = _Base(first, {name: value.detach().clone() for name, value in values.items()})
        return base

    def _from_kept(self, base: _Base, forward: Forward, rows: _Rows, known: Sequence[int]) -> Tensor | None:
        """The rows' outputs: all that are kept, and if they are few the others computed by themselves; None: better all together."""
        if not known or (self.by_row and self._compared[rows.shape] < ENOUGH):
            return None
        kept = self.kept.rows([rows.keys[row] for row in known])
        missing = sorted(set(range(len(rows.keys))) - set(known))
        if not missing:
            self.found += len(known)
            return kept
        size = len(missing) // 4 * 4 + 4  # a few kinds of shapes, and room for at least one row to compare
        if not self.by_row or size >= len(rows.keys) or size - len(missing) > len(known):
            return None
        beside = known[: size - len(missing)]
        part = rows.part([*missing, *beside])
        new = self._alone(base, forward, part.batch) if part.padded == rows.padded else None
        if new is None or not self._same(kept[: len(beside)], new[len(missing) :]):
            return None
        self.found, self.computed = self.found + len(known), self.computed + size
        self.kept.keep(part.keys[: len(missing)], new[: len(missing)])
        whole = kept.new_empty(len(rows.keys), *kept.shape[1:])
        whole[list(known)], whole[missing] = kept, new[: len(missing)]
        return whole

    def _learn(self, base: _Base, forward: Forward, rows: _Rows, known: Sequence[int], output: Tensor) -> None:
        """Keep a batch's outputs, after comparing them with those of its rows that are there already or, if it is the first of its shape,
        with those of some of its rows by themselves."""
        if known and not self._same(self.kept.rows([rows.keys[row] for row in known]), output[list(known)]):
            return
        self._compared[rows.shape] += len(known)
        self._before = output.shape[1] - rows.num_tokens
        if self.by_row and self._compared[rows.shape] < ENOUGH and len(rows.keys) > 1:
            some = sorted(rows.shortest_first()[: min(ENOUGH, len(rows.keys) // 2)])
            alone = self._alone(base, forward, rows.part(some).batch)
            if alone is None or not self._same(output[some], alone):
                return
            self.computed += len(some)
            self._compared[rows.shape] = ENOUGH
        self.kept.keep(rows.keys, output)

    def _same(self, kept: Tensor, computed: Tensor) -> bool:
        if torch.equal(kept, computed):
            return True
        self.by_row = False
        self.kept.clear()
        return False

    # How

    @contextlib.contextmanager
    def _watching(self, base: _Base) -> Iterator[list[Tensor]]:
        """A list that gets the output of the last of the lower blocks at each of its calls; it stays empty where that cannot be kept."""
        outputs: list[Tensor] = []
        forms: list[_Form | None] = []

        def note(_module: nn.Module, _args: Any, out: Any) -> None:
            forms.append(_form(out))

        def take(_module: nn.Module, _args: Any, out: Any) -> None:
            if None not in forms:
                outputs.append(out[0] if isinstance(out, tuple) else out)

        lower = self._blocks[: base.first]
        handles = [block.register_forward_hook(note) for block in lower]
        with removing([*handles, lower[-1].register_forward_hook(take)]):
            yield outputs
        base.forms = forms

    @contextlib.contextmanager
    def _skipping(self, base: _Base, hidden: Tensor) -> Iterator[None]:
        """Inside, each of the lower blocks gives `hidden`, whatever it is given."""
        lower = self._blocks[: base.first]
        before = [vars(block).get("forward") for block in lower]
        self.skipped = base.first
        try:
            for block, form in zip(lower, base.forms, strict=True):
                assert form is not None
                block.forward = _giving(form(hidden), block.forward)
            yield
        finally:
            self.skipped = 0
            for block, own in zip(lower, before, strict=True):
                vars(block).pop("forward", None)
                if own is not None:
                    block.forward = own

    def _alone(self, base: _Base, forward: Forward, batch: Batch) -> Tensor | None:
        """The output of the lower blocks, without running the others."""

        def stop(*_: Any) -> None:
            raise _LowerDone

        last = self._blocks[base.first - 1]
        ends = contextlib.suppress(_LowerDone)
        with self._watching(base) as outputs, torch.no_grad(), ends, removing([last.register_forward_hook(stop)]):
            forward(batch)
        return outputs[0] if len(outputs) == 1 else None


class _LowerDone(Exception):
    """The lower blocks are done."""


@dataclass(frozen=True)
class _Rows:
    """A batch's inputs, and of each row the key of its output.

    Attributes:
        padded: whether any row has padding.
        shape: what the choice of kernels may depend on.
    """

    batch: Batch
    keys: list[bytes]
    padded: bool
    shape: tuple[Any, ...]

    @classmethod
    def of(cls, batch: Batch, attention: str, by_row: bool) -> _Rows:
        table = torch.cat([batch[name].flatten(1) for name in sorted(batch)], 1).numpy()
        padded = not bool(batch["attention_mask"].all())
        salt = f"{sorted(batch)} {attention} {padded} ".encode()
        if not by_row:  # the same row in another batch is another row
            salt += hashlib.blake2b(table.tobytes(), digest_size=16).digest()
        keys = [hashlib.blake2b(salt + row.tobytes(), digest_size=16).digest() for row in table]
        return cls(batch, keys, padded, (*table.shape, attention, padded))

    @classmethod
    def joined(cls, parts: Sequence[_Rows]) -> _Rows:
        """The rows of several batches that are padded alike."""
        batch = {name: torch.cat([part.batch[name] for part in parts]) for name in parts[0].batch}
        keys = [key for part in parts for key in part.keys]
        return cls(batch, keys, parts[0].padded, (len(keys), *parts[0].shape[1:]))

    @property
    def num_tokens(self) -> int:
        """Tokens of each row, padding included."""
        return self.batch["attention_mask"].shape[1]

    def shortest_first(self) -> list[int]:
        """Numbers of the rows: in a batch with padding the first of them have some."""
        return torch.argsort(self.batch["attention_mask"].flatten(1).sum(1), stable=True).tolist()

    def part(self, rows: Sequence[int]) -> _Rows:
        """Some of the rows, as a batch padded as far as this one."""
        batch = {name: value[list(rows)] for name, value in self.batch.items()}
        padded = not bool(batch["attention_mask"].all())
        return _Rows(batch, [self.keys[row] for row in rows], padded, (len(rows), *self.shape[1:]))


def _form(out: Any) -> _Form | None:
    """How to make what a block returned of its hidden states; None where it returned more than these."""
    if isinstance(out, Tensor):
        return lambda hidden: hidden
    if isinstance(out, tuple) and out and isinstance(out[0], Tensor) and all(other is None for other in out[1:]):
        others = out[1:]
        return lambda hidden: (hidden, *others)
    return None


def _giving(value: Any, instead_of: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives `value`; its signature is that of the other, which an adapter may look at."""

    @functools.wraps(instead_of)
    def give(*_: Any, **__: Any) -> Any:
        return value

    return give
