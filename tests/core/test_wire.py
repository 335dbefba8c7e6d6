"""Messages: what comes back is what went, and anything else is rejected."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import struct
import subprocess
import sys
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fibecfed.core.wire import (
    WIRE_VERSION,
    Tensors,
    WireError,
    decode,
    describe,
    encode,
    encoded_size,
    field_kinds,
    message,
    payload_bytes,
    tensors_of,
)


@message
class Everything:
    """One field of each kind."""

    tensor: Tensor
    tensors: Tensors
    count: int
    weight: float
    name: str
    flag: bool
    counts: tuple[int, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]
    flags: tuple[bool, ...]


@message
class Small:
    """Named tensors and a count."""

    shared: Tensors
    num_samples: int


@message
class Weighted:
    """A number and a text list."""

    weight: float
    names: tuple[str, ...] = ()


@message
class Nothing:
    """No field at all."""


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def some_tensor(draw: st.DrawFn) -> Tensor:
    """Any bits, of any dtype and shape, empty and scalar ones too."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype).reshape(shape)


def everything() -> st.SearchStrategy[Everything]:
    numbers = st.floats(allow_nan=False)
    return st.builds(
        Everything,
        tensor=some_tensor(),
        tensors=st.dictionaries(TEXT, some_tensor(), max_size=4),
        count=st.integers(),
        weight=numbers,
        name=TEXT,
        flag=st.booleans(),
        counts=st.lists(st.integers(), max_size=3).map(tuple),
        weights=st.lists(numbers, max_size=3).map(tuple),
        names=st.lists(TEXT, max_size=3).map(tuple),
        flags=st.lists(st.booleans(), max_size=3).map(tuple),
    )


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def raw_message(table: Any, tensors: dict[str, Tensor] | None = None) -> bytes:
    return safetensors.torch.save(tensors or {}, metadata={"message": json.dumps(table)})


@settings(max_examples=150, deadline=None)
@given(everything())
def test_a_message_comes_back_bit_for_bit(value: Everything) -> None:
    back = decode(Everything, encode(value))
    assert bits(back.tensor) == bits(value.tensor)
    assert {name: bits(tensor) for name, tensor in back.tensors.items()} == {name: bits(tensor) for name, tensor in value.tensors.items()}
    for name, kind in field_kinds(Everything).items():
        if kind in ("scalar", "tuple"):
            assert getattr(back, name) == getattr(value, name)
            assert type(getattr(back, name)) is type(getattr(value, name))


@settings(max_examples=50, deadline=None)
@given(everything())
def test_encoding_what_was_decoded_gives_the_same_bytes(value: Everything) -> None:
    blob = encode(value)
    assert encode(decode(Everything, blob)) == blob


@settings(max_examples=100, deadline=None)
@given(everything(), st.data())
def test_a_message_cut_short_or_run_on_is_a_wire_error(value: Everything, data: st.DataObject) -> None:
    blob = encode(value)
    with pytest.raises(WireError):
        decode(Everything, blob[: data.draw(st.integers(0, len(blob) - 1))])
    with pytest.raises(WireError):
        decode(Everything, blob + b"\0")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_message_with_any_byte_changed_is_decoded_or_a_wire_error(data: st.DataObject) -> None:
    blob = bytearray(encode(Everything(torch.ones(2), {"a": torch.zeros(1)}, 1, 1.0, "n", True, (1,), (1.0,), ("x",), (True,))))
    blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        decode(Everything, bytes(blob))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_wire_error(blob: bytes) -> None:
    with pytest.raises(WireError):
        decode(Nothing, blob)
    with pytest.raises(WireError):
        decode(Nothing, struct.pack("<Q", len(blob)) + blob)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(JSON_VALUES)
