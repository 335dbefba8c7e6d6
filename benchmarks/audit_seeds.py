"""Label shares of one update over many seeds: what `fibecfed audit` finds in each, taken together.

    for seed in $(seq 20); do python benchmarks/audit_table.py --out FOLDER/$seed --only SETTING seed=$seed federation.rounds=1 ...; done
    python benchmarks/audit_seeds.py FOLDER

FOLDER/SEED/SETTING holds a run with its audit. Prints of each setting the error of the guessed shares minus the error of guessing without
an update, over the seeds, with Student's 95 % interval; below 0: the update tells something. One cohort of five clients decides little: the
last line says how often the figure of an audit has a star where the updates are noise alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from fibecfed.audit.attacks import guessed_shares
from fibecfed.audit.figures import mean
from fibecfed.core.files import AUDIT


def of_one_update(found: dict[str, Any]) -> dict[str, Any]:
    """The figure of the run's first update."""
    row = next(row for row in found["rows"] if row["name"] == "label shares")
    return next(figure for view, figure in row["views"].items() if "one update" in view)


def stars_on_noise(draws: int = 4000, clients: int = 5) -> float:
    """How many figures of label shares have a star, in [0, 1], where updates are Gaussian noise; the shares of two classes are uniform."""
    torch.manual_seed(0)
    stars = 0
    for _ in range(draws):
        share = torch.rand(clients, 1)
        shares, updates = torch.cat([share, 1 - share], 1), torch.randn(clients, 2)
        guesses = torch.stack([shares[torch.arange(clients) != place].mean(0) for place in range(clients)])
        told = torch.stack([guessed_shares(updates, shares, place) for place in range(clients)])
        stars += mean((told - shares).abs().mean(1).tolist()).high < float((guesses - shares).abs().mean())
    return stars / draws


def main() -> None:
    """See the module's text."""
    torch.set_num_threads(1)
    by_setting = dict[str, list[dict[str, Any]]]()
    for path in sorted(Path(sys.argv[1]).glob(f"*/*/{AUDIT}")):
        by_setting.setdefault(path.parent.name, []).append(of_one_update(json.loads(path.read_text(encoding="utf-8"))))
    for setting, figures in by_setting.items():
        beyond = mean([figure["value"] - figure["guessing"] for figure in figures])
        error, guessing = (sum(figure[key] for figure in figures) / len(figures) for key in ("value", "guessing"))
        stars = sum(figure["better_than_guessing"] for figure in figures)
        print(f"{setting}, {len(figures)} seeds: error {error:.3f}, guessing {guessing:.3f}, "
              f"difference {beyond.value:+.3f} ({beyond.low:+.3f} to {beyond.high:+.3f}), {stars} with a star")  # fmt: skip
    print(f"on noise alone {stars_on_noise():.1%} have a star")


if __name__ == "__main__":
    main()
