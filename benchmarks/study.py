"""The measurements behind docs/results.md: many runs, in parallel processes, resumable, and the tables made from them.

python benchmarks/study.py run trial --workers 2      # every run of the table "what each part brings"; skips what is done
python benchmarks/study.py run sweeps --workers 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """One run: a configuration file and what is set on top of it."""

    name: str
    config: str
    overrides: tuple[str, ...]


PAPER = "method.preset=paper"
POOLED = ("method.kind=lora", "data.client_column=", "federation.partition=iid", "federation.clients=1", "federation.clients_per_round=1")
"""Training on all clients' data in one place."""
PARTS = {
    "lora": ("method.kind=lora", "method.finetune=true"),
    "fibecfed": (PAPER,),
    "layers": (PAPER, "method.neurons.rule=all", "method.curriculum.pace=none"),
    "layers+mask": (PAPER, "method.curriculum.pace=none"),
    "local": ("method.kind=local",),
}
"""The table of line-ups: shared layers, plus masks, plus curriculum (= fibecfed). `lora` ends with one local training for each
client, whose scores are told apart by round."""


def trial() -> Iterator[Job]:
    """sst2 and mr in the setting of configs/, three seeds."""
    for parts in (("lora", "fibecfed"), ("layers", "layers+mask", "local")):  # the claim first, then what it is made of
        for seed in range(3):
            for part in parts:
                for task in ("sst2", "mr"):
                    overrides = (f"seed={seed}", "evaluation.every=20", *PARTS[part])
                    yield Job(f"trial/{task}/{part}/{seed}", f"configs/{task}.toml", overrides)


_SMALL = ("data.max_train=2000", "federation.rounds=20", "evaluation.every=20")
_NOISE = ("data.label_noise=0.1",)


def sweeps() -> Iterator[Job]:
    """The published method with one part changed: sst2 cut to 2,000 examples, 20 rounds, three seeds."""
    rows: dict[str, tuple[str, ...]] = {"base": (), "lora": ("method.kind=lora",)}
    for n in (1, 2, 4, 5, 6):
        rows[f"layers-{n}"] = ("method.layers.rule=count", f"method.layers.value={n}")
    for rule in ("last", "first", "random"):
        rows[f"layers-{rule}"] = (f"method.layers.rule={rule}", "method.layers.value=3")
    rows["importance-increment"] = ("method.layers.importance=increment",)
    for share in (0.125, 0.25, 0.75):
        rows[f"neurons-{share}"] = (f"method.neurons.value={share}",)
    rows["neurons-all"] = ("method.neurons.rule=all",)
    rows["neurons-random"] = ("method.neurons.rule=random",)
    rows["neurons-coverage"] = ("method.neurons.rule=coverage",)
    for order in ("random", "length", "rarity"):
        rows[f"order-{order}"] = (f"method.curriculum.order={order}",)
    rows["order-easy-to-hard"] = ("method.curriculum.order_within_round=easy_to_hard",)
    for pace in ("sqrt", "quadratic", "exp", "log", "step", "none"):
        rows[f"pace-{pace}"] = (f"method.curriculum.pace={pace}",)
    rows["closing"] = ("method.closing_round=true",)
    for after in (0, 2, 6):
        rows[f"after-{after}"] = (f"method.score_after={after}",)
    noisy: dict[str, tuple[str, ...]] = {"noise-fisher": (), "noise-none": ("method.curriculum.pace=none",)}
    for order in ("random", "length"):
        noisy[f"noise-{order}"] = (f"method.curriculum.order={order}",)
    for after in (0, 2, 6):
        noisy[f"noise-after-{after}"] = (f"method.score_after={after}",)
    for seed in range(3):
        for name, overrides in rows.items():
            paper = () if name == "lora" else (PAPER,)
            yield Job(f"sweeps/{name}/{seed}", "configs/sst2.toml", (*_SMALL, *paper, f"seed={seed}", *overrides))
        for name, overrides in noisy.items():
            yield Job(f"sweeps/{name}/{seed}", "configs/sst2.toml", (*_SMALL, *_NOISE, PAPER, f"seed={seed}", *overrides))


