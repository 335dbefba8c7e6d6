"""The text in a file: what the file is, whether it is packed, and in which encoding it was written."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from ..core.errors import UserError

_FIRST_BYTES = {
    b"\x1f\x8b": "data compressed with gzip; name it .gz",
    b"PK\x03\x04": "a zip archive or an Excel workbook (.xlsx); save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls); save the sheet as CSV in UTF-8",
    b"PAR1": "a parquet file; name it .parquet",
    b"BZh": "data compressed with bzip2; decompress it",
    b"\xfd7zXZ": "data compressed with xz; decompress it",
    b"\x28\xb5\x2f\xfd": "data compressed with zstd; decompress it",
    b"%PDF": "a PDF; save its table as CSV in UTF-8",
    b"SQLite format 3": "a database; write its table to a CSV file",
}


def looks_like(path: Path) -> str:
    """What a file is by its first bytes, for an error; "" where they are not known."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return ""
    return next((f" ({what})" for first, what in _FIRST_BYTES.items() if start.startswith(first)), "")


def bytes_of(path: Path, packed: bool) -> bytes:
    """What is in a file, unpacked.

    Raises:
        UserError: it cannot be read.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if packed else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}). Compress it again, or rename it if it is not compressed.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Change its permissions, or copy it.") from None


def text_of(source: str, data: bytes) -> tuple[str, str]:
    """The text that bytes stand for, and its encoding.

    Args:
        source: where they come from, for errors.

    Raises:
        UserError: they are no text, or are in an encoding that they do not tell.
    """
    for first, what in _FIRST_BYTES.items():
        if data.startswith(first):
            raise UserError(f"{source}: expected text, got {what}.")
    encoding, name = _encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{source}, line {line}: byte {error.object[error.start]:#04x} at position {error.start:,} is not {name}, but perhaps Latin-1 "
            f"or Windows-1252. Save it as UTF-8, or: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        perhaps = "it may be UTF-16 without its byte order mark"
        raise UserError(f"{source}, line {line}: contains a NUL character, which text files do not; {perhaps}. Save it as UTF-8.")
    return text, name


def _encoding(data: bytes) -> tuple[str, str]:
    """By the mark at the beginning; without one a text is UTF-8."""
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32", "UTF-32"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16", "UTF-16"
    return "utf-8-sig", "UTF-8"