def test_foreign_json_in_the_right_place_is_a_wire_error(value: Any) -> None:
    with pytest.raises(WireError):
        decode(Small, raw_message(value))
    with pytest.raises(WireError):
        decode(Small, raw_message({"type": "Small", "version": WIRE_VERSION, "fields": value}))
    with pytest.raises(WireError):
        decode(Weighted, raw_message({"type": "Weighted", "version": WIRE_VERSION, "fields": {"weight": value, "names": value}}))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"__metadata__":' * 50_000, '{"__metadata__":{"message":"' + "[" * 100_000 + '"}}'])
def test_json_nested_without_end_is_a_wire_error(text: str) -> None:
    with pytest.raises(WireError):
        decode(Nothing, struct.pack("<Q", len(text)) + text.encode())


def test_a_number_too_large_for_a_float_is_a_wire_error() -> None:
    text = '{"type":"Weighted","version":1,"fields":{"names":[],"weight":1' + "0" * 400 + "}}"
    with pytest.raises(WireError, match=r"Weighted\.weight"):
        decode(Weighted, safetensors.torch.save({}, metadata={"message": text}))


@pytest.mark.parametrize(
    ("table", "tensors", "said"),
    [
        ({"type": "Other", "version": 1, "fields": {"num_samples": 1}}, {}, "'Other'.*expected 'Small'"),
        ({"type": "Small", "version": 2, "fields": {"num_samples": 1}}, {}, "version 2, expected 1"),
        ({"type": "Small", "fields": {"num_samples": 1}}, {}, "version None"),
        ({"type": "Small", "version": 1, "fields": {}}, {}, "expected .'num_samples'"),
        ({"type": "Small", "version": 1, "fields": {"num_samples": 1, "more": 2}}, {}, "'more'"),
        ({"type": "Small", "version": 1, "fields": 5}, {}, "got int"),
        ({"type": "Small", "version": 1, "fields": {"num_samples": True}}, {}, "got bool, expected int"),
        ({"type": "Small", "version": 1, "fields": {"num_samples": 1.0}}, {}, "got float, expected int"),
        ({"type": "Small", "version": 1, "fields": {"num_samples": "1"}}, {}, "got str, expected int"),
        ({"type": "Small", "version": 1, "fields": {"num_samples": 1}}, {"other/a": torch.ones(1)}, "unknown tensors .'other/a'"),
        ({"type": "Small", "version": 1, "fields": {"num_samples": 1}}, {"shared": torch.ones(1)}, "unknown tensors .'shared'"),
        ({"type": "Small", "version": 1, "fields": {"num_samples": 1}}, {"shared2/a": torch.ones(1)}, "unknown tensors"),
    ],
)
def test_another_type_version_or_name_is_a_wire_error_that_says_so(table: Any, tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode(Small, raw_message(table, tensors))


def test_a_missing_tensor_is_a_wire_error_that_names_it() -> None:
    table = {"type": "OneTensor", "version": 1, "fields": {}}
    with pytest.raises(WireError, match=r"OneTensor\.weight"):
        decode(OneTensor, raw_message(table))


@message
class OneTensor:
    """A single tensor."""

    weight: Tensor


def test_a_nan_keeps_its_payload() -> None:
    weight = torch.tensor([0x7FC0DEAD, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert bits(decode(OneTensor, encode(OneTensor(weight))).weight) == bits(weight)


def test_infinite_and_not_a_number_scalars_come_back() -> None:
    assert math.isnan(decode(Weighted, encode(Weighted(math.nan))).weight)
    assert decode(Weighted, encode(Weighted(-math.inf))).weight == -math.inf
    assert math.copysign(1, decode(Weighted, encode(Weighted(-0.0))).weight) == -1


def test_views_transposes_expansions_and_parameters_are_written_as_their_values() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base.clone())
    shared = {"view": base[1:], "transposed": base.T, "expanded": base[0, :1].expand(5), "parameter": parameter, "slice": base[:, 1]}
    back = decode(Small, encode(Small(shared, 1))).shared
    for name, tensor in shared.items():
        assert torch.equal(back[name], tensor.detach())
    assert not back["parameter"].requires_grad


def test_tensors_that_share_memory_are_written_each_for_itself() -> None:
    weight = torch.arange(3.0)
    back = decode(Small, encode(Small({"tied": weight, "weight": weight, "flat": weight.view(3, 1)}, 1))).shared
    back["tied"].zero_()
    assert back["weight"].tolist() == [0, 1, 2]
    assert back["flat"].shape == (3, 1)


def test_a_decoded_message_shares_no_memory_with_the_bytes_or_with_another_one() -> None:
    blob = encode(OneTensor(torch.ones(4)))
    before = bytes(bytearray(blob))
    decode(OneTensor, blob).weight.zero_()
    assert blob == before
    assert decode(OneTensor, blob).weight.tolist() == [1, 1, 1, 1]


def test_the_order_of_a_mapping_does_not_change_the_bytes() -> None:
    names = [f"layer.{i}" for i in range(20)]
    tensors = {name: torch.full((2,), float(i)) for i, name in enumerate(names)}
    other = {name: tensors[name] for name in reversed(names)}
    assert encode(Small(tensors, 3)) == encode(Small(other, 3))


def test_a_whole_number_in_a_float_field_gives_the_bytes_of_the_float() -> None:
    assert encode(Weighted(1)) == encode(Weighted(1.0))
    assert type(decode(Weighted, encode(Weighted(1))).weight) is float


_WRITE = """
import sys, torch
from fibecfed.core.wire import Tensors, encode, message

@message
class Update:
    shared: Tensors
    mask: torch.Tensor
    weight: float
    names: tuple[str, ...]

shared = {f"layer.{i}.{side}": torch.arange(6, dtype=dtype).reshape(2, 3) + i
          for i in range(4) for side, dtype in (("A", torch.float32), ("B", torch.bfloat16), ("é", torch.int64))}
sys.stdout.buffer.write(encode(Update(shared, torch.tensor([True, False]), 0.1, ("b", "a"))))
"""


def test_equal_messages_give_equal_bytes_in_separate_processes() -> None:
    def run(seed: str) -> bytes:
        return subprocess.run([sys.executable, "-c", _WRITE], env=_environment(seed), check=True, capture_output=True).stdout

    first, second = run("1"), run("2")
    assert len(first) > 400
    assert first == second


def _environment(hash_seed: str) -> dict[str, str]:
    return {"PYTHONPATH": ":".join(path for path in sys.path if path), "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}


@settings(max_examples=200, deadline=None)
@given(everything())
def test_the_size_of_a_message_is_known_from_its_shapes_alone(value: Everything) -> None:
    shapes = {field: {name: tensor.to("meta") for name, tensor in tensors.items()} for field, tensors in tensors_of(value).items()}
    bare = dataclasses.replace(value, tensor=shapes["tensor"][""], tensors=shapes["tensors"])  # pyright: ignore[reportArgumentType]
    assert encoded_size(bare) == encoded_size(value) == len(encode(value))


def test_the_size_of_a_message_too_large_to_be_made_is_known() -> None:
    small, large = (Small({"w": torch.empty(n, dtype=torch.bfloat16, device="meta")}, 1) for n in (10, 10**12))
    assert encoded_size(small) == len(encode(Small({"w": torch.zeros(10, dtype=torch.bfloat16)}, 1)))
    assert 2 * 10**12 < encoded_size(large) - encoded_size(small) + 20 <= 2 * 10**12 + 32


@settings(max_examples=50, deadline=None)
@given(everything())
def test_payload_and_overhead_add_up_to_the_length_of_the_bytes(value: Everything) -> None:
    sizes = payload_bytes(value)
    assert sum(sizes.values()) == len(encode(value))
    assert sizes["tensor"] == len(bits(value.tensor)[2])
    assert sizes["tensors"] == sum(len(bits(tensor)[2]) for tensor in value.tensors.values())


@pytest.mark.parametrize(
    "value",
    [
        Weighted("1.0"),  # pyright: ignore[reportArgumentType]
        Weighted(True),
        Weighted(1.0, (1,)),  # pyright: ignore[reportArgumentType]
        Small({}, 1.5),  # pyright: ignore[reportArgumentType]
        Small({}, True),
        Small({"a": [1.0]}, 1),  # pyright: ignore[reportArgumentType]
        OneTensor(None),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_value_that_is_not_of_its_fields_type_is_refused_where_it_is_written(value: Any) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        encode(value)


def test_a_field_that_cannot_travel_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"Bad\.table"):

        @message
        class Bad:
            table: dict[str, int]

    with pytest.raises(TypeError, match="not a message class"):
        encode(3)


def test_a_message_describes_its_fields_in_words() -> None:
    assert describe(Small) == [("shared", "named tensors"), ("num_samples", "int")]
    assert describe(Weighted) == [("weight", "float"), ("names", "list of str")]


@pytest.mark.parametrize("name", ["w", "w" * 2**16])  # a header of the size that is kept, and a larger one
def test_a_header_that_was_read_before_is_checked_like_a_new_one(name: str) -> None:
    blob = encode(Small({name: torch.arange(3.0)}, 5))
    other = encode(Small({name: torch.arange(3.0) + 1}, 5))
    for _ in range(2):
        first, second = decode(Small, blob), decode(Small, other)
        assert first.shared[name].tolist() == [0, 1, 2] and second.shared[name].tolist() == [1, 2, 3]
        assert first.num_samples == second.num_samples == 5
        with pytest.raises(WireError, match="type 'Small', expected 'Weighted'"):
            decode(Weighted, blob)
        with pytest.raises(WireError, match="take 12 bytes, got 11"):
            decode(Small, blob[:-1])
