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
from collections.abc import Mapping
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


@functools.cache
def _defaults(cls: type) -> Mapping[str, Any]:
    """Plain field -> its default as it stands in the header, for those that have one."""
    fields = dataclasses.fields(cls)
    return {field.name: _plain(field.default) for field in fields if field.default is not dataclasses.MISSING}


@functools.cache
def field_kinds(cls: type) -> Mapping[str, str]:
    """Field name -> "tensor", "tensors", "scalar" or "tuple", in the order of declaration."""
    return {name: typing.cast("str", _kind(hint)) for name, hint in _hints(cls).items()}


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
    hints = _hints(cls)
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    defaults = _defaults(cls)
    for name, kind in field_kinds(cls).items():
        item = getattr(value, name)
        if kind == "tensor":
            tensors[f"{name}/"] = item
        elif kind == "tensors":
            tensors.update({f"{name}/{key}": tensor for key, tensor in item.items()})
        elif kind == "tuple":
            inner = typing.get_args(hints[name])[0]
            plain[name] = [_written(cls, name, inner, entry) for entry in item]
        else:
            plain[name] = _written(cls, name, hints[name], item)
    plain = {name: item for name, item in plain.items() if name not in defaults or item != defaults[name]}
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{cls.__name__}.{key}: got {type(tensor).__name__}, expected a tensor")
    return tensors, _compact({"type": cls.__name__, "version": WIRE_VERSION, "fields": plain})


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


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
    header, tensors = _open(blob)
    if copy:
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if header.get("type") != cls.__name__:
        raise WireError(f"got a message of type {header.get('type')!r}, expected {cls.__name__!r}")
    if header.get("version") != WIRE_VERSION:
        raise WireError(f"got wire version {header.get('version')!r}, expected {WIRE_VERSION}; use the same fibecfed on both sides")
    plain = header.get("fields")
    kinds = field_kinds(cls)
    expected = {name for name, kind in kinds.items() if kind in ("scalar", "tuple")}
    if not isinstance(plain, dict):
        raise WireError(f"{cls.__name__}: got {type(plain).__name__} for the plain fields, expected a table")
    plain = {name: default for name, default in _defaults(cls).items() if name in expected} | plain
    if plain.keys() != expected:
        raise WireError(f"{cls.__name__}: got plain fields {sorted(plain)}, expected {sorted(expected)}")
    values: dict[str, Any] = {}
    hints = _hints(cls)
    for name, kind in kinds.items():
        prefix = f"{name}/"
        if kind == "tensors":
            values[name] = {key[len(prefix) :]: tensors.pop(key) for key in sorted(tensors) if key.startswith(prefix)}
        elif kind == "tensor":
            if prefix not in tensors:
                raise WireError(f"{cls.__name__}.{name}: the tensor is missing")
            values[name] = tensors.pop(prefix)
        elif kind == "tuple":
            inner = typing.get_args(hints[name])[0]
            if not isinstance(plain[name], list):
                raise WireError(f"{cls.__name__}.{name}: got {type(plain[name]).__name__}, expected a list")
            values[name] = tuple(_scalar(cls, name, inner, item) for item in plain[name])
        else:
            values[name] = _scalar(cls, name, hints[name], plain[name])
    if tensors:
        raise WireError(f"{cls.__name__}: unknown tensors {sorted(tensors)[:5]}")
    return cls(**values)


def _scalar(cls: type, name: str, expected: type, value: Any) -> Any:
    if type(value) is not expected:
        raise WireError(f"{cls.__name__}.{name}: got {type(value).__name__}, expected {expected.__name__}")
    return value


def _open(blob: bytes | memoryview) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        metadata, tensors = tensor_file.read(blob)
        header = json.loads(metadata["message"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise WireError(f"{len(blob)} bytes that are not a fibecfed message: {error}") from None
    if not isinstance(header, dict):
        raise WireError("the header of the message is not a table")
    return header, tensors


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
    found: dict[str, dict[str, Tensor]] = {}
    for name, kind in field_kinds(type(value)).items():
        item = getattr(value, name)
        if kind == "tensors":
            found[name] = dict(item)
        elif kind == "tensor":
            found[name] = {"": item}
    return found


def describe(cls: type) -> list[tuple[str, str]]:
    """(field, type as a reader would write it) for each field of a message class."""
    words = {"tensor": "tensor", "tensors": "named tensors"}
    rows = []
    for name, kind in field_kinds(cls).items():
        hint = _hints(cls)[name]
        if kind == "tuple":
            rows.append((name, f"list of {typing.get_args(hint)[0].__name__}"))
        else:
            rows.append((name, words.get(kind) or getattr(hint, "__name__", str(hint))))
    return rows
