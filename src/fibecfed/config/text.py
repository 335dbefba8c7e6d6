"""Option tables as text: what each key takes, in words, and commented TOML. Everything is read from the classes; nothing is said twice."""

from __future__ import annotations

import difflib
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import tomlkit
from pydantic.fields import FieldInfo

from ..core.options import Options

_WIDTH = 110


@dataclass(frozen=True)
class ConfigKey:
    """One key that a configuration may hold.

    Attributes:
        name: dotted, e.g. "method.layers.rule".
        expected: what it takes, in words.
        default: its value where it is not given.
        description: as in the option table.
        table: first paragraph of the table's docstring.
        takes_text: its type is text, so that a command line gives it as written.
        takes_texts: its type is a list of texts, so that a command line may give it without quotes, with commas between.
        kind: the method it belongs to; None for all tables but [method].
    """

    name: str
    expected: str
    default: Any
    description: str
    table: str
    takes_text: bool
    takes_texts: bool
    kind: str | None = None


def keys_of(options: type[Options], prefix: str = "", kind: str | None = None) -> Iterator[ConfigKey]:
    """The keys of a table and of the tables in it, in the order of TOML: a table's own keys before those of the tables in it."""
    about = " ".join((options.__doc__ or "").split("\n\n")[0].split())
    nested: list[tuple[str, type[Options]]] = []
    for name, field in options.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Options):
            nested.append((f"{prefix}{name}.", field.annotation))
            continue
        plain = _without_none(field.annotation)
        default = field.get_default(call_default_factory=True, validated_data={})
        yield ConfigKey(
            prefix + name, expected(field), default, field.description or "", about, plain == (str,), plain == (tuple[str, ...],), kind
        )
    for inner, table in nested:
        yield from keys_of(table, inner, kind)


def expected(field: FieldInfo) -> str:
    """What a field takes, in words: "an integer, at least 1"."""
    words = [_words(part) for part in _without_none(field.annotation)]
    return _bounded((", or " if any(one.startswith("a list") or ", " in one for one in words[:-1]) else " or ").join(words), field.metadata)


def _bounded(words: str, limits: Iterable[Any]) -> str:
    bounds: list[str] = []
    for limit in limits:
        match limit:
            case annotated_types.Ge():
                bounds.append(f"at least {limit.ge}")
            case annotated_types.Gt():
                bounds.append(f"above {limit.gt}")
            case annotated_types.Le():
                bounds.append(f"at most {limit.le}")
            case annotated_types.Lt():
                bounds.append(f"below {limit.lt}")
            case _:
                pass
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _without_none(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for part in get_args(annotation) if part is not type(None))
    return (annotation,)


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        values = [show(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if get_origin(annotation) is Annotated:
        inner, *limits = get_args(annotation)
        return _bounded(_words(inner), [one for limit in limits for one in getattr(limit, "metadata", [limit])])
    if get_origin(annotation) is tuple:
        one, comma, limits = _words(get_args(annotation)[0]).partition(", ")
        return f"a list of {one.partition(' ')[2]}s" + (f", each {limits}" if comma else "")
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return names.get(annotation, str(annotation))


def show(value: Any) -> str:
    """A value as TOML writes it; a table in short."""
    if isinstance(value, Mapping):
        return "a table"
    return tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string()


def commented_toml(title: str, keys: Sequence[ConfigKey], values: Mapping[str, Any], *, off: str = "{key}: not set") -> str:
    """TOML text of the values of `keys`, each with its description and what it takes above it.

    Args:
        title: first lines, written as a comment.
        values: dotted name -> value; None (TOML has no such value) gives a comment instead of a line.
        off: that comment; {key} and {expected} are filled in.
    """
    lines = _comment(title)
    table = ""
    for key in keys:
        above, _, leaf = key.name.rpartition(".")
        if above != table:
            table = above
            lines += ["", f"[{table}]", *_comment(key.table)]
        lines += ["", *_comment(f"{key.description} ({key.expected})")]
        value = values[key.name]
        lines.append(f"# {off.format(key=leaf, expected=key.expected)}" if value is None else f"{leaf} = {show(value)}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, _WIDTH)]


def nearest(name: str, names: Iterable[str], likeness: float = 0.6) -> str | None:
    """The name that `name` is most likely a misspelling of, or None.

    Args:
        likeness: how alike two names must be at least, from 0 to 1.
    """
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=likeness)
    return lower[found[0]] if found else None
