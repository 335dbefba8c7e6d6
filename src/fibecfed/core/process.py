"""What is set for the whole process while something runs, and put back afterwards: the process may be somebody's notebook."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from collections.abc import Callable, Generator
from pathlib import Path

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


def return_memory() -> None:
    """Return freed memory to the system now; nothing with another C library than glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


_COUNTS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    """mallinfo2's answer in malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in _COUNTS]


@functools.cache
def _mallinfo() -> Callable[[], _MallInfo] | None:
    """glibc's count of its heap; None with another C library, and before glibc 2.33."""
    if platform.libc_ver()[0] != "glibc" or not hasattr(libc := ctypes.CDLL(None), "mallinfo2"):
        return None
    libc.mallinfo2.restype = _MallInfo
    return libc.mallinfo2


def bound_freed_memory(most: int) -> None:
    """Return freed memory to the system if the process keeps more than `most` bytes of it; nothing without glibc's count of it.

    Batches of many lengths leave holes in the heap that later ones do not fit into: training SmolLM2-135M took 7 GB in place of 2.
    """
    if resident_memory() <= most:  # takes microseconds; the count goes through every hole
        return
    count = _mallinfo()
    if count is not None and count().fordblks > most:
        return_memory()


# ---- what there is of the machine

_CONTAINER = Path("/sys/fs/cgroup")


def cores() -> int:
    """CPU cores that this process may use: those it is bound to, and no more than its container has CPU time for."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (*_numbers(_CONTAINER / "cpu.max"), None, None)[:2]
    return bound if quota is None or not period else max(1, min(bound, quota // period))


def free_memory() -> int | None:
    """Bytes that new processes may come to use, of the machine and of this process's container; None where that is not known."""
    limit, used = _numbers(_CONTAINER / "memory.max"), _numbers(_CONTAINER / "memory.current")
    given_back = _named(_CONTAINER / "memory.stat", "inactive_file")  # files that the system keeps for want of a better use
    of_container = [max(0, limit[0] - used[0] + sum(given_back))] if limit and used else []
    return min([*(1024 * kilobytes for kilobytes in _named(Path("/proc/meminfo"), "MemAvailable:")), *of_container], default=None)


def resident_memory() -> int:
    """Bytes of this process's memory; 0 where that is not known."""
    pages = _numbers(Path("/proc/self/statm"))
    return pages[1] * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0


def _numbers(path: Path) -> list[int]:
    """The integers in a file of the system; none where it has no number or is not there."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []


def _named(path: Path, name: str) -> list[int]:
    """The number behind a name in a file of the system, or none."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
        return [int(line[1]) for line in words if line[:1] == [name]]
    except (OSError, ValueError, IndexError):
        return []
