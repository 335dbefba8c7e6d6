"""One at a time: calls on a module that several tasks or threads share, and what torch has once for the whole process."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..core.rng import Key

KERNELS = threading.RLock()
"""Held by whoever changes which attention kernels torch may choose, which it does for the whole process."""

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(module: nn.Module) -> Any:
    """The one lock of a module; a thread that holds it may take it again."""
    with _making:
        return _locks.setdefault(module, threading.RLock())


_generators = threading.RLock()


@contextlib.contextmanager
def seeded(key: Key, device: torch.device | None = None) -> Iterator[None]:
    """Inside, torch's global generators (of the CPU, and of `device` where it is a GPU) draw from `key`; afterwards they are put back.

    They belong to the whole process: another thread that asks for them waits.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with _generators, torch.random.fork_rng(devices=devices):
        torch.manual_seed(key.seed())
        yield


class Stream:
    """Draws of torch's global generators that begin at a key and are `continued` later."""

    def __init__(self, key: Key, device: torch.device) -> None:
        self.device = device
        with seeded(key, device):
            self.take()

    def take(self) -> None:
        """Go on from where the generators are now."""
        self._cpu, self._gpu = torch.get_rng_state(), None if self.device.type == "cpu" else _on(self.device).get_rng_state()

    def give(self) -> None:
        """Set the generators to where this stream stands."""
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            _on(self.device).set_rng_state(self._gpu)


@contextlib.contextmanager
def continued(stream: Stream) -> Iterator[None]:
    """Inside, torch's global generators draw on from where the stream stands; afterwards they are put back."""
    devices = [stream.device] if stream.device.type == "cuda" else []
    with _generators, torch.random.fork_rng(devices=devices):
        stream.give()
        yield
        stream.take()


def _on(device: torch.device) -> Any:
    """The module of torch for a kind of accelerator, whose generator is that of its current device."""
    return torch.get_device_module(device)


class _Locked(Protocol):
    @property
    def lock(self) -> Any: ...


_Self = TypeVar("_Self", bound=_Locked)
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def one_at_a_time(method: Callable[Concatenate[_Self, _Args], _Result]) -> Callable[Concatenate[_Self, _Args], _Result]:
    """`method`, called while its object's `lock` is held: other threads wait for their turn."""

    @functools.wraps(method)
    def alone(self: _Self, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        with self.lock:
            return method(self, *args, **kwargs)

    return alone
