"""Writes the parts of the documentation that are generated from code: `python tools/docs.py` writes, `--check` only compares.

Between `<!-- generated: NAME -->` and `<!-- end -->` a file holds what the function of that name returns; configs/my-data.toml is what
`fibecfed init` writes.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from fibecfed.comparison.report import overview
from fibecfed.comparison.report import tables as report_tables
from fibecfed.comparison.report.compact import from_lines
from fibecfed.comparison.report.markdown import section
from fibecfed.comparison.report.standing import standings
from fibecfed.config import flat, from_table, keys, own_data_toml
from fibecfed.core.method import Work
from fibecfed.core.rng import Key
from fibecfed.core.statistics import of_classes
from fibecfed.core.trees import num_values
from fibecfed.core.types import Round
from fibecfed.core.wire import describe, encode
from fibecfed.engine.runtime import Scored, frame
from fibecfed.local.options import TrainingOptions
from fibecfed.methods import fibecfed as method
from fibecfed.methods.catalogue import CATALOGUE, METHODS, FibecFedOptions, MethodContext, make
from fibecfed.methods.depth import Information
from fibecfed.models.base_models import build_task, find
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import tables  # noqa: E402

METHOD_PAGES = tuple(f"docs/methods/{path.name}" for path in sorted((ROOT / "docs" / "methods").glob("*.md")))
FILES = ("README.md", "docs/index.md", "docs/configuration.md", *METHOD_PAGES, "docs/results.md", "docs/results-tables.md")
OWN_DATA = "configs/my-data.toml"


def configuration(kind: str, only: str = "") -> str:
    """Table of every key of a configuration with one kind of method."""
    defaults = flat(from_table({"data": {"task": "sst2"}, "method": {"kind": kind}}))
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key in keys(kind):
        if key.name.startswith(only) and key.name != "method.kind":
            default = "" if key.name == "data.task" or defaults[key.name] is None else f"`{_toml(defaults[key.name])}`"
            rows.append(f"| `{key.name}` | {default} | {key.description.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f'"{value}"' if isinstance(value, str) else str(value)


def everything() -> str:
    """All tables but [method]'s, then [method]'s for each kind."""
    parts = [re.sub(r"\n\| `method\..*", "", configuration("fibecfed"))]
    for kind in METHODS:
        table = configuration(kind, "method.")
        if table.count("\n") > 1:
            parts.append(f'\n### `method.kind = "{kind}"`\n\n{table}')
    return "\n".join(parts)


def method_keys(kind: str) -> str:
    """Table of a method's own keys."""
    table = configuration(kind, "method.")
    return table if table.count("\n") > 1 else "None."


def sent(kind: str) -> str:
    """What a method sends, phase by phase, for 50 clients and 40 rounds: the fields of its message classes."""
    chosen = make(METHODS[kind](), MethodContext(TrainingOptions(), 40, 50, Key(0), 64))
    rows = ["| phase | rounds | clients | down | up |", "|---|---|---|---|---|"]
    for phase in chosen.phases:
        cohort = phase.cohort if phase.cohort == "sampled" else f"{phase.cohort}"
        down, up = (
            ", ".join(f"`{field}` ({word})" for field, word in describe(messages)) or "nothing" for messages in (phase.down, phase.up)
        )
        rows.append(f"| {phase.name} | {phase.num_rounds} | {cohort} | {down} | {up} |")
    return "\n".join(rows)


def by_aggregation() -> str:
    """Bytes of a round's messages by `method.aggregation`, for FibecFed with 3 of 6 layers global: MiniLM, LoRA of rank 8, 2 classes."""
    options = ModelOptions(name="minilm")
    task = build_task(find(options), options, TrainingOptions(precision="float32"), objective=ClassHead(2), pad_token_id=0, key=Key(0))
    rows = ["| `method.aggregation` | `method.head` | to a client | from a client |", "|---|---|---|---|"]
    for aggregation, head in (("mean", "shared"), ("mean", "personal"), ("ffa", "shared"), ("exact", "shared"), ("fedadam", "shared")):
        chosen = FibecFedOptions(preset="paper", aggregation=aggregation, head=head)
        made = make(chosen, MethodContext(TrainingOptions(), 40, 50, Key(0)))
        server = replace(made.init(task, Key(0)), layers=(3, 4, 5))
        down = made.phases[-1].broadcast(server, Round("tune", 0, 40, 1))
        up = frame(encode(method.LocalLayers(down.shared, 72)), Work())
        rows.append(f"| {aggregation} | {head} | {len(encode(down)):,} | {len(up):,} |")
    return "\n".join(rows)