_QUICK = (
    "data.max_train=800", "data.max_test=500", "data.validation_fraction=0.2", "federation.clients=20", "federation.rounds=20",
    "training.local_epochs=1", "training.group_by_length=true", "evaluation.every=4",
)  # fmt: skip
SCORING = {
    "pass": (PAPER,),
    "training": (PAPER, "method.curriculum.scoring=training"),
    "training-4": (PAPER, "method.curriculum.scoring=training", "method.neurons.every=4"),
}


def scoring() -> Iterator[Job]:
    """Scoring in a pass of its own and by the backward passes of training, four tasks as in compare-one-sided.toml, three seeds."""
    for seed in range(3):
        for task in ("sst2", "trec", "subj", "mr"):
            for name, overrides in SCORING.items():
                yield Job(f"scoring/{task}/{name}/{seed}", f"configs/{task}.toml", (*_QUICK, f"seed={seed}", *overrides))


SHARING = {
    "lora": ("method.kind=lora",),
    "default": (PAPER,),  # as it was then
    "agreement": (PAPER, "method.layers.rule=agreement", "method.head=agreement", "method.depth=1.0"),
    "head kept": (PAPER, "method.layers.rule=all", "method.head=personal"),
    "lora validated": ("method.kind=lora", "method.finetune=validated"),
    "best": ("method.preset=best", "method.finetune=validated"),
    "best, 6e-3": ("method.preset=best", "method.finetune=validated", "training.learning_rate=0.006"),
    "best, 6e-3, decay": ("method.preset=best", "method.finetune=validated", "training.learning_rate=0.006", "training.schedule=linear"),
    "best, averaged": ("method.preset=best", "method.finetune=validated", "method.tail_average=0.25"),
    "best, 6e-3, averaged": (
        "method.preset=best",
        "method.finetune=validated",
        "training.learning_rate=0.006",
        "method.tail_average=0.25",
    ),
    "best, server momentum": ("method.preset=best", "method.finetune=validated", "method.aggregation=fedavgm"),
    "best, pull": ("method.preset=best", "method.finetune=validated", "method.layers.pull=0.5"),
    "lora, 6e-3": ("method.kind=lora", "training.learning_rate=0.006"),
    "lora, 6e-3, decay": ("method.kind=lora", "training.learning_rate=0.006", "training.schedule=linear"),
    "best, all blocks": ("method.preset=best", "method.finetune=validated", "method.depth=1.0"),
    "best, upper third": (
        "method.preset=best",
        "method.finetune=validated",
        "method.depth=0.33",
        "method.depth_rule=last",
        "resources.activation_cache_mb=512",
    ),
}
"""Which layers are shared, and the presets; each ends with one local training for each client, whose scores are told apart by round."""
SPREAD = {"a1": (), "a0.3": ("federation.alpha=0.3",), "even": ("federation.partition=iid",)}
_SITES = (
    "data.text_column=text", "data.label_column=label", "data.client_column=client", "federation.partition=column", "data.max_length=48",
    "data.validation_fraction=0.1", "federation.clients_per_round=6", "federation.rounds=8", "training.local_epochs=1",
    "evaluation.every=8", "method.finetune=true",
)  # fmt: skip


def sharing() -> Iterator[Job]:
    """Clients of three kinds in the setting of compare-one-sided.toml; and six sites, where FIBECFED_SITES names the folder of icd6."""
    sites = Path(os.environ["FIBECFED_SITES"]) / "icd6" if "FIBECFED_SITES" in os.environ else None
    for seed in range(3):
        for name, overrides in SHARING.items():
            if sites is not None:
                files = (f"data.path={sites / 'train.parquet'}", f"data.test_path={sites / 'test.parquet'}")
                mean = ("method.layers.mean_every=4",) if name == "agreement" else ()
                yield Job(f"sharing/icd6/sites/{name}/{seed}", "configs/my-data.toml", (*files, *_SITES, f"seed={seed}", *overrides, *mean))
        for spread, how in SPREAD.items():
            for task in ("sst2", "trec"):
                for name, overrides in SHARING.items():
                    more = (*_QUICK, "evaluation.every=20", "method.finetune=true", f"seed={seed}", *how, *overrides)
                    yield Job(f"sharing/{task}/{spread}/{name}/{seed}", f"configs/{task}.toml", more)


