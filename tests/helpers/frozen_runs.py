"""Makes the folders that later versions must read: `PYTHONPATH=tests/helpers python tests/helpers/frozen_runs.py tests/frozen/0.1`.

Run with the version that they are to stand for, once a release and never again. Paths in them are relative to their own folder, but in a
comparison, where they are absolute: those lead to ELSEWHERE, as in a folder that was moved.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from saved import SPECIAL, WORDS, write_reviews
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from fibecfed import session
from fibecfed.comparison.runner.command import compare_in
from fibecfed.comparison.runner.read import load
from fibecfed.config import Config, from_table
from fibecfed.core.rng import Key
from fibecfed.core.types import Round
from fibecfed.core.wire import encode
from fibecfed.engine.events import Event, RoundDone
from fibecfed.models.tiny import tiny_config

METHODS = ("fibecfed", "lora", "hetlora", "fedpeptao")
ROUNDS_BEFORE_STOP = 3
ELSEWHERE = "/elsewhere"

COMPARISON = """
methods = ["fibecfed", "lora"]
tasks = ["reviews"]

[base]
model = { name = "backbone", rank = 2 }
federation = { clients = 3, clients_per_round = 2, rounds = 2 }
training = { batch_size = 4, precision = "float32", device = "cpu" }
evaluation = { every = 2 }

[task.reviews.data]
path = "reviews.csv"
text_column = "review"
label_column = "verdict"

[tuning]
tasks = ["reviews"]
trials = 1

[resources]
workers = 1
"""


PUBLISHED = {
    "finetune": False,
    "head": "shared",
    "curriculum": {"pace": "linear"},
    "layers": {"rule": "share"},
    "neurons": {"rule": "share"},
}
"""FibecFed's defaults when version 0.1 was made."""


def config(kind: str) -> Config:
    """A run of a few rounds with paths that hold wherever the folder lies."""
    return from_table(
        {
            "method": {"kind": kind, **(PUBLISHED if kind == "fibecfed" else {})},
            "model": {"name": "backbone", "rank": 2},
            "data": {"path": "reviews.csv", "text_column": "review", "label_column": "verdict"},
            "federation": {"clients": 3, "clients_per_round": 2, "rounds": 6},
            "training": {"batch_size": 4, "learning_rate": 0.05, "precision": "float32", "device": "cpu"},
            "evaluation": {"every": 2},
        }
    )


def by_default(out: Path) -> dict[str, Any]:
    """A run of FibecFed's defaults on a version's inputs, in the current folder: which layers left, sum and norm of each adapter."""
    table = config("fibecfed").model_dump(mode="json") | {"method": {}}
    summary = session.start(from_table(table), out)
    found: dict[str, Any] = {"left_after_round": summary["selected"]["left_after_round"]}
    for file in sorted(out.rglob("adapter*.safetensors")):
        together = torch.cat([value.double().flatten() for _, value in sorted(load_file(file).items())])
        found[str(file.parent.relative_to(out))] = [round(float(together.sum()), 4), round(float(together.norm()), 4)]
    return found


def backbone(folder: Path) -> None:
    """A random BERT of a few kilobytes, and a tokenizer of whole words."""
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(tiny_config("bert", hidden=32, vocab=len(WORDS))).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # pyright: ignore[reportAttributeAccessIssue]
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def interrupted(kind: str, out: Path) -> None:
    """A run that was stopped after some rounds."""
    done = 0

    def count(event: Event) -> None:
        nonlocal done
        done += isinstance(event, RoundDone)
        if done == ROUNDS_BEFORE_STOP + 1:  # that one is not in the checkpoint yet
            raise KeyboardInterrupt

    try:
        session.start(config(kind), out, count)
    except KeyboardInterrupt:
        return
    raise RuntimeError("the run was over before it was stopped")


def message() -> bytes:
    """What FedAvg-LoRA's server sends in its first round: bytes that clients of another version may get."""
    from fibecfed.build import prepare

    prepared = prepare(config("lora"))
    phase = prepared.method.phases[0]
    server = prepared.method.init(prepared.task, Key(0))
    return encode(phase.broadcast(server, Round(phase.name, 0, 1, 0)))


def records(folder: Path, frozen: Path) -> None:
    """Records and summary alone, of a version between releases whose records have a new form: `... frozen_runs.py records FOLDER FROZEN`.

    Args:
        frozen: a folder made by `main`, for its base model and data.
    """
    folder = folder.resolve()
    os.chdir(frozen)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for kind in METHODS:
        with tempfile.TemporaryDirectory() as made:
            session.start(config(kind), Path(made) / kind, adapters=False)
            (folder / kind).mkdir(parents=True)
            for name in ("records.jsonl", "summary.json"):
                shutil.copyfile(Path(made) / kind / name, folder / kind / name)


def main(folder: Path) -> None:
    """Inputs, a finished run and an interrupted one of each method, and a comparison."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    backbone(Path("backbone"))
    write_reviews(Path("reviews.csv"), 60)
    Path("message.bin").write_bytes(message())
    for kind in METHODS:
        session.start(config(kind), Path("finished") / kind)
        interrupted(kind, Path("interrupted") / kind)
    Path("compare.toml").write_text(COMPARISON)
    from fibecfed.exits import console

    compare_in(load(Path("compare.toml"), ()), Path("comparison"), console())
    for path in Path().rglob("*"):
        if path.name == "lock" or (path.match("comparison/report*") and path.name != "report.md"):
            path.unlink()
        elif path.is_file():
            path.chmod(0o644)
            if path.is_relative_to("comparison"):
                path.write_text(path.read_text().replace(str(Path.cwd()), ELSEWHERE))


if __name__ == "__main__":
    if sys.argv[1] == "records":
        records(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "default":  # ... frozen_runs.py default tests/frozen/0.1 tests/frozen/default.json
        file = Path(sys.argv[3]).resolve()
        os.chdir(sys.argv[2])
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as made:
            file.write_text(json.dumps(by_default(Path(made) / "run"), indent=1) + "\n")
    else:
        main(Path(sys.argv[1]))
