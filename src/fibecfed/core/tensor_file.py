"""Named tensors as bytes in the safetensors format, written in one copy and read in none.

The library `safetensors` copies when it writes and when it reads; with messages of many megabytes these copies are most of what a round
costs beside training. What is written here is equal to what the library writes, byte for byte, and can be read by it (tests hold both).
The format: 8 bytes, the length of the header; the header, JSON padded with spaces to a multiple of 8; the tensors one after the other,
without gaps, those of the highest rank of `_RANKS` first, then by name.
"""

# pyright: standard
# The rest of core is checked strictly; here values come out of JSON, and are checked when they do.

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

with warnings.catch_warnings():  # torch warns once in a process that tensors on received bytes must not be written to; nothing here does
    warnings.simplefilter("ignore")
    torch.frombuffer(bytes(1), dtype=torch.uint8)

_RANKS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""Names of dtypes, in ascending rank."""

_NAMES = {dtype: (rank, name) for rank, (name, dtype) in enumerate(_RANKS.items())}

_NUMPY = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8}
"""Dtypes that numpy has too: such a tensor is a buffer as it is."""

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Layout(NamedTuple):
    """Where everything is in a file.

    Attributes:
        head: everything before the tensors.
        names: the tensors in the order in which they are written.
        size: bytes of the whole file.
    """

    head: bytes
    names: tuple[str, ...]
    size: int


def layout(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Layout:
    """What a file of these tensors looks like; from shapes and dtypes alone, so that they may be on the meta device.

    Raises:
        TypeError: a dtype that cannot be written.
    """
    text, names, end = _described(tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()))
    if metadata:
        words = ",".join(f"{_json(key)}:{_json(value)}" for key, value in metadata.items())
        text = f'{{"__metadata__":{{{words}}}{"," if names else ""}{text[1:]}'
    head = text.encode()
    head += b" " * (-len(head) % 8)
    return Layout(len(head).to_bytes(8, "little") + head, names, 8 + len(head) + end)


@functools.lru_cache(maxsize=64)
def _described(tensors: tuple[tuple[str, torch.dtype, torch.Size], ...]) -> tuple[str, tuple[str, ...], int]:
    """The header of these tensors, their names in the order of writing, and their bytes. Kept, since each round writes the same.

    Raises:
        TypeError: as `layout`.
    """
    for name, dtype, _ in tensors:
        if dtype not in _NAMES:
            raise TypeError(f"{name}: a tensor of dtype {dtype} cannot be written")
    table: dict[str, Any] = {}
    end = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: (-_NAMES[tensor[1]][0], tensor[0])):
        start, end = end, end + shape.numel() * dtype.itemsize
        table[name] = {"dtype": _NAMES[dtype][1], "shape": list(shape), "data_offsets": [start, end]}
    return _json(table), tuple(table), end


def write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], after: bytes = b"") -> bytes:
    """The bytes of a file, from tensors on any device and in any memory order.

    Args:
        after: put behind the file, without another copy of it.
    """
    head, names, _ = layout(tensors, metadata)
    return b"".join((head, *(_memory(tensors[name]) for name in names), after))


def _memory(tensor: Tensor) -> Any:
    """The numbers of a tensor in order, as a buffer; not a copy where they lie so already."""
    plain = tensor.detach().to("cpu").contiguous()
    return (plain if plain.dtype in _NUMPY else plain.view(-1).view(torch.uint8)).numpy()


class Entry(NamedTuple):
    """A tensor of a file: its place, in bytes behind the header, and what it is."""

    start: int
    stop: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def split(blob: bytes | memoryview) -> tuple[bytes, memoryview]:
    """The header of a file, and the bytes behind it.

    Raises:
        ValueError: it is too short for them.
    """
    view = memoryview(blob)
    begin = 8 + int.from_bytes(view[:8], "little")
    if len(view) < 8 or begin > len(view):
        raise ValueError(f"its header would end after {begin} bytes")
    return bytes(view[8:begin]), view[begin:]


def parse(header: bytes) -> tuple[Mapping[str, Any], tuple[Entry, ...]]:
    """The metadata, and the tensors in the order in which they lie.

    Raises:
        ValueError: not a header as `write` writes it, with no byte between the tensors.
    """
    try:
        table = json.loads(header.decode())
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(table, dict):
        raise ValueError("its header is not a table")
    metadata = table.pop("__metadata__", {})
    entries, end = sorted(_entry(name, entry) for name, entry in table.items()), 0
    for entry in entries:
        if entry.start != end:
            raise ValueError(f"{entry.name!r} begins at {entry.start}, expected {end}")
        end = entry.stop
    return metadata if isinstance(metadata, dict) else {}, tuple(entries)


def views(data: memoryview, entries: Sequence[Entry]) -> list[Tensor]:
    """The tensors that `parse` found, on the bytes behind the header: nobody may write into them.

    Raises:
        ValueError: they do not end where `data` does.
    """
    end = entries[-1].stop if entries else 0
    if end != len(data):
        raise ValueError(f"its tensors take {end} bytes, got {len(data)}")
    return [_tensor(data, entry) for entry in entries]


def _entry(name: str, entry: Any) -> Entry:
    if not isinstance(entry, dict):
        raise ValueError(f"{name!r} is not described by a table")
    dtype, shape, offsets = entry.get("dtype"), _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _RANKS or shape is None or offsets is None or len(offsets) != 2:
        raise ValueError(f"{name!r} has no dtype, shape and place that are known")
    needed = _RANKS[dtype].itemsize
    for size in shape:
        needed *= size
    if offsets[1] - offsets[0] != needed:
        raise ValueError(f"{name!r} takes {offsets[1] - offsets[0]} bytes, expected {needed}")
    return Entry(offsets[0], offsets[1], name, _RANKS[dtype], shape)


def _sizes(value: Any) -> tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) and all(type(size) is int and size >= 0 for size in value) else None


def _tensor(data: memoryview, entry: Entry) -> Tensor:
    start, stop, _, dtype, shape = entry
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(data, dtype=torch.uint8, count=stop - start, offset=start)
    if tensor.data_ptr() % dtype.itemsize:  # written elsewhere, in another order
        tensor = tensor.clone()
    return tensor.view(dtype).view(shape)
