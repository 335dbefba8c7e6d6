"""A comparison from its file and `key=value` pairs, every run of it checked; and what tells two comparisons apart."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError

from ...config import TRACKING, keys, same_name
from ...config.mistakes import examine, get
from ...config.model import DEFAULT_KIND, leaves
from ...config.read import is_comparison as is_comparison_table
from ...config.read import is_run, missing_files, read_as, read_pairs, read_toml, read_value, rejection, table_at
from ...config.text import ConfigKey, keys_of, nearest, show
from ...core.errors import UserError
from ...core.metrics import OF_WRITTEN
from ...data.instruction_sets import INSTRUCTION_SETS
from ...data.tasks import TASKS
from ...methods.catalogue import COMPARED, METHODS
from ...methods.presets import KEY
from ...tracking.sinks import reject_missing
from .options import ComparisonOptions
from .plan import has_answers, primary_metric, table_of

_LONGEST_NAME = 140  # bytes: file systems take 255, some of them 143
_LISTS = ("methods", "tasks", "seeds")
_ALL = {"methods": COMPARED, "tasks": tuple(name for name, task in TASKS.items() if task.package is None)}
_NAMED = (*TASKS, *INSTRUCTION_SETS)
_NOT_IN_BASE = {
    "seed": "write `seeds` above all tables",
    "data.task": "write `tasks` above all tables",
    "method": "write [method.<name>] with `method.<key>` in it",
}


def is_comparison(path: Path) -> bool:
    """Whether a file is a comparison's."""
    return is_comparison_table(read_toml(path))


def load(path: Path, overrides: Sequence[str] = ()) -> ComparisonOptions:
    """Reads a comparison's TOML file and lays `key=value` pairs over it: `methods=fibecfed,lora`, `seeds=0,1`, `base.federation.rounds=10`.

    Raises:
        UserError: naming every mistake of the file, the pairs, and the runs they lead to.
    """
    table = read_toml(path)
    if is_run(table):
        way_out = f"run it with: fibecfed run {shlex.quote(str(path))}"
        raise UserError(f"{path}: got the file of a single run, expected that of a comparison; {way_out}")
    pairs, mistakes = read_pairs(overrides)
    for name, text in pairs.items():
        _put(table, name, text, mistakes)
    comparison = None
    every = table.get("methods") == "all"
    for name in ("methods", "tasks"):
        if table.get(name) == "all":
            table[name] = [known for known in _ALL[name] if name == "tasks" or known in METHODS]
    try:
        comparison = ComparisonOptions.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        for line in error.errors(include_url=False):
            name = ".".join(part for part in line["loc"] if isinstance(part, str))
            mistakes.setdefault(name, _sentence(name, line["type"], table))
    if comparison is not None and every and all(has_answers(comparison, task) for task in comparison.tasks):
        fitting = tuple(name for name in comparison.methods if METHODS[name].trains_on_answers())
        comparison = comparison.model_copy(update={"methods": fitting})
    if comparison is not None:
        mistakes |= dict.fromkeys(_strange_names(comparison))
        mistakes |= dict.fromkeys(_contradictions(comparison))
        if not mistakes:
            mistakes |= dict.fromkeys(_of_runs(comparison))
    if comparison is None or mistakes:
        raise rejection(str(path), {name: text or name for name, text in mistakes.items()})
    for tables in (comparison.base, *comparison.task.values(), *comparison.method.values()):
        reject_missing(tables.get("tracking", ()))
    return comparison


def to_toml(comparison: ComparisonOptions) -> str:
    """The comparison as TOML, every key of its own, given or default."""
    table = comparison.model_dump(exclude_none=True)
    document = tomlkit.document()
    document.add(
        tomlkit.comment("A comparison of fibecfed, as its folder holds it. Every run's own configuration lies beside its results.")
    )
    for name, value in table.items():
        if value != {}:
            document.add(name, tomlkit.item(list(value) if isinstance(value, tuple) else value))
    return tomlkit.dumps(document)


