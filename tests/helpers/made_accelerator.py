"""An accelerator that is not there: tensors on torch's meta device, and a count of all that one would be waited for."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fibecfed.models.label_words import LabelWords
from fibecfed.models.objectives import ClassHead, Objective
from fibecfed.models.shapes import ShapedTask
from fibecfed.models.tiny import Family, tiny_model

DEVICE = torch.device("meta")
WAITS = "read", "waited-for copy to the device"


def accelerated(family: Family = "bert", words: LabelWords | None = None, objective: Objective | None = None, **sizes: Any) -> ShapedTask:
    """A tiny task there."""
    model = tiny_model(family, words=words, **sizes)
    return ShapedTask(model.to(DEVICE), device=DEVICE, objective=objective or words or ClassHead(2))


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """What passes between CPU and device meanwhile: copies to it, waited for or not, and numbers that are read from it, as zero.

    What transformers reads to choose a kernel, once in each pass, is counted apart.
    """
    events, autocast = Counter[str](), torch.autocast
    with pytest.MonkeyPatch.context() as patch, _Counting(events):
        patch.setattr(torch, "autocast", lambda kind, *args, **kwargs: _NOTHING if kind == "meta" else autocast(kind, *args, **kwargs))
        yield events


_NOTHING = contextlib.nullcontext()


class _Counting(TorchDispatchMode):
    def __init__(self, events: Counter[str]) -> None:
        super().__init__()
        self.events = events

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None:
            return func(*args, **kwargs)
        if name == "_to_copy" and (to := kwargs.get("device")) is not None and to != first.device:
            if first.device == DEVICE:
                self._read()
                return torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
            self.events["copy to the device" if kwargs.get("non_blocking") else "waited-for copy to the device"] += 1
        elif first.device == DEVICE and name in ("_local_scalar_dense", "nonzero"):
            self._read()
            return 0 if name == "_local_scalar_dense" else torch.empty(0, first.ndim, dtype=torch.long, device=DEVICE)
        return func(*args, **kwargs)

    def _read(self) -> None:
        frame = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.endswith("transformers/masking_utils.py"):
            frame = frame.f_back
        self.events["read" if frame is None else "mask read by transformers"] += 1
