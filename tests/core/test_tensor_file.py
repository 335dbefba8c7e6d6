"""Named tensors as bytes: what the library safetensors writes, byte for byte, and nothing else is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fibecfed.core.tensor_file import layout, parse, split, views, write

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def some_tensor(draw: st.DrawFn) -> Tensor:
    """Any bits, of any dtype and shape, empty and scalar ones too."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    raw = bytes(byte & 1 for byte in raw) if dtype is torch.bool else raw
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype).reshape(shape)


FILES = st.dictionaries(TEXT.filter(lambda name: name != "__metadata__"), some_tensor(), max_size=5)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def read(blob: bytes | memoryview) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    header, data = split(blob)
    metadata, entries = parse(header)
    return metadata, {entry.name: tensor for entry, tensor in zip(entries, views(data, entries), strict=True)}


def described(head: Any, data: bytes = bytes(8)) -> bytes:
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + data


@settings(max_examples=200, deadline=None)
@given(FILES, TEXT)
def test_what_is_written_is_what_the_library_writes(tensors: dict[str, Tensor], text: str) -> None:
    blob = write(tensors, {"message": text})
    assert blob == safetensors.torch.save(tensors, metadata={"message": text})
    bare = {name: tensor.to("meta") for name, tensor in tensors.items()}
    assert layout(bare, {"message": text}).size == len(blob)


@settings(max_examples=100, deadline=None)
@given(FILES, TEXT, st.binary(max_size=40))
def test_what_the_library_writes_is_read_and_what_follows_is_not_part_of_it(tensors: dict[str, Tensor], text: str, after: bytes) -> None:
    blob = safetensors.torch.save(tensors, metadata={"message": text})
    assert write(tensors, {"message": text}, after) == blob + after
    metadata, back = read(memoryview(blob + after)[: len(blob)])
    assert metadata == {"message": text} and {name: bits(value) for name, value in back.items()} == {
        name: bits(value) for name, value in tensors.items()
    }


def test_tensors_that_were_read_lie_on_the_bytes_and_keep_them() -> None:
    blob = write({"a": torch.arange(1000.0), "b": torch.ones(3, dtype=torch.int8)}, {})
    start = torch.frombuffer(blob, dtype=torch.uint8).data_ptr()
    _, back = read(blob)
    assert all(start < tensor.data_ptr() < start + len(blob) for tensor in back.values())
    del blob
    assert back["a"].tolist() == list(range(1000))


def test_a_tensor_at_an_odd_place_is_read() -> None:
    table = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    data = b"\7" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    _, back = read(described(table, data))
    assert back["b"].tolist() == [1.5, -2.0] and back["a"].tolist() == [7]


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("head", "data"),
    [
        ([], bytes(8)),
        ({"a": 1}, bytes(8)),
        ({"a": {**ONE, "dtype": "F31"}}, bytes(8)),
        ({"a": {**ONE, "dtype": ["F32"]}}, bytes(8)),
        ({"a": {**ONE, "shape": [3]}}, bytes(8)),
        ({"a": {**ONE, "shape": [-2]}}, bytes(8)),
        ({"a": {**ONE, "shape": [2.0]}}, bytes(8)),
        ({"a": {**ONE, "shape": [True, 2]}}, bytes(8)),
        ({"a": {**ONE, "shape": None}}, bytes(8)),
        ({"a": {**ONE, "data_offsets": [0, 8, 8]}}, bytes(8)),
        ({"a": {**ONE, "data_offsets": [8, 0]}}, bytes(8)),
        ({"a": {**ONE, "data_offsets": [1, 9]}}, bytes(9)),  # a gap
        ({"a": ONE, "b": ONE}, bytes(8)),  # one on the other
        ({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, bytes(12)),
        ({"a": ONE}, bytes(7)),  # cut short
        ({"a": ONE}, bytes(9)),  # something behind it
        ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 2**66]}}, bytes(8)),
    ],
)
def test_a_header_that_does_not_describe_the_bytes_is_a_value_error(head: Any, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(described(head, data))


@pytest.mark.parametrize("blob", [b"", bytes(7), bytes(8), b"\xff" * 20, (2**63).to_bytes(8, "little") + b"{}"])
def test_bytes_without_a_header_are_a_value_error(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(blob)


def test_a_dtype_that_cannot_be_written_is_named() -> None:
    with pytest.raises(TypeError, match=r"a: a tensor of dtype torch\.complex128 cannot be written"):
        write({"a": torch.zeros(1, dtype=torch.complex128)}, {})
