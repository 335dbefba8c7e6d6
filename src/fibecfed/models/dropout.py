"""Dropout in a joined pass: each client's rows get the masks that they get alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .heads import UnsupportedModel
from .turns import Stream, continued


@contextlib.contextmanager
def each_from_its_own(streams: Sequence[Stream], sizes: Sequence[int]) -> Iterator[None]:
    """Inside, functions of torch that drop something at random do so by client: its rows, in a call of their own, from its own stream.

    Args:
        streams: of each client.
        sizes: its rows in the batch, which follow each other.

    Raises:
        UnsupportedModel: something was drawn for all rows at once.
    """
    before = torch.get_rng_state()
    with _ByClient(streams, sizes):
        yield
    if not torch.equal(torch.get_rng_state(), before):
        raise UnsupportedModel("it draws at random for all examples of a batch at once")


class _ByClient(TorchFunctionMode):
    def __init__(self, streams: Sequence[Stream], sizes: Sequence[int]) -> None:
        super().__init__()
        self._streams = streams
        self._sizes = list(sizes)
        self._rows = sum(sizes)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _drops(getattr(func, "__name__", ""), args, kwargs):
            return func(*args, **kwargs)
        each, rest = divmod(len(args[0]), self._rows)  # some families have a row for each token, one example after the other
        if rest or not each:
            raise UnsupportedModel(f"it drops parts of a tensor of shape {tuple(args[0].shape)} for all {self._rows} examples at once")
        return torch.cat([self._of_client(number, each, func, args, kwargs) for number in range(len(self._sizes))])

    def _of_client(self, number: int, each: int, func: Any, args: Any, kwargs: Any) -> Tensor:
        sizes = [each * size for size in self._sizes]

        def own(value: Any) -> Any:
            by_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == each * self._rows
            return value.split(sizes)[number] if by_row else value

        with continued(self._streams[number]):
            return func(*map(own, args), **{name: own(value) for name, value in kwargs.items()})


def _drops(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a function of torch is to draw a mask."""
    if name == "scaled_dot_product_attention":
        return bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
    if "dropout" not in name:
        return False
    rate, training = kwargs.get("p", args[1] if len(args) > 1 else 0.5), kwargs.get("training", args[2] if len(args) > 2 else True)
    return bool(rate) and bool(training)
