"""What the Fisher scores know before any training, with a new classification head and with label words: how often an example with a flipped
label is scored as harder than another one, among all examples and among those of the same label; how far the scores sort by label; and
what the untrained model knows of a task with two classes.

python benchmarks/label_words.py configs/sst2.toml model.name=smollm2-135m data.max_train=128 data.max_test=64 federation.clients=5
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from fibecfed.build import prepare
from fibecfed.config import load
from fibecfed.core.metrics import accuracy
from fibecfed.core.rng import Key
from fibecfed.engine.scoring import totals
from fibecfed.local.batches import batches, by_length
from fibecfed.local.fisher import per_example_fisher_trace

BATCH = 16


def auc(difficulty: Tensor, flipped: Tensor) -> tuple[float, float]:
    """Chance that a flipped example is scored as harder than one of the others, and its standard error if scores said nothing."""
    hard, rest = difficulty[flipped], difficulty[~flipped]
    won = (hard[:, None] > rest[None]).double().mean() + 0.5 * (hard[:, None] == rest[None]).double().mean()
    return float(won), ((len(hard) + len(rest) + 1) / (12 * len(hard) * len(rest))) ** 0.5


def auc_within(difficulty: Tensor, flipped: Tensor, labels: Tensor) -> float:
    """The same chance among examples of one label, mean over the labels weighted by their pairs."""
    won = pairs = 0.0
    for label in labels.unique():
        here = labels == label
        number = float((flipped & here).sum() * (~flipped & here).sum())
        won, pairs = won + number * auc(difficulty[here], flipped[here])[0] if number else won, pairs + number
    return won / pairs


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--noise", type=float, default=0.2, help="share of the training labels that are flipped")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--heads", nargs="+", default=["full", "label-words"], choices=["full", "last", "label-words"])
    options = parser.parse_args()
    for seed in options.seeds:
        for head in options.heads:
            more = (f"seed={seed}", f"model.head={head}", f"data.label_noise={options.noise}")
            prepared = prepare(load(options.config, [*options.overrides, *more]).config)
            task, data = prepared.task, prepared.inputs.data
            params = task.init_params(Key(seed).fold("run", "init"))
            order = by_length(data.train)
            begin = time.process_time()
            found = per_example_fisher_trace(task, params, batches(data.train, order, BATCH))
            chance, error = auc(found, data.noisy[order])
            counts = totals(task, params, data.test, 64)["confusion"]
            seconds = time.process_time() - begin
            flipped, labels = data.noisy[order], data.train.labels[order]
            print(f"seed {seed}, {head}: AUC {chance:.3f} (by chance 0.5 ± {error:.3f}), {int(flipped.sum())} of {len(flipped)} flipped")
            by_label = auc(found, labels == 0)[0]
            within, first = auc_within(found, flipped, labels), data.label_names[0]
            with torch.no_grad():
                likely = float(torch.cat([torch.exp(-task.losses(params, batch)) for batch in batches(data.train, order, BATCH)]).median())
            print(f"  among examples of one label {within:.3f}; label {first} is harder: {by_label:.3f}; median p(label) {likely:.2g}")
            knows = ""
            if len(counts) == 2:
                tests = data.test.batch(list(range(len(data.test))))
                logits = task.logits(params, tests)
                knows = f", AUC of its scores {auc(logits[:, 1] - logits[:, 0], tests['labels'] == 1)[0]:.3f}"
            right, answers = 100 * accuracy(counts.tolist()), (100 * counts.sum(0) / counts.sum()).tolist()
            said = ", ".join(f"{name} {share:.0f} %" for name, share in zip(data.label_names, answers, strict=True))
            print(
                f"  untrained: accuracy {right:.1f} % of {len(data.test)}{knows}, answers {said}; {seconds:.0f} processor seconds",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