def differences(old: ComparisonOptions, new: ComparisonOptions) -> list[str]:
    """Dotted keys that make two comparisons different ones, sorted; more methods, tasks, seeds or workers do not.

    Tables count for methods and tasks that both have; where rates are tuned, also for the tasks that they are tuned on.
    """
    tuned_on = set(new.tuning.tasks if new.tuning.trials else ())
    found = _leaf_differences({"base": old.base, "tuning": old.tuning.model_dump()}, {"base": new.base, "tuning": new.tuning.model_dump()})
    for name, before, after, shared in (
        ("task", old.task, new.task, (set(old.tasks) & set(new.tasks)) | tuned_on),
        ("method", old.method, new.method, set(old.methods) & set(new.methods)),
    ):
        found += _leaf_differences({name: {k: before.get(k, {}) for k in shared}}, {name: {k: after.get(k, {}) for k in shared}})
    return sorted(found)


def _leaf_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    left, right = dict(leaves(old)), dict(leaves(new))
    found = [name for name in left.keys() | right.keys() if name not in left or name not in right or left[name] != right[name]]
    found = [name for name in found if not was_moved(name, left.get(name), right.get(name)) and name.split(".")[-1] not in TRACKING]
    return [name for name in found if not (name.endswith(f".{KEY}") and name not in left and right[name] == "paper")]  # the former default


def was_moved(name: str, old: Any, new: Any) -> bool:
    """Whether a key, also below [base] or [task.<name>], names files of the same name in another place."""
    return same_name(".".join(name.split(".")[-2:]), old, new)


# ---- pairs


def _put(table: dict[str, Any], name: str, text: str, mistakes: dict[str, str]) -> None:
    if name in _LISTS:
        value = read_value(text) if text.strip() else []
        table[name] = value if isinstance(value, list) or text == "all" else [read_value(part.strip()) for part in text.split(",")]
        return
    *above, leaf = name.split(".")
    if isinstance(inner := table_at(table, above), str):
        mistakes[name] = f"{name}: got a key inside of {inner}, which is not a table; fix the name"
        return
    known = {key.name: key for key in keys(DEFAULT_KIND)}
    run_key = name.removeprefix("base.") if above[:1] == ["base"] else ".".join(name.split(".")[2:])
    if not text:
        inner.pop(leaf, None)
    else:
        inner[leaf] = read_as(known.get(run_key) or _keys().get(name), text)


# ---- mistakes


def _keys() -> dict[str, ConfigKey]:
    return {key.name: key for key in keys_of(ComparisonOptions)}


def _sentence(name: str, kind: str, table: Mapping[str, Any]) -> str:
    known = _keys()
    if kind == "missing":
        return f"{name}: not given, expected {known[name].expected}; write it above all tables"
    got = show(get(table, name))
    if kind == "extra_forbidden":
        near = nearest(name, known)
        return f"{name}: got an unknown key; " + (f"did you mean `{near}`?" if near else f"expected one of {', '.join(known)}")
    expected = known[name].expected if name in known and "dict" not in known[name].expected else "a table"
    return f"{name}: got {got}, expected {expected}; fix it"