def leaves_a_client() -> str:
    """What a client sends, by message class: names, shapes and bytes for MiniLM with LoRA of rank 8, 3 of 6 layers global, 2 classes."""
    options = ModelOptions(name="minilm")
    task = build_task(find(options), options, TrainingOptions(precision="float32"), objective=ClassHead(2), pad_token_id=0, key=Key(0))
    server_method = make(FibecFedOptions(preset="paper"), MethodContext(TrainingOptions(), 40, 50, Key(0)))
    server = server_method.init(task, Key(0))
    server = replace(server, layers=(3, 4, 5))
    tune = next(phase for phase in server_method.phases if phase.name == "tune")
    shared = tune.broadcast(server, Round("tune", 0, 40, 1)).shared
    num_layers = task.num_layers
    messages = [
        ("once, 10 clients", method.Importance(torch.zeros(num_layers), 72)),
        ("once, 4 clients, only for the rules `layer_gap` and `plateau`", method.Ratio(0.5, 72)),
        ("once, 10 clients, only for the depth rules `fisher` and `coverage`", Information(torch.zeros(num_layers), 72)),
        ("every round", method.LocalLayers(shared, 72)),
        ("once, only with `closing_round`", method.AllLayers(server.params, 72)),
    ]
    shapes = {
        ("Importance", "importance"): f"({num_layers},)",
        ("Information", "information"): f"({num_layers},)",
        ("LocalLayers", "shared"): f"{len(shared)} tensors, {num_values(shared.values()):,} numbers",
        ("AllLayers", "shared"): f"{len(server.params)} tensors, {num_values(server.params.values()):,} numbers",
    }
    rows = ["| message | when | field | type | shape | bytes of the whole message |", "|---|---|---|---|---|---|"]
    for when, message in messages:
        size = f"{len(frame(encode(message), Work())):,}"
        for number, (field, kind) in enumerate(describe(type(message))):
            shape = shapes.get((type(message).__name__, field), "")
            name, at, whole = (f"`{type(message).__name__}`", when, size) if number == 0 else ("", "", "")
            rows.append(f"| {name} | {at} | `{field}` | {kind} | {shape} | {whole} |")
    zero = dict(of_classes(2).zero)
    shown = ", ".join(f"{name} {tuple(value.shape)}" for name, value in zero.items())
    for number, (field, kind) in enumerate(describe(Scored)):
        name, at, whole = ("`Scored`", "at an evaluation", f"{len(encode(Scored(zero, zero))):,}") if number == 0 else ("", "", "")
        rows.append(f"| {name} | {at} | `{field}` | {kind} | {shown} | {whole} |")
    counts = "`steps`, `examples`, `loss`, `compute_s`; `compute_clock` in two spare bits of `steps`"
    rows.append(f"| 32 bytes after each but `Scored` | | {counts} | numbers | | included |")
    return "\n".join(rows)


def comparison(name: str) -> str:
    """Tables of a comparison from its short form, as `fibecfed report --export` wrote it."""
    path = ROOT / "benchmarks" / "results" / f"{name}.jsonl"
    return section(from_lines(path)) if path.is_file() else "Not measured yet."


def lead() -> str:
    """The columns of "Methods over all tasks" that a reader asks for first."""
    methods = overview.methods(standings(from_lines(ROOT / "benchmarks" / "results" / "quick.jsonl")))
    shown = ("method", "mean rank", "95 % interval", "personalised %", "global %", "MB per run", "steps per run")
    rows = report_tables.without(methods, [name for name in methods.header if name not in shown])
    return report_tables.to_markdown(rows).partition(f"{rows.note}\n\n")[2]


def home() -> str:
    """FibecFed beside FedAvg-LoRA and training alone, from the table of what each part brings."""
    table = tables.trial(tables.known("trial")).partition("**sst2 and mr**\n\n")[2].partition("\n\n")[0]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    shown = [header.index(name) for name in ("", "personalised %", "global %", "bytes", "steps")]
    names = {
        "local training alone": "each client alone",
        "FedAvg-LoRA": "FedAvg-LoRA: everything averaged",
        "... plus curriculum = FibecFed": "FibecFed as published",
    }
    kept = {row[0]: [names[row[0]], *(row[place] for place in shown[1:])] for row in rows if row[0] in names}
    lines = [[header[place] for place in shown], ["---"] * len(shown), *(kept[name] for name in names)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def methods() -> str:
    """Every method with a link to its page."""
    rows = ["| `method.kind` | what it is | learning rate |", "|---|---|---|"]
    for kind, options in METHODS.items():
        about = " ".join((options.__doc__ or "").split("\n\n")[0].split())
        page = ROOT / "docs" / "methods" / f"{kind}.md"
        rows.append(f"| {f'[`{kind}`]({kind}.md)' if page.is_file() else f'`{kind}`'} | {about} | {CATALOGUE[kind].learning_rate:g} |")
    return "\n".join(rows)


PARTS = {
    "home": home,
    "methods": methods,
    "configuration": everything,
    "leaves-a-client": leaves_a_client,
    "by-aggregation": by_aggregation,
    "comparison-lead": lead,
    "quick": lambda: comparison("quick"),
    "one-sided": lambda: comparison("one-sided"),
    "one-sided-seeds": lambda: comparison("one-sided-seeds"),
    "trial": lambda: tables.trial(tables.known("trial")),
    "sweeps": lambda: tables.sweeps(tables.known("sweeps")),
}


OF_A_METHOD = {"keys": method_keys, "sent": sent}
"""Parts that are written `<!-- generated: keys lora -->`."""


def rendered(text: str) -> str:
    """`text` with every generated part made again."""

    def fill(found: re.Match[str]) -> str:
        part, _, kind = found[1].partition(" ")
        return f"<!-- generated: {found[1]} -->\n{OF_A_METHOD[part](kind) if kind else PARTS[part]()}\n<!-- end -->"

    return re.sub(r"<!-- generated: ([a-z0-9 -]+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> int:
    """Write the files, or with --check say which are out of date; 1 if any is."""
    stale = []
    for name in (*FILES, OWN_DATA):
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = own_data_toml() if name == OWN_DATA else rendered(before)
        if before != after:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(after, encoding="utf-8")
    print(("out of date: " if "--check" in sys.argv else "written: ") + (", ".join(stale) or "none"))
    return int("--check" in sys.argv and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
