"""What messages tell, with and without differential privacy: `fibecfed audit` of the runs of one configuration under several settings.

    python benchmarks/audit_table.py --out runs/audits [--config configs/demo.toml] [--only lora] [--canaries 5] [key=value ...]

Each run and each audit that is done is kept: started again, it goes on with what is missing, also in the middle of a run. Prints a table
for each setting, and for the private ones the figures that are better than guessing by more than their interval. With intervals of 95 % one
in forty is so by chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fibecfed import session
from fibecfed.audit.command import audit
from fibecfed.config import load
from fibecfed.core.errors import UserError
from fibecfed.core.files import AUDIT, CONFIG, SUMMARY

CLIENTS = ("federation.on_failure=drop", "privacy.unit=client", "privacy.epsilon=8", "privacy.clip_norm=1", "privacy.delta=0.01")
EXAMPLES = ("training.dropout=0", "privacy.unit=example", "privacy.epsilon=8", "privacy.clip_norm=1", "privacy.delta=0.001")
ONE_STEP = ("federation.rounds=132", "training.max_steps=1", "evaluation.every=66")
"""Every step sent by itself: 660 of them, where the 12 rounds of the configuration have about 1,560."""
LAST = ("method.layers.rule=last", "method.layers.value=2")
SETTINGS: Mapping[str, Sequence[str]] = {
    "lora": ("method.kind=lora",),
    "fibecfed": (
        "method.kind=fibecfed",
        "method.preset=paper",
    ),
    "lora-clients-8": ("method.kind=lora", *CLIENTS),
    "fibecfed-clients-8": ("method.kind=fibecfed", "method.preset=paper", *LAST, *CLIENTS),
    "lora-examples-8": ("method.kind=lora", *EXAMPLES),
    "fibecfed-examples-8": ("method.kind=fibecfed", "method.preset=paper", *LAST, *EXAMPLES),
    "lora-examples-8-one-step": ("method.kind=lora", *EXAMPLES, *ONE_STEP),
    "fibecfed-examples-8-one-step": ("method.kind=fibecfed", "method.preset=paper", *LAST, *EXAMPLES, *ONE_STEP),
}


def audited(out: Path, config: Path, overrides: Sequence[str], clients: int, canaries: int) -> dict[str, Any]:
    """The audit of a run, made or found."""
    if not (out / CONFIG).is_file():
        session.start(load(config, overrides).config, out)
    elif not (out / SUMMARY).is_file():
        session.resume(out)
    if (out / AUDIT).is_file():
        found = json.loads((out / AUDIT).read_text(encoding="utf-8"))
        if found.get("canaries_by_client") == canaries:
            return found
    return audit(out, clients, canaries)


def table(name: str, found: Mapping[str, Any]) -> list[str]:
    """As Markdown; * tells more than guessing."""
    lines = [f"### {name}", "", "| attack | guessing | " + " | ".join(found["views"]) + " |", "|---" * (2 + len(found["views"])) + "|"]
    for row in found["rows"]:
        figures = [row["views"].get(view) for view in found["views"]]
        lines.append(f"| {row['name']} | {row['guessing']:.2f} | " + " | ".join(map(cell, figures)) + " |")
    return [*lines, ""]


def cell(one: Mapping[str, Any] | None) -> str:
    """A figure and half its interval."""
    if one is None:
        return "-"
    return f"{one['value']:.2f} ± {(one['high'] - one['low']) / 2:.2f}{'*' * one['better_than_guessing']}"


def above_guessing(found: Mapping[str, Any], seen: Sequence[str]) -> tuple[list[str], int]:
    """Figures of a private run that are better than guessing by more than their interval, and of how many.

    Args:
        seen: words of the views that are protected.
    """
    of = [
        (f"{row['name']}, {view}: {one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f}), guessing {one['guessing']:.2f}", one)
        for row in found["rows"]
        for view, one in row["views"].items()
        if any(word in view for word in seen)
    ]
    return [text for text, one in of if one["better_than_guessing"]], len(of)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.toml"))
    parser.add_argument("--only", action="append", choices=list(SETTINGS))
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--canaries", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    for name in given.only or SETTINGS:
        try:
            found = audited(given.out / name, given.config, [*SETTINGS[name], *given.overrides], given.clients, given.canaries)
        except UserError as error:
            print(f"### {name}\n\nnot run: {error}\n")
            continue
        print("\n".join(table(name, found)))
        if "-8" in name:
            views = ("mean", "final") if "clients" in name else ("update", "mean", "final")
            better, of = above_guessing(found, views)
            print(f"better than guessing, of the {of} figures that are protected: {'; '.join(better) or 'none'}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