def _strange_names(comparison: ComparisonOptions) -> Iterator[str]:
    for name in comparison.methods:
        if comparison.kind(name) not in METHODS:
            yield _unknown("methods", name, METHODS, "`fibecfed list methods`")
    own = [name for name, table in comparison.task.items() if "path" in table.get("data", {})]
    for key, names in (("tasks", comparison.tasks), ("tuning.tasks", comparison.tuning.tasks if comparison.tuning.trials else ())):
        for name in names:
            if name not in _NAMED and name not in own and "path" not in comparison.base.get("data", {}):
                yield _unknown(key, name, [*_NAMED, *own], "`fibecfed list tasks`, or give it a table [task.<name>] with data.path")
    for name, table in comparison.method.items():
        if name not in METHODS and name not in COMPARED and "kind" not in table.get("method", {}):
            yield _unknown("method", name, METHODS, "`fibecfed list methods`, or set method.kind in it")
    for name in comparison.task:
        if name not in _NAMED and name not in own:
            yield _unknown("task", name, _NAMED, "`fibecfed list tasks`, or set data.path in it")
    for key, names in (("methods", comparison.methods), ("tasks", comparison.tasks), ("seeds", comparison.seeds)):
        if not names or len(set(names)) < len(names):
            yield f"{key}: got {show(names)}, expected at least one, each once; fix the list"
    for key, name in (*(("methods", name) for name in comparison.methods), *(("tasks", name) for name in comparison.tasks)):
        if not name or name.strip(".") != name or set(name) & set("/\\\0"):
            yield f"{key}: got the name {show(name)}, expected one that a folder can have; fix it"
        elif len(name.encode()) > _LONGEST_NAME:
            got = f"{len(name.encode())} bytes, {show(name[:40])}..."
            yield f"{key}: got a name of {got}, expected at most {_LONGEST_NAME}, since a folder is called after it; shorten it"


def _unknown(key: str, name: str, names: Any, where: str) -> str:
    near = nearest(name, names)
    if near:
        return f'{key}: got {show(name)}, which is unknown; did you mean "{near}"?'
    return f"{key}: got {show(name)}, which is unknown, expected one of {', '.join(names)}; see {where}"


def _private(comparison: ComparisonOptions) -> Iterator[str]:
    """A comparison needs scores, and looking for a rate is a release of its own."""
    tables = {"base": comparison.base}
    for above, some in (("task", comparison.task), ("method", comparison.method)):
        tables |= {f"{above}.{name}": table for name, table in some.items()}
    found = {name: dict(leaves(table)) for name, table in tables.items()}
    for name, table in found.items():
        exact = table.get("privacy.evaluation", found["base"].get("privacy.evaluation")) == "exact"
        if (got := table.get("privacy.secure_aggregation", False)) not in (False, "none") and not exact:
            yield (
                f"{name}.privacy.secure_aggregation: got {show(got)} without scores that could be compared; set privacy.evaluation = "
                '"exact" beside it, which sends the counts of each client'
            )
        if table.get("privacy.unit", "none") == "none":
            continue
        if comparison.tuning.trials:
            yield (
                f"{name}.privacy.unit: got {show(table['privacy.unit'])} with `tuning.trials` = {comparison.tuning.trials}, whose runs "
                "would choose a rate by the clients' data without being charged; set `tuning.trials` to 0"
            )
        if not exact:
            yield (
                f"{name}.privacy.unit: got {show(table['privacy.unit'])} without scores that could be compared; set "
                'privacy.evaluation = "exact" beside it, which is outside of the guarantee'
            )


def _placed(comparison: ComparisonOptions) -> Iterator[str]:
    """On which devices the runs are made."""
    tables = {"base": comparison.base}
    for above, some in (("task", comparison.task), ("method", comparison.method)):
        tables |= {f"{above}.{name}": table for name, table in some.items()}
    names = comparison.resources.devices
    for name, table in tables.items():
        if "devices" in table.get("resources", {}):
            yield f"{name}.resources.devices: a comparison makes each run on one device; remove it, and set `resources.devices`"
        device = table.get("training", {}).get("device", "auto")
        if names is not None and device not in ("auto", "cuda"):
            yield f"{name}.training.device: got {show(device)} with `resources.devices`, which gives each run a device; remove one of them"
    if names is not None and not (names and all(re.fullmatch(r"cuda:\d+", name) for name in names) and len(set(names)) == len(names)):
        yield f'resources.devices: got {show(names)}, expected GPUs, each once, such as ["cuda:0", "cuda:1"]; fix it, or remove it'


