"""From TOML and `key=value` pairs to a `Config`.

Relative paths (`data.path`, `data.test_path`, `data.root`, and `model.name` where it names a file or folder) are taken from the current
directory, not from the file's, and recorded as absolute ones, so that a run can be resumed from anywhere.
"""

from __future__ import annotations

import logging
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import TOO_LONG, expanded, kind_of
from ..core.terminal import one_line
from ..data.options import template_text
from ..methods.catalogue import BROKEN, METHODS
from ..methods.defaults import FOLLOWING, follow
from ..methods.presets import KEY, PRESETS, copied, fill
from ..models.packaged import PACKAGED
from .mistakes import delete, examine, get
from .model import DEFAULT_KIND, OPTIONS, Config, keys, leaves
from .selection import without_effect
from .text import ConfigKey, show

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What `load` found.

    Attributes:
        notes: sentences for the user: which keys a change of `method.kind` dropped, which method of the same name is not the one used.
    """

    config: Config
    notes: tuple[str, ...] = ()


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Reads a TOML file and lays `key=value` pairs over it, later ones over earlier ones.

    A value is read as TOML, else as text; a key whose type is text takes it as written. Nothing behind the `=` takes the file's value
    out, so that the key has its default. A pair for `method.kind` drops the file's other
    `method.*` keys that the new kind does not have, one for `method.preset` those that the preset stands for; the notes say which.

    Raises:
        UserError: naming every mistake of the file and the pairs.
    """
    table = read_toml(path)
    if is_comparison(table):
        way_out = f"run it with: fibecfed compare {shlex.quote(str(path))}"
        raise UserError(f"{path}: got the file of a comparison, expected that of a single run; {way_out}")
    pairs, mistakes = read_pairs(overrides)
    original = copied(table)
    kind = pairs.get("method.kind")
    notes = [] if kind is None else _drop_foreign(table, read_value(kind) if kind.strip() else DEFAULT_KIND)
    notes += _drop_preset(table, pairs)
    notes += _drop_followed(table, original, pairs)
    for name, text in sorted(pairs.items(), key=lambda pair: pair[0] != "method.kind"):  # which keys there are hangs on the kind
        _put(table, name, text, mistakes)
    config, found = examine(table)
    mistakes |= found
    mistakes |= missing_files(table)
    if config is None or mistakes:
        raise rejection(str(path), mistakes)
    notes += _of_defaults(config, table)
    if (used := config.method.model_dump()["kind"]) in BROKEN:
        notes.append(f"method.kind = {show(used)}: {BROKEN[used]}")
    for note in notes:
        logger.info("%s: %s", path, one_line(note))
    return Loaded(resolve_paths(config), tuple(notes))


def from_table(table: Mapping[str, Any]) -> Config:
    """The configuration that a table as read from TOML stands for. Paths stay as they are.

    Raises:
        UserError: naming every mistake.
    """
    config, mistakes = examine(table)
    if config is None:
        raise rejection("the configuration", mistakes)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a file.

    Raises:
        UserError: there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: got no such file, expected a TOML configuration; `fibecfed init` writes one") from None
    except IsADirectoryError:
        raise UserError(f"{path}: got a folder, expected a TOML configuration; name the file in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: got bytes that are not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a TOML configuration") from None
    except ValueError as error:  # TOMLDecodeError, and numbers with thousands of digits
        raise UserError(f"{path}: not valid TOML: {error}; fix it there") from None


def is_comparison(table: Mapping[str, Any]) -> bool:
    """Whether a file's table is a comparison's, by tables and lists that a run does not have."""
    return bool({"methods", "base"} & table.keys()) or (bool(_OF_COMPARISONS & table.keys()) and not is_run(table))


def is_run(table: Mapping[str, Any]) -> bool:
    """Whether a file's table is a run's, by tables that stand below [base] in a comparison."""
    return bool(_OF_RUNS & table.keys()) and not {"methods", "base"} & table.keys()


_OF_COMPARISONS = {"tasks", "seeds", "task", "tuning", "architecture"}
_OF_RUNS = {"seed", "model", "data", "federation", "training", "evaluation"}


def rejection(where: str, mistakes: Mapping[str, str]) -> UserError:
    """All mistakes of a file as one error."""
    count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return UserError("\n  ".join([f"{where} has {count}:", *mistakes.values()]))


