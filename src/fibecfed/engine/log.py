"""records.jsonl of a run under way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import write_all
from ..core.records import EvalRecord, RoundRecord, read, to_line


def read_records(path: Path, length: int | None = None) -> tuple[dict[str, Any], list[RoundRecord | EvalRecord]]:
    """The header and the records of a run.

    Args:
        length: bytes of the file to read, which must be there; None: all.

    Raises:
        UserError: the file is damaged.
    """
    if length is not None and (size := path.stat().st_size if path.exists() else 0) < length:
        raise UserError(f"{path}: got {size} bytes, expected at least {length}, the length in the checkpoint; restore the file")
    try:
        return read(path, length)
    except ValueError as error:
        raise UserError(f"{error}; restore the file from a backup, or start a new run") from None


def read_header(path: Path) -> dict[str, Any]:
    """The header of a run's records; behind the last checkpoint the file may end in half a line.

    Raises:
        UserError: the file is damaged.
    """
    with path.open("rb") as file:
        length = len(file.readline())
    return read_records(path, length)[0]


class Log:
    """records.jsonl, cut to the length that a checkpoint knows of and appended to. Nothing is held back in memory."""

    def __init__(self, path: Path, length: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._file, length)
        self._length = length

    def write(self, record: RoundRecord | EvalRecord | Mapping[str, Any]) -> None:
        line = to_line(record).encode()
        write_all(self._file, line, self._length)
        self._length += len(line)

    def sync(self) -> int:
        """Force everything to disk; the file's length."""
        os.fsync(self._file)
        return self._length

    def close(self) -> None:
        os.close(self._file)


def rounds_recorded(path: Path) -> int:
    """Lines of rounds in a file of records, whatever else is in it."""
    try:
        return path.read_bytes().count(b'{"kind":"round"')
    except OSError:
        return 0
