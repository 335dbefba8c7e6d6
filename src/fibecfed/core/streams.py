"""Standard output and standard error that cannot stop a program: whatever they are, what they cannot take is dropped."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Generator
from typing import Any


class _Lossy(io.FileIO):
    """A file that takes every write. A reader that is gone (`| head`) or a full disk must not end hours of training."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written  # None: the reader of a non-blocking pipe is too slow


def keep_streams() -> None:
    """Make standard output and standard error usable for the rest of this process, in any state it was started with.

    A closed one (`>&-`) becomes the null device: otherwise the next file that is opened gets its number, and what is printed goes into it.
    Characters that an encoding lacks (`PYTHONIOENCODING=ascii`) are written as escapes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _null_device(number)
    sys.stdout = _lossy(1, sys.stdout)
    sys.stderr = _lossy(2, sys.stderr)


def _null_device(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == number:  # the lowest free number: the usual case
        os.set_inheritable(opened, True)  # processes that are started from here need it as much
    else:
        os.dup2(opened, number)
        os.close(opened)


def _lossy(number: int, before: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Lossy(number, "w", closefd=False)),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(before, "line_buffering", False),
        write_through=getattr(before, "write_through", False),
    )


def write_output(data: bytes) -> None:
    """Write results to standard output: what it cannot take is an error here, but for a reader that has gone.

    Raises:
        OSError: a full disk, or the like.
    """
    sys.stdout.flush()
    kept = isinstance(getattr(sys.stdout.buffer, "raw", None), _Lossy)
    with contextlib.suppress(BrokenPipeError), open(1, "wb", closefd=False) if kept else contextlib.nullcontext(sys.stdout.buffer) as file:
        file.write(data)
        file.flush()


def without_library_warnings() -> None:
    """Drop what libraries announce to those who program with them: it says nothing to a user of the command line."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")


@contextlib.contextmanager
def quiet_libraries() -> Generator[None]:
    """Inside, `without_library_warnings`; the filters are put back afterwards, since the process may be somebody's notebook."""
    with warnings.catch_warnings():
        without_library_warnings()
        yield
