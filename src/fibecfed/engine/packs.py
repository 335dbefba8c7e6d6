"""Pack files: many blobs in one file that only grows, so that one flush makes all of them durable.

A record is a header (magic, length of the client id, length of the blob, SHA-256 of the blob), the client id in UTF-8, and the blob.
A later record of a client replaces an earlier one. The chain of a pack is c <- SHA-256(c + header + client id) over its records, from 32
zero bytes: with its length it stands for every bit of the pack, and each checkpoint names both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.files import write_all
from ..core.types import ClientId

_HEADER = struct.Struct("<4sIQ32s")
_MAGIC = b"FBC1"
_NAME = re.compile(r"(\d{8,})\.pack")


class PackError(ValueError):
    """A pack file that does not hold what it should; the text names the file."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where the record of a blob lies: number of the pack, offset and length in bytes."""

    pack: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class PackPrefix:
    """The first `length` bytes of a pack; `chain` (hex) stands for what is in them."""

    number: int
    length: int = 0
    chain: str = "00" * 32


def pack_path(folder: Path, number: int) -> Path:
    """The file of a pack."""
    return folder / f"{number:08d}.pack"


def pack_numbers(folder: Path) -> list[int]:
    """The packs in a folder, in order."""
    return sorted(int(match[1]) for entry in os.scandir(folder) if (match := _NAME.fullmatch(entry.name)))


def append(folder: Path, prefix: PackPrefix, client: ClientId, blob: bytes) -> tuple[PackPrefix, Location]:
    """Write a record behind `prefix`, without flushing it; the longer prefix and where the record lies.

    Raises:
        OSError: no space, and the like; the pack is then cut back to `prefix`.
    """
    head = _head(client, blob)
    file = os.open(pack_path(folder, prefix.number), os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        write_all(file, head, prefix.length)
        write_all(file, blob, prefix.length + len(head))
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(file, prefix.length)
        raise
    finally:
        os.close(file)
    size = len(head) + len(blob)
    longer = PackPrefix(prefix.number, prefix.length + size, _link(prefix.chain, head))
    return longer, Location(prefix.number, prefix.length, size)


def sync(folder: Path, number: int) -> None:
    """Flush a pack to the device."""
    file = os.open(pack_path(folder, number), os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def read(folder: Path, client: ClientId, location: Location) -> bytes:
    """The blob of `client` at `location`.

    Raises:
        PackError: the file is missing or unreadable, or its record is not this client's or has changed.
    """
    path = pack_path(folder, location.pack)
    try:
        with path.open("rb") as file:
            file.seek(location.start)
            head = file.read(_HEADER.size + len(_name(client)))
            blob = file.read(location.size - len(head))
    except OSError as error:
        raise PackError(f"{path.name}: {error.strerror or error}") from None
    if head != _head(client, blob):
        raise PackError(f"{path.name}: the state of client {client!r} at byte {location.start} is damaged (its SHA-256 differs)")
    return blob


def scan(folder: Path, prefix: PackPrefix) -> Iterator[tuple[ClientId, Location]]:
    """The records of a prefix in order, without reading the blobs.

    Raises:
        PackError: the file is missing, too short, or its records are not those that the chain stands for.
    """
    path = pack_path(folder, prefix.number)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < prefix.length:
                raise PackError(f"{path.name}: got {size} bytes, expected at least {prefix.length}")
            seen = PackPrefix(prefix.number)
            while seen.length < prefix.length:
                file.seek(seen.length)
                head = file.read(_HEADER.size)
                magic, name_length, blob_length, _ = _HEADER.unpack(head) if len(head) == _HEADER.size else (b"", 0, 0, b"")
                end = seen.length + _HEADER.size + name_length + blob_length
                if magic != _MAGIC or end > prefix.length:
                    raise PackError(f"{path.name}: the record at byte {seen.length} is damaged")
                name = file.read(name_length)
                yield name.decode("utf-8", "surrogatepass"), Location(prefix.number, seen.length, end - seen.length)
                seen = PackPrefix(prefix.number, end, _link(seen.chain, head + name))
    except (OSError, UnicodeDecodeError) as error:
        raise PackError(f"{path.name}: {error}") from None
    if seen.chain != prefix.chain:
        raise PackError(f"{path.name}: its records are not those that were written (the chain of SHA-256 differs)")


def _name(client: ClientId) -> bytes:
    return client.encode("utf-8", "surrogatepass")  # an id may be any string, half a surrogate pair too


def _head(client: ClientId, blob: bytes) -> bytes:
    name = _name(client)
    return _HEADER.pack(_MAGIC, len(name), len(blob), hashlib.sha256(blob).digest()) + name


def _link(chain: str, head: bytes) -> str:
    return hashlib.sha256(bytes.fromhex(chain) + head).hexdigest()
