"""All mistakes of a table in one go, each as a sentence: what was got, what was expected, what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..core.options import Options, entries_of
from ..methods import presets
from ..methods.catalogue import BROKEN, METHODS
from ..methods.defaults import follow
from .kinds import default_partition
from .model import DEFAULT_KIND, OPTIONS, Config, keys, leaves
from .rules import contradictions
from .text import nearest, show


def examine(table: Mapping[str, Any]) -> tuple[Config | None, dict[str, str]]:
    """A configuration, or all mistakes by key.

    A key with a mistake is taken out and the rest examined again, so that one mistake does not hide another.
    """
    rest: dict[str, Any] = presets.copied(table)
    mistakes: dict[str, str] = {}
    rest.setdefault("data", {})
    _derive(rest)
    method = rest.setdefault("method", {})
    if isinstance(method, dict) and method.setdefault("kind", DEFAULT_KIND) not in list(OPTIONS):
        mistakes["method.kind"] = _unknown_kind(method["kind"])
        rest["method"] = {"kind": DEFAULT_KIND}
    for name, value in list(leaves(rest)):
        strange = _not_json(value)
        if strange is not None:
            mistakes[name] = f"{name}: got {strange} (a {type(strange).__name__}), which no key accepts; put strings in quotes"
            delete(rest, name)
    by_preset = presets.fill(rest)
    follow(rest)
    config: Config | None = None
    general: list[str] = []
    while True:
        try:
            config = Config.model_validate_json(json.dumps(rest))
            break
        except ValidationError as error:
            again = False
            for line in error.errors(include_url=False):
                name = _name(line["loc"])
                if line["type"] == "value_error":
                    # The whole configuration's own rules are looked at below, even where this check never got so far.
                    texts = str(line.get("ctx", {})["error"]).splitlines() if name else []
                    general += [text if text.startswith(name) else f"{name}: {text}" for text in texts]
                else:
                    if name not in mistakes:
                        mistakes[name] = _sentence(name, line, rest, mistakes)
                    again |= delete(rest, name)
                    rest.setdefault("data", {})
            if not again:
                general += contradictions(_lenient(Config, rest))
                break
    for text in dict.fromkeys(general):
        # What follows from a key that is reported already is no second mistake.
        if not any(f"`{name}`" in text or text.startswith(f"{name}:") for name in mistakes):
            mistakes[text] = text + _from_preset(text, by_preset, rest)
    reported = {name: text for name, text in mistakes.items() if text}
    return (None if reported else config), reported


def _derive(table: dict[str, Any]) -> None:
    """Set what follows from other keys where it is not given itself; a table of patterns becomes the list of its entries."""
    if isinstance(model := table.get("model"), dict):
        model.update({name: entries_of(model[name]) for name in ("rank_pattern", "alpha_pattern") if name in model})
    if isinstance(privacy := table.get("privacy"), dict) and "keys" in privacy:
        privacy["keys"] = entries_of(privacy["keys"])
    data, federation = table["data"], table.setdefault("federation", {})
    if not isinstance(data, dict) or not isinstance(federation, dict):
        return  # reported as such
    if (partition := default_partition(data)) is not None:
        federation.setdefault("partition", partition)


def _from_preset(text: str, by_preset: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """What is added to a sentence about keys that the user did not set."""
    meant = [f"{name} = {show(value)}" for name, value in by_preset.items() if f"`{name}`" in text or text.startswith(f"{name}:")]
    return f" ({' and '.join(meant)} by {presets.KEY} = {show(get(table, presets.KEY))})" if meant else ""


def _not_json(value: Any) -> Any:
    """The first thing in a value that JSON has no word for (TOML's dates and times), or None."""
    if isinstance(value, list | tuple | Mapping):
        inner = value.values() if isinstance(value, Mapping) else value
        return next((found for found in map(_not_json, inner) if found is not None), None)
    return None if isinstance(value, str | bool | int | float) else value


def _lenient(options: type[Options], table: Mapping[str, Any]) -> Any:
    """The options without the checks between keys. The values of single keys have been checked before."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        inner = OPTIONS[value["kind"]] if name == "method" else options.model_fields[name].annotation
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, Options):
            values[name] = _lenient(inner, value)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return options.model_construct(**values)


def _name(loc: tuple[str | int, ...]) -> str:
    if loc[:1] == ("method",):
        loc = (loc[0], *loc[2:])  # the second is the kind, by which pydantic chose the class
    # where a key takes values of several types, the last says which of them was tried
    return ".".join(part for part in loc if isinstance(part, str) and part != "bool" and not part.lstrip("`").startswith(_TYPES))


_TYPES = ("tuple[", "literal[", "constrained-")


def _sentence(name: str, line: Any, table: Mapping[str, Any], mistakes: dict[str, str]) -> str:
    kind = table["method"]["kind"] if isinstance(table.get("method"), dict) else DEFAULT_KIND
    known = {key.name: key for key in keys(kind)}
    got = get(table, name)
    if line["type"] == "extra_forbidden":
        return _unknown(name, got, kind, mistakes)
    if name not in known:
        return f"{name}: got {show(got)}, expected a table; write [{name}] and its keys below it"
    key = known[name]
    example = "leave it out" if key.default is None else f"leave it out for the default, {show(key.default)}"
    near = nearest(got, re.findall(r'"([^"]*)"', key.expected)) if isinstance(got, str) else None
    return f"{name}: got {show(got)}, expected {key.expected}; " + (f'did you mean "{near}"?' if near else f"fix it, or {example}")


def _unknown(name: str, got: Any, kind: str, mistakes: dict[str, str]) -> str:
    known = [key.name for key in keys(kind)]
    names = list(dict.fromkeys([*known, *(k.rpartition(".")[0] for k in known if "." in k)]))
    above, _, leaf = name.rpartition(".")
    beside = [other for other in names if other.rpartition(".")[0] == above]
    what = "table" if isinstance(got, Mapping) else "key"
    owners = [other for other in METHODS if any(key.name == name or key.name.startswith(f"{name}.") for key in keys(other))]
    if owners:
        of = ", ".join(owners)
        return f"{name}: got a {what} of {of}, which method.kind = {show(kind)} does not have; remove it, or change method.kind"
    # Most likely a misspelling beside its table's other keys, else in a table near to it, else a key that belongs to another table, where
    # the names have to be nearly the same.
    near_it = [other for other in known if other.partition(".")[0] == name.partition(".")[0]]
    for candidates, likeness in ((beside, 0.6), (near_it, 0.6), (known, 0.85)):
        last = {other.rpartition(".")[2]: other for other in reversed(candidates)}
        near = last.get(nearest(leaf, last, likeness) or "")
        if near:
            mistakes.setdefault(near, "")  # what its absence leads to is no second mistake
            return f"{name}: got an unknown {what}; did you mean `{near}`?"
    return f"{name}: got an unknown {what}, expected one of {', '.join(beside)}"


def _unknown_kind(kind: Any) -> str:
    if isinstance(kind, str) and kind in BROKEN:
        return f"method.kind: got {show(kind)}: {BROKEN[kind]}"
    near = nearest(kind, METHODS) if isinstance(kind, str) else None
    ask = f'did you mean "{near}"?' if near else "choose one (`fibecfed list methods`)"
    return f"method.kind: got {show(kind)}, expected one of {', '.join(map(show, METHODS))}; {ask}"


def get(table: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted key."""
    value: Any = table
    for part in name.split("."):
        value = value[part]
    return value


def delete(table: dict[str, Any], name: str) -> bool:
    """Takes a key out of a table; says whether it was there."""
    *above, leaf = name.split(".")
    inner: Any = table
    for part in above:
        inner = inner.get(part) if isinstance(inner, dict) else None
    return isinstance(inner, dict) and inner.pop(leaf, None) is not None