def read_pairs(overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Key -> value, as text, of `key=value` pairs, and a sentence for each that is none."""
    pairs: dict[str, str] = {}
    mistakes: dict[str, str] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not all(name.strip().split(".")):
            mistakes[text] = f"{text!r}: expected key=value, e.g. federation.rounds=20"
        elif text.encode(errors="replace").decode() != text:
            mistakes[text] = f"{text!r}: got bytes that are not UTF-8; write the value in UTF-8"
        else:
            pairs[name.strip()] = value
    return pairs, mistakes


def _drop_foreign(table: dict[str, Any], kind: Any) -> list[str]:
    method = table.get("method")
    if not isinstance(kind, str) or kind not in METHODS or not isinstance(method, dict) or method.get("kind", DEFAULT_KIND) == kind:
        return []
    old = method.get("kind", DEFAULT_KIND)
    origins = [old] if isinstance(old, str) and old in METHODS else list(METHODS)
    foreign = {key.name for origin in origins for key in keys(origin)} - {key.name for key in keys(kind)}
    # A key that no method has stays, to be reported as the misspelling it is.
    dropped = [name for name, _ in leaves({"method": method}) if name in foreign]
    dropped += [name for name in _of_its_preset(table) if name not in dropped]
    others = [name for name in _of_other_defaults(table, origins, kind) if name not in dropped]
    for name in (*dropped, *others):
        delete(table, name)
        above = name.rpartition(".")[0]
        while above not in ("method", "") and not get(table, above):  # a table that is empty now goes with its keys
            delete(table, above)
            above = above.rpartition(".")[0]
    notes = [f"method.kind={kind} does not have {', '.join(dropped)}: dropped from the file's settings"] if dropped else []
    return [
        *notes,
        *([f"method.kind={kind} has its own default for {', '.join(others)}: dropped from the file's settings"] if others else []),
    ]


def _of_other_defaults(table: Mapping[str, Any], origins: Sequence[str], kind: str) -> list[str]:
    """Keys of a file that hold the default of its method, which a run writes out, where another method has another default."""
    if len(origins) != 1:
        return []
    old, new = ({key.name: key.default for key in keys(one)} for one in (origins[0], kind))
    return [
        name for name, value in leaves(table) if name in old and name in new and value == old[name] != new[name] and name != "method.kind"
    ]


def _of_defaults(config: Config, table: dict[str, Any]) -> list[str]:
    """What hangs on other keys and changes what is trained; and keys that were set and have no effect."""
    filled = copied(table)
    filled.setdefault("method", {})
    fill(filled)
    followed = {name: why for name, why in follow(filled).items() if name == "method.finetune"}
    notes = [f"{name} = {show(get(filled, name))}, since {why}" for name, why in followed.items()]
    return [*notes, *without_effect(config, {name for name, _ in leaves(table)})]


def _of_its_preset(table: Mapping[str, Any]) -> list[str]:
    """Keys of a file that hold what the preset it names stands for: a run writes them out beside the preset's name."""
    preset = dict(leaves(table)).get(KEY)
    values = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    return [name for name, value in leaves(table) if name in values and value == values[name]]


def _drop_preset(table: dict[str, Any], pairs: Mapping[str, str]) -> list[str]:
    preset = pairs.get(KEY, "").strip().strip('"')
    given = {name for name, _ in leaves(table)}
    dropped = [name for name in PRESETS.get(preset, {}) if name in given and name not in pairs]
    before = [name for name in (_of_its_preset(table) if KEY in pairs else ()) if name not in dropped and name not in pairs]
    for name in (*dropped, *before):
        delete(table, name)
    notes = [f"{KEY}={preset} sets {', '.join(dropped)}: dropped from the file's settings"] if dropped else []
    return [*notes, *([f"the file's own preset had set {', '.join(before)}: dropped from its settings"] if before else [])]


def _drop_followed(table: dict[str, Any], original: Mapping[str, Any], pairs: Mapping[str, str]) -> list[str]:
    """Takes out defaults that a run wrote out, where they hang on keys that the pairs change; a note if there were any."""
    changed = copied(table)
    for name, text in sorted(pairs.items(), key=lambda pair: pair[0] != "method.kind"):
        if name not in FOLLOWING:
            _put(changed, name, text, {})
    before, after, given = _followed(original), _followed(changed), dict(leaves(table))
    dropped = [name for name in FOLLOWING if name in given.keys() - pairs.keys() and given[name] == before.get(name) != after.get(name)]
    for name in dropped:
        delete(table, name)
    return [f"{', '.join(dropped)}: dropped from the file's settings, as defaults that hang on what was changed"] if dropped else []


def _followed(table: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults in force for the keys whose defaults hang on others; empty where the method is none."""
    bare = copied(table)
    method = bare.setdefault("method", {})
    kind = method.get("kind", DEFAULT_KIND) if isinstance(method, dict) else None
    if not isinstance(kind, str) or kind not in OPTIONS:
        return {}
    for name in FOLLOWING:
        delete(bare, name)
    fill(bare)
    follow(bare)
    defaults, found = {key.name: key.default for key in keys(kind)}, dict(leaves(bare))
    return {name: found.get(name, defaults.get(name)) for name in FOLLOWING}


def _put(table: dict[str, Any], name: str, text: str, mistakes: dict[str, str]) -> None:
    *above, leaf = name.split(".")
    if isinstance(inner := table_at(table, above), str):
        return  # the file has a value where a table belongs, which is reported as such
    method = table.get("method")
    kind = method.get("kind", DEFAULT_KIND) if isinstance(method, dict) else DEFAULT_KIND
    known = {key.name: key for key in keys(kind if kind in OPTIONS else DEFAULT_KIND)}
    if any(other.startswith(f"{name}.") for other in known):
        mistakes[name] = (
            f"{name}: got a value for a table; set its keys one by one, e.g. {next(k for k in known if k.startswith(name))}=..."
        )
        return
    if name in known and not text.strip(" "):
        inner.pop(leaf, None)
    else:
        inner[leaf] = read_as(known.get(name), text)


def table_at(table: dict[str, Any], path: Sequence[str]) -> dict[str, Any] | str:
    """The table at the end of a path of names, made where there is none; the name of what is no table where one stands on the way."""
    inner: Any = table
    for part in path:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            return part
    return inner


def read_as(key: ConfigKey | None, text: str) -> Any:
    """The value of a `key=value` pair: as written where the key takes text, apart at commas where it takes several, else as TOML."""
    value = text if key is not None and key.takes_text else read_value(text)
    several = key is not None and key.takes_texts and isinstance(value, str)
    return [part.strip() for part in value.split(",")] if several else value


def read_value(text: str) -> Any:
    """A value as TOML reads it, else the text itself."""
    try:
        read = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return read["value"] if read.keys() == {"value"} else text


# ---- paths


def resolve_paths(config: Config) -> Config:
    """The configuration with absolute paths, which mean the same from any folder; of a chat template the text in place of its file."""
    data = {name: _absolute(value) for name in _PATHS if (value := getattr(config.data, name)) is not None}
    if config.data.chat_template is not None:
        data["chat_template"] = template_text(config.data.chat_template)
    model = {"name": _absolute(config.model.name)} if _is_local(config.model.name) else {}
    return config.model_copy(update={"data": config.data.model_copy(update=data), "model": config.model.model_copy(update=model)})


def _is_local(name: str) -> bool:
    if not expanded(name).exists():
        return False
    return name not in PACKAGED


def _absolute(path: str) -> str:
    return str(expanded(path).resolve())


_PATHS = {"path": "file", "test_path": "file", "root": "folder"}


def missing_files(table: Mapping[str, Any]) -> dict[str, str]:
    """Key -> a sentence, of every path of a run's data with nothing there."""
    data = table.get("data")
    mistakes: dict[str, str] = {}
    for name, kind in _PATHS.items():
        value = data.get(name) if isinstance(data, Mapping) else None
        if not isinstance(value, str):
            continue  # not given, or reported as of a wrong type
        found = kind_of(expanded(value))
        if found != f"a {kind}":
            got = found or "nothing there"
            if found not in (None, "a file", "a folder", TOO_LONG):
                got += ", which can be read only once; write its content to a file"
            mistakes[f"data.{name}"] = (
                f"data.{name}: got {show(value)} ({got}), expected a {kind}; fix the path, which is taken from {Path.cwd()}"
            )
    return mistakes