def _contradictions(comparison: ComparisonOptions) -> Iterator[str]:
    base = dict(leaves(comparison.base))
    for name, instead in _NOT_IN_BASE.items():
        if any(key == name or key.startswith(f"{name}.") for key in base):
            yield f"base.{name}: the comparison sets it for each run; remove it and {instead}"
    metric = primary_metric(comparison)
    kinds = {has_answers(comparison, task): task for task in reversed(comparison.tasks)} if comparison.methods else {}
    if len(kinds) > 1:
        yield (
            f"tasks: got {kinds[True]}, whose examples have answers, beside {kinds[False]}, whose examples have classes; a comparison has "
            "one metric, so write one for each kind"
        )
    for above, tables in (("task", comparison.task), ("method", comparison.method)):
        for name, table in tables.items():
            if (got := table.get("evaluation", {}).get("metric", metric)) != metric:
                key = f"{above}.{name}.evaluation.metric"
                yield f"{key}: got {show(got)}, but a comparison has one metric, {metric} here; write it into base.evaluation.metric"
    yield from _private(comparison)
    yield from _placed(comparison)
    tuning = comparison.tuning
    if tuning.trials and tuning.trials % 2 == 0:
        yield f"tuning.trials: got {tuning.trials}, expected an odd number, the middle one being the paper's; set {tuning.trials + 1}"
    if tuning.trials and not tuning.tasks:
        yield "tuning.tasks: got none, expected at least one task to tune on; name it, or set `tuning.trials` to 0"
    if tuning.trials and "training.learning_rate" in base:
        yield "base.training.learning_rate: fixes the rate that `tuning.trials` would look for; remove one of them"
    for name, table in comparison.task.items():
        if tuning.trials and "learning_rate" in table.get("training", {}):
            got = show(table["training"]["learning_rate"])
            yield (
                f"task.{name}.training.learning_rate: got {got}, expected none, since `tuning.trials` looks for one rate for all tasks; "
                "remove it, or set `tuning.trials` to 0"
            )
    if tuning.trials and metric in OF_WRITTEN:
        yield (
            f"base.evaluation.metric: got {show(metric)}, which is of answers to test examples, but rates are tuned by validation ones; "
            "choose nll, or set `tuning.trials` to 0"
        )
    if tuning.trials and base.get("data.validation_fraction") == 0:
        yield "base.data.validation_fraction: got 0, but tuning needs validation examples; raise it, or set `tuning.trials` to 0"


def _of_runs(comparison: ComparisonOptions) -> Iterator[str]:
    """Mistakes that show in the runs' configurations, and paths with nothing there, by the comparison's key; each once."""
    told: set[tuple[str, str]] = set()
    tuned = comparison.tuning.tasks if comparison.tuning.trials else ()
    for task in dict.fromkeys((*comparison.tasks, *tuned)):
        for method in comparison.methods:
            table = table_of(comparison, task, method, 0)
            for name, text in (examine(table)[1] | missing_files(table)).items():
                key, _, rest = text.partition(":")
                above = _above(comparison, task, method, key)
                if (above, text) in told:
                    continue
                told.add((above, text))
                rest = rest.replace("did you mean `", f"did you mean `{above}")
                of_one_key = bool(above) and name != text  # else several keys contradict each other, perhaps in this run alone
                yield f"{above}{key}:{rest}" if of_one_key else f"in the run of {method} on {task}: {above}{key}:{rest}"


def _above(comparison: ComparisonOptions, task: str, method: str, key: str) -> str:
    """The table of the comparison that a run's key comes from, with a dot; "" where it is in none."""
    tables = {
        f"method.{method}.": comparison.method.get(method, {}),
        f"task.{task}.": comparison.task.get(task, {}),
        "base.": comparison.base,
    }
    for name, table in tables.items():
        with contextlib.suppress(KeyError, TypeError):
            get(table, key)
            return name
    return ""


def read_back(path: Path) -> ComparisonOptions:
    """The comparison that a folder holds.

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        return ComparisonOptions.model_validate_json(json.dumps(tomllib.loads(path.read_text(encoding="utf-8")), default=str))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or choose another folder with --out") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except ValueError as error:
        reason = f"not valid TOML: {error}"
    way_out = "restore the file, or remove it: then the configuration of the command line counts for this folder"
    raise UserError(f"{path}: not what `fibecfed compare` wrote ({reason}); {way_out}")
