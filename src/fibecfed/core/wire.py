"""Messages: frozen dataclasses that become bytes and come back. Safetensors, never pickle.

Layout: one safetensors file. Each tensor is stored as `field/name`; everything else stands as JSON under the single metadata
key `message` (with two keys safetensors writes other bytes in every process). Equal messages give equal bytes.
"""

# pyright: standard
# The rest of core is checked strictly; here values come out of JSON and annotations, and are checked when they do.

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

from torch import Tensor

from . import tensor_file

WIRE_VERSION = 1
"""Written into every message; another number is rejected."""

Tensors = Mapping[str, Tensor]
"""A field that holds named tensors."""

_SCALARS = (int, float, str, bool)
M = TypeVar("M")


class WireError(ValueError):
    """Bytes that are not the message they should be."""


@dataclass_transform(frozen_default=True)
def message(cls: type[M]) -> type[M]:
    """Make `cls` a frozen dataclass that can go on the wire.

    Fields may be `Tensors`, `Tensor`, int, float, str, bool, or a tuple of one of the last four. A plain field at its default is not
    written, so that a class can gain a field and still read what was written before.

    Raises:
        TypeError: at import, for a field of any other type.

    >>> import torch
    >>> @message
    ... class Hello:
    ...     '''A handshake.'''
    ...     words: tuple[str, ...]
    ...     weight: Tensor
    >>> blob = encode(Hello(("good", "day"), torch.ones(2)))
    >>> decode(Hello, blob).words
    ('good', 'day')
    """
    made = dataclasses.dataclass(frozen=True, eq=False)(cls)
    scope = sys._getframe(1)  # annotations are strings: they mean what they mean where the class is written
    hints = typing.get_type_hints(made, globalns=scope.f_globals, localns=scope.f_locals)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(made)}  # pyright: ignore[reportArgumentType]
    for name, hint in fields.items():
        if _kind(hint) is None:
            raise TypeError(f"{cls.__name__}.{name}: a field of type {hint} cannot go on the wire")
    made.__wire_fields__ = fields  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _hints(cls: type) -> dict[str, Any]:
    try:
        return cls.__wire_fields__  # pyright: ignore[reportAttributeAccessIssue]
    except AttributeError:
        raise TypeError(f"{cls.__name__} is not a message class; put @message before it") from None


def _kind(hint: Any) -> str | None:
    if hint is Tensor:
        return "tensor"
    if hint == Tensors:
        return "tensors"
    if hint in _SCALARS:
        return "scalar"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis and arguments[0] in _SCALARS:
        return "tuple"
    return None


class _Field(typing.NamedTuple):
    """A field of a message class.

    Attributes:
        expected: type of its value, or of each value of a tuple.
        default: as it stands in the header; MISSING if there is none.
    """

    name: str
    kind: str
    expected: Any
    default: Any


@functools.cache
def _fields(cls: type) -> tuple[_Field, ...]:
    hints = _hints(cls)
    defaults = {field.name: _plain(field.default) for field in dataclasses.fields(cls)}
    inner = {name: typing.get_args(hint)[0] if _kind(hint) == "tuple" else hint for name, hint in hints.items()}
    return tuple(_Field(name, typing.cast("str", _kind(hint)), inner[name], defaults[name]) for name, hint in hints.items())


@functools.cache
def field_kinds(cls: type) -> Mapping[str, str]:
    """Field name -> "tensor", "tensors", "scalar" or "tuple", in the order of declaration."""
    return {field.name: field.kind for field in _fields(cls)}


def plain_value(cls: type, name: str) -> Any:
    """A value of a plain field, for a message whose size alone is of interest."""
    hint = _hints(cls)[name]
    return () if _kind(hint) == "tuple" else hint(1)


def encode(value: Any, after: bytes = b"") -> bytes:
    """The bytes of a message, in one copy. Tensors are written as they are (bfloat16 too), from any device.

    Args:
        after: put behind the message.

    Raises:
        TypeError: a field's value is not of the field's type.
    """
    tensors, header = _parts(value)
    return tensor_file.write(tensors, {"message": header}, after)


def encoded_size(value: Any) -> int:
    """`len(encode(value))`, from shapes and dtypes alone: its tensors may be on the meta device.

    Raises:
        TypeError: as `encode`.
    """
    tensors, header = _parts(value)
    return tensor_file.layout(tensors, {"message": header}).size


def _parts(value: Any) -> tuple[dict[str, Tensor], str]:
    """The tensors of a message by their names in the file, and the text that holds everything else."""
    cls = type(value)
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, kind, expected, default in _fields(cls):
        item = getattr(value, name)
        if kind == "tensor":
            tensors[f"{name}/"] = item
        elif kind == "tensors":
            tensors.update({f"{name}/{key}": tensor for key, tensor in item.items()})
        else:
            item = [_written(cls, name, expected, entry) for entry in item] if kind == "tuple" else _written(cls, name, expected, item)
            if default is dataclasses.MISSING or item != default:
                plain[name] = item
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{cls.__name__}.{key}: got {type(tensor).__name__}, expected a tensor")
    return tensors, f'{{"fields":{_json(plain) if plain else "{}"},"type":{_json(cls.__name__)},"version":{WIRE_VERSION}}}'


_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def _written(cls: type, name: str, expected: type, value: Any) -> Any:
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # 1 and 1.0 are equal, so their bytes must be
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise TypeError(f"{cls.__name__}.{name}: got {type(value).__name__}, expected {expected.__name__}")
    return value


