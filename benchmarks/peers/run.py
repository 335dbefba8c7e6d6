"""The same work on each peer and on this package, in turn, and the ratios.

Run: python benchmarks/peers/run.py --envs DIR [--share] [--out FILE] [--tasks lora ...] [--peers pfl ...] [--repetitions N]

DIR gets an environment for each peer (environments.py), which is kept for the next time. Each figure comes from a process of its own, with
one thread a process; within a repetition each task goes through everybody before the next one. FILE (default: figures.jsonl in DIR)
gets a line for each figure: what is there already is not measured again, so the command can be stopped and started at any time. At the end
the medians are printed, with the ratios of figures of the same repetition. What is measured is in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environments import PEERS, python_of
from workload import prepare

OURS = "fibecfed"
SCRIPTS = {
    OURS: "on_fibecfed.py",
    "plain": "plain.py",
    "pfl": "on_pfl.py",
    "pfl, padded by batch": "on_pfl.py",
    "flower": "on_flower.py",
    "nvflare": "on_nvflare.py",
}
TASKS: dict[str, tuple[int, ...]] = {
    "lora": (3,),
    "noop 10 x 1,000": (10, 1_000, 100),
    "noop 100 x 1,000": (100, 1_000, 20),
    "noop 10 x 5,000,000": (10, 5_000_000, 8),
}
"""Rounds; or clients of a round, numbers in a message, rounds."""

UNCOUNTED = 2
"""First rounds that stay out, of those without training; of `lora` one."""


def takes_part(who: str, task: str) -> bool:
    if who in ("plain", "pfl, padded by batch"):
        return task == "lora"
    return who != "nvflare" or "100 x" not in task  # a hundred processes with torch


def measure(who: str, task: str, python: Path, work: Path) -> dict[str, Any]:
    """One figure, from a process of its own."""
    kind, numbers = task.split()[0], [str(number) for number in TASKS[task]]
    more = ["batch"] if who == "pfl, padded by batch" else []
    script = str(Path(__file__).parent / SCRIPTS[who])
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.json", Path(folder) / "log"
        paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, "PEERS_REPORT": str(report)}
        environment |= {"PEERS_ROOT": str(os.getpid()), "PEERS_START": str(time.time())}
        arguments = [kind, *([str(work)] if kind == "lora" else []), *numbers, *more]
        with log.open("wb") as file:
            done = subprocess.run([python, script, *arguments], env=environment, stdout=file, stderr=file, cwd=folder)
        if not report.exists():
            raise SystemExit(f"{who}, {task}: no figures, exit code {done.returncode}\n{log.read_text(errors='replace')[-3000:]}")
        found = json.loads(report.read_text())
    counted = found["cpu_s"][1 if kind == "lora" else UNCOUNTED :]
    return {"who": who, "task": task, "round_s": statistics.median(counted), "rounds": len(counted), "first_s": found["first_s"]}


def interpreter(who: str, folder: Path, share: bool) -> Path:
    peer = who.split(",")[0]
    return python_of(peer, folder, share) if peer in PEERS else Path(sys.executable)


def lines_of(out: Path) -> list[dict[str, Any]]:
    """The figures that a file holds. A last line that was cut off when the command was stopped is taken out of it."""
    whole = [line for line in out.read_text().splitlines(keepends=True) if line.endswith("\n")] if out.exists() else []
    if out.exists():
        out.write_text("".join(whole))
    return [json.loads(line) for line in whole]


def summary(lines: list[dict[str, Any]], task: str, who: str, key: str) -> tuple[float, list[float]] | None:
    """The median of a figure, and in ascending order its ratios to ours of the same repetition; None where there is none of both."""
    ours = {line["repetition"]: line[key] for line in lines if (line["task"], line["who"]) == (task, OURS)}
    theirs = {line["repetition"]: line[key] for line in lines if (line["task"], line["who"]) == (task, who)}
    both = sorted(theirs.keys() & ours.keys())
    if not both:
        return None
    return statistics.median(theirs[number] for number in both), sorted(theirs[number] / ours[number] for number in both)


def show(lines: list[dict[str, Any]]) -> None:
    for task in TASKS:
        rows: list[str] = []
        for who in SCRIPTS:
            found = [summary(lines, task, who, key) for key in ("round_s", "first_s")]
            cells = [f"{value:.4g} | {statistics.median(r):.2f} ({r[0]:.2f} to {r[-1]:.2f})" for value, r in filter(None, found)]
            if cells and found[0]:
                rows.append(f"| {who} | {' | '.join(cells)} | {len(found[0][1])} |")
        if rows:
            print(
                f"\n| {task} | CPU s per round | over {OURS}'s | start to first round, s | over {OURS}'s | n |", "|---" * 6 + "|", sep="\n"
            )
            print("\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--envs", metavar="DIR", type=Path, required=True)
    parser.add_argument("--share", action="store_true", help="use the packages of this environment where they fit a peer")
    parser.add_argument("--out", metavar="FILE", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--peers", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--repetitions", type=int, default=5)
    asked = parser.parse_args()
    folder = asked.envs.resolve()
    out = asked.out or folder / "figures.jsonl"
    peers = [who for who in SCRIPTS if who in asked.peers]
    pythons = {who: interpreter(who, folder, asked.share) for who in peers}
    if not (folder / "work" / "model.json").exists():
        prepare(folder / "work")
    lines = lines_of(out)
    known = {(line["repetition"], line["task"], line["who"]) for line in lines}
    for repetition in range(asked.repetitions):
        for task in asked.tasks:
            for who in peers:
                if takes_part(who, task) and (repetition, task, who) not in known:
                    line = {"repetition": repetition, **measure(who, task, pythons[who], folder / "work")}
                    lines.append(line)
                    with out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(f"{repetition} {task}, {who}: {line['round_s']:.4f} s, first {line['first_s']:.1f} s", flush=True)
    show(lines)


if __name__ == "__main__":
    main()
