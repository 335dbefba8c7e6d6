"""`fibecfed predict` against a transformers pipeline in batches of 64: seconds of the processor, and whether the labels are equal.

Run: OMP_NUM_THREADS=1 python benchmarks/predict.py [texts [repetitions]]

A short run of FedAvg-LoRA with the packaged MiniLM on the packaged movie reviews; then 10,000 different texts of that package:
sentences, and every tenth joined to the nine before it, so that lengths differ as in a user's file. Compared in turn, once, in one
process on one thread, in float32:

- predict: from a CSV file to a CSV file, as the command does it: reading, tokens, batches by length, probabilities, writing;
- pipeline: `fibecfed.load_model(run)`, transformers' own pipeline around the merged model, on the texts in a list, in batches of 64.

Loading the model is apart. A wrong order would show as other labels.
"""

from __future__ import annotations

import csv
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

import fibecfed
from fibecfed.config import load
from fibecfed.core.rng import Key
from fibecfed.data.options import DataOptions
from fibecfed.data.sources import load as load_data
from fibecfed.trained.model import load as load_trained
from fibecfed.trained.predict import TextColumns, predict_file

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.toml"
SHORT = (
    "method.kind=lora",
    "data.max_train=400",
    "data.max_test=60",
    "federation.clients=4",
    "federation.clients_per_round=4",
    "federation.rounds=2",
    "training.device=cpu",
)


def texts_of_package(number: int) -> list[str]:
    """Different texts: sentences, every tenth with the nine before it, and behind the last sentence each with the one after it."""
    data = load_data(DataOptions(task="movie-reviews"), Key(0))
    sentences = list(dict.fromkeys([*data.train.texts, *data.test.texts]))
    twice = [f"{sentence} {after}" for sentence, after in pairwise(sentences)]
    around = [*sentences, *twice][:number]
    texts = [" ".join(around[row - 9 : row + 1]) if row % 10 == 9 else around[row] for row in range(len(around))]
    if len(set(texts)) < number:
        raise SystemExit(f"got {number} texts, expected at most {len(set(texts))}, which is what the package makes")
    return texts


def main(number: int, repetitions: int) -> None:
    """Print both times, their ratio, and how many labels differ."""
    torch.set_num_threads(1)
    texts = texts_of_package(number)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        fibecfed.run(load(CONFIG, SHORT).config, folder / "run")
        with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
        model, classify = load_trained(folder / "run", device="cpu"), fibecfed.load_model(folder / "run", device="cpu")
        ratios, differ = [], 0
        for repetition in range(repetitions):
            out = folder / f"out-{repetition}.csv"
            began = time.process_time()
            predict_file(model, str(folder / "texts.csv"), out, TextColumns(), lambda batches, count: batches)
            ours = time.process_time() - began
            began = time.process_time()
            answers = classify(texts, batch_size=64)
            theirs = time.process_time() - began
            with out.open(newline="", encoding="utf-8") as file:
                labels = [row["predicted_label"] for row in csv.DictReader(file)]
            differ += sum(ours_ != answer["label"] for ours_, answer in zip(labels, answers, strict=True))
            ratios.append(ours / theirs)
            print(f"{len(texts):,} texts: predict {ours:.1f} s, pipeline {theirs:.1f} s, ratio {ours / theirs:.2f}", flush=True)
    print(f"labels that differ: {differ}; ratio {sum(ratios) / len(ratios):.2f}")


if __name__ == "__main__":
    given = [int(one) for one in sys.argv[1:]]
    main(*given, *(10_000, 1)[len(given) :])