def decode(cls: type[M], blob: bytes | memoryview, copy: bool = True) -> M:
    """The message of class `cls` that `encode` wrote.

    Args:
        copy: its tensors have memory of their own. If not, they lie on `blob`, which they keep alive, and nobody may write into them.

    Raises:
        WireError: not such bytes, another message class or version, fields missing, unknown or of another type.
    """
    try:
        header, data = tensor_file.split(blob)
        plain, fields, entries = (_kept if len(header) <= _KEPT_BYTES else _understood)(cls, header)
        tensors = tensor_file.views(data, entries)
    except WireError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WireError(f"{len(blob)} bytes that are not a fibecfed message: {error}") from None
    if copy:
        tensors = [tensor.clone() for tensor in tensors]
    values: dict[str, Any] = {}
    for name, places in fields:
        values[name] = tensors[places] if isinstance(places, int) else {key: tensors[place] for key, place in places}
    return cls(**plain, **values)


class _Understood(typing.NamedTuple):
    """What a header says, for a message class.

    Attributes:
        plain: the fields without tensors.
        fields: each field with tensors: the place of its one among `entries`, or the names and places of its named ones.
    """

    plain: Mapping[str, Any]
    fields: Sequence[tuple[str, int | Sequence[tuple[str, int]]]]
    entries: Sequence[tensor_file.Entry]


_KEPT_BYTES = 2**15


def _understood(cls: type, header: bytes) -> _Understood:
    """What there is in a message, all of it but the numbers of its tensors.

    Raises:
        WireError: as `decode`.
        ValueError, KeyError, TypeError, RuntimeError: it is no header of a message.
    """
    metadata, entries = tensor_file.parse(header)
    table = json.loads(metadata["message"])
    if not isinstance(table, dict):
        raise WireError("the header of the message is not a table")
    if table.get("type") != cls.__name__:
        raise WireError(f"got a message of type {table.get('type')!r}, expected {cls.__name__!r}")
    if table.get("version") != WIRE_VERSION:
        raise WireError(f"got wire version {table.get('version')!r}, expected {WIRE_VERSION}; use the same fibecfed on both sides")
    plain = table.get("fields")
    if not isinstance(plain, dict):
        raise WireError(f"{cls.__name__}: got {type(plain).__name__} for the plain fields, expected a table")
    own = [field for field in _fields(cls) if field.kind in ("scalar", "tuple")]
    plain = {field.name: field.default for field in own if field.default is not dataclasses.MISSING} | plain
    if plain.keys() != (expected := {field.name for field in own}):
        raise WireError(f"{cls.__name__}: got plain fields {sorted(plain)}, expected {sorted(expected)}")
    values: dict[str, Any] = {}
    places = {entry.name: place for place, entry in enumerate(entries)}
    fields: list[tuple[str, int | Sequence[tuple[str, int]]]] = []
    for name, kind, inner, _ in _fields(cls):
        prefix = f"{name}/"
        if kind == "tensors":
            fields.append((name, tuple((key[len(prefix) :], places.pop(key)) for key in sorted(places) if key.startswith(prefix))))
        elif kind == "tensor":
            if prefix not in places:
                raise WireError(f"{cls.__name__}.{name}: the tensor is missing")
            fields.append((name, places.pop(prefix)))
        elif kind == "tuple":
            if not isinstance(plain[name], list):
                raise WireError(f"{cls.__name__}.{name}: got {type(plain[name]).__name__}, expected a list")
            values[name] = tuple(_scalar(cls, name, inner, item) for item in plain[name])
        else:
            values[name] = _scalar(cls, name, inner, plain[name])
    if places:
        raise WireError(f"{cls.__name__}: unknown tensors {sorted(places)[:5]}")
    return _Understood(values, fields, entries)


_kept = functools.lru_cache(maxsize=64)(_understood)
"""Small headers are understood once: all clients get the same message, and answers often have the same header too."""


def _scalar(cls: type, name: str, expected: type, value: Any) -> Any:
    if type(value) is not expected:
        raise WireError(f"{cls.__name__}.{name}: got {type(value).__name__}, expected {expected.__name__}")
    return value


def payload_bytes(value: Any, length: int | None = None) -> dict[str, int]:
    """Bytes of tensor data by field, and what the rest of the encoded message takes as `overhead`.

    Args:
        length: bytes that were sent, where they are known already; else the message is encoded to count them.
    """
    sizes = {field: sum(tensor.nbytes for tensor in tensors.values()) for field, tensors in tensors_of(value).items()}
    sizes["overhead"] = (len(encode(value)) if length is None else length) - sum(sizes.values())
    return sizes


def tensors_of(value: Any) -> dict[str, dict[str, Tensor]]:
    """Field -> its tensors by name, for each field of a message that holds tensors. A single tensor has the name ""."""
    return {
        name: dict(getattr(value, name)) if kind == "tensors" else {"": getattr(value, name)}
        for name, kind, _, _ in _fields(type(value))
        if kind in ("tensors", "tensor")
    }


def describe(cls: type) -> list[tuple[str, str]]:
    """(field, type as a reader would write it) for each field of a message class."""
    words = {"tensor": "tensor", "tensors": "named tensors"}
    rows = []
    for name, kind, expected, _ in _fields(cls):
        if kind == "tuple":
            rows.append((name, f"list of {expected.__name__}"))
        else:
            rows.append((name, words.get(kind) or getattr(expected, "__name__", str(expected))))
    return rows