FAST = {"lora": ("method.kind=lora",), "fast": ("method.preset=fast",)}


def fast() -> Iterator[Job]:
    """The preset "fast" beside `lora`, four tasks, five seeds, as in compare-one-sided.toml with the default number of rounds; and
    two tasks, one seed, with even clients."""
    long = ("federation.rounds=40", "evaluation.every=40", "resources.workers=1")
    for seed in range(5):
        for task in ("sst2", "trec", "subj", "mpqa"):
            for name, overrides in FAST.items():
                yield Job(f"fast/{task}/{name}/{seed}", f"configs/{task}.toml", (*_QUICK, *long, f"seed={seed}", *overrides))
    for task in ("sst2", "trec"):
        for name, overrides in FAST.items():
            yield Job(f"fast/{task}-even/{name}/0", f"configs/{task}.toml", (*_QUICK, *long, *SPREAD["even"], "seed=0", *overrides))


_UPPER = (
    PAPER, "method.depth_rule=last", "resources.activation_cache_mb=512", "method.layers.rule=last", "method.curriculum.scoring=training",
    "method.neurons.every=4",
)  # fmt: skip
FORMS = {
    "lora": ("method.kind=lora",),
    "2 trained, 2 shared": ("method.depth=2", "method.layers.value=2", *_UPPER),
    "2 trained, 1 shared": ("method.depth=2", "method.layers.value=1", *_UPPER),
    "3 trained, 1 shared": ("method.depth=3", "method.layers.value=1", *_UPPER),
    "3 trained, 2 shared": ("method.depth=3", "method.layers.value=2", *_UPPER),
}
"""How many of the upper blocks are trained and how many of these shared, of MiniLM's six."""


def forms() -> Iterator[Job]:
    """What the preset "fast" was chosen from: two tasks, one seed, 20 rounds."""
    for task in ("sst2", "trec"):
        for name, overrides in FORMS.items():
            more = ("evaluation.every=20", "resources.workers=1", "seed=0")
            yield Job(f"forms/{task}/{name}/0", f"configs/{task}.toml", (*_QUICK, *more, *overrides))


STUDIES = {"trial": trial, "sweeps": sweeps, "scoring": scoring, "sharing": sharing, "fast": fast, "forms": forms}


def do(job: Job, out: Path) -> str:
    """Run, resume or skip a job in a process of its own; what happened."""
    folder = out / job.name
    if (folder / "summary.json").exists():
        return "done before"
    begin = time.monotonic()
    if (folder / "config.toml").exists():
        arguments = ["resume", str(folder)]
    else:
        arguments = ["run", str(ROOT / job.config), *job.overrides, "--out", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        code = subprocess.run([sys.executable, "-m", "fibecfed", *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    return f"exit {code} after {time.monotonic() - begin:.0f} s"


def _measured(study: str) -> set[str]:
    path = Path(__file__).resolve().parent / "results" / f"{study}.jsonl"
    return {json.loads(line)["name"] for line in path.read_text(encoding="utf-8").splitlines()} if path.exists() else set()


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "list"])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="jobs whose name contains this")
    options = parser.parse_args()
    measured = _measured(options.study)
    jobs = [job for job in STUDIES[options.study]() if options.only in job.name and job.name not in measured]
    if options.action == "list":
        print("\n".join(job.name for job in jobs))
        return
    with ThreadPoolExecutor(options.workers) as pool:
        waiting = {pool.submit(do, job, options.out): job for job in jobs}
        for number, future in enumerate(as_completed(waiting), start=1):
            print(f"{number}/{len(jobs)} {waiting[future].name}: {future.result()}", flush=True)


if __name__ == "__main__":
    main()
