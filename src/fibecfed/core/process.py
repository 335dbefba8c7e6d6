"""What is set for the whole process while something runs, and put back afterwards: the process may be somebody's notebook."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Generator

import torch


@contextlib.contextmanager
def threads(number: int) -> Generator[None]:
    """Inside, torch computes with `number` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them in malloc.h
_AT_FIRST = 128 * 2**10  # what glibc begins with, for both


@contextlib.contextmanager
def kept_memory() -> Generator[None]:
    """Inside, freed memory stays with the process for the next allocation; afterwards it is returned to the system.

    Each training step allocates and frees the same tensors. glibc returns them to the system at once and asks for them again, and the
    system zeroes every page of 4 KiB anew: thousands of page faults a step, a tenth of a step's time with MiniLM in bf16. The peak of
    memory is the same. Nothing is done with another C library, or where the environment sets glibc's allocator.
    """
    theirs = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or theirs:
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
    libc.mallopt(_TRIM_THRESHOLD, 2**30)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _AT_FIRST)
        libc.mallopt(_TRIM_THRESHOLD, _AT_FIRST)
        libc.malloc_trim(0)


@contextlib.contextmanager
def environment(name: str, value: str, *, replace: bool = True) -> Generator[None]:
    """Inside, the environment variable `name` has this value; without `replace`, a value of the user's stays."""
    before = os.environ.get(name)
    if before is None or replace:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
