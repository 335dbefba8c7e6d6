"""The same work on each peer and on this package, in turn, and the ratios.

Run: python benchmarks/peers/run.py --envs DIR [--share] [--out FILE] [--tasks lora ...] [--peers pfl ...] [--repetitions N]

DIR gets an environment for each peer (environments.py), which is kept for the next time. Each figure comes from a process of its own, with
one thread a process; within a repetition each task goes through everybody before the next one. FILE (default: figures.jsonl in DIR)
gets a line for each figure: what is there already is not measured again, so the command can be stopped and started at any time. What is
measured is in README.md.
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
    **{OURS: "on_fibecfed.py", "plain": "plain.py", "pfl": "on_pfl.py", "pfl, padded by batch": "on_pfl.py"},
    **{"flower": "on_flower.py", "nvflare": "on_nvflare.py"},
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


def show(lines: list[dict[str, Any]]) -> None:
    for task in TASKS:
        of = {who: [line for line in lines if (line["task"], line["who"]) == (task, who)] for who in SCRIPTS}
        if not of[OURS]:
            continue
        print(f"\n{task}: CPU seconds a round, over those of {OURS} (median; lowest to highest), wall seconds from start to first round")
        for who, rows in of.items():
            ours = {line["repetition"]: line["round_s"] for line in of[OURS]}
            ratios = sorted(line["round_s"] / ours[line["repetition"]] for line in rows if line["repetition"] in ours)
            if ratios:
                round_s, first_s = (statistics.median(line[key] for line in rows) for key in ("round_s", "first_s"))
                spread = f"{statistics.median(ratios):6.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"{who:22}{round_s:10.4f}  {spread:26}{first_s:7.1f}   n = {len(ratios)}")


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
    pythons = {who: python_of(who.split(",")[0], folder, asked.share) if who.split(",")[0] in PEERS else Path(sys.executable) for who in peers}
    if not (folder / "work" / "model.json").exists():
        prepare(folder / "work")
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
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
