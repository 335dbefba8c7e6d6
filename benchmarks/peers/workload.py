"""What is the same for everybody: the texts, the model, a user's own training loop, and how a round is measured.

LoRA (r = 8, on query and value) and a head on the packaged MiniLM, sst2, 20 clients of 96 examples, 5 a round, one local epoch in batches
of 16, AdamW. Each peer trains on the same files, in float32, with one thread a process.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

CLIENTS, EXAMPLES, PER_ROUND, BATCH, RATE, RANK = 20, 96, 5, 16, 2e-3, 8
WEIGHT_DECAY, MAX_LENGTH = 0.01, 64


def prepare(folder: Path) -> None:
    """Write the clients' texts, and where the model lies. Needs this package, and sst2 in $FIBECFED_DATA or from the hub."""
    from fibecfed.core.rng import Key
    from fibecfed.data.options import DataOptions
    from fibecfed.data.sources import load
    from fibecfed.models.base_models import model_folder

    rows = load(DataOptions(task="sst2"), Key(0)).train
    assert rows.labels is not None
    order = Key(0).permutation(len(rows)).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    for name, start, each in (("train", 0, EXAMPLES), ("test", CLIENTS * EXAMPLES, 2)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("client", "text", "label"))
            for place in range(CLIENTS * each):
                row = order[start + place]
                table.writerow((f"{place // each:03}", rows.texts[row], "positive" if rows.labels[row] else "negative"))
    (folder / "model.json").write_text(json.dumps(model_folder("minilm")))


def model_of(folder: Path) -> str:
    return json.loads((folder / "model.json").read_text())


@functools.cache
def lora_model(folder: Path) -> Any:
    """The model as a user of transformers and PEFT makes it. Made once in a process, as is everything below."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(model_of(folder), num_labels=2, **no_dropout)
    return get_peft_model(model, LoraConfig("SEQ_CLS", r=RANK, lora_alpha=16, target_modules=["query", "value"], lora_dropout=0.0))


@functools.cache
def examples(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The tokens of each client's training examples."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_of(folder))
    found: dict[str, list[dict[str, Any]]] = {}
    with (folder / "train.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            tokens = tokenizer(row["text"], truncation=True, max_length=MAX_LENGTH)
            found.setdefault(row["client"], []).append({**tokens, "labels": int(row["label"] == "positive")})
    return found


@functools.cache
def padded(folder: Path) -> Any:
    """Makes a batch of examples, as long as the longest of them."""
    from transformers import AutoTokenizer, DataCollatorWithPadding

    collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(model_of(folder)))
    return lambda rows: dict(collate(rows))


def loader(folder: Path, client: str) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(examples(folder)[client], batch_size=BATCH, shuffle=True, collate_fn=padded(folder))  # pyright: ignore[reportArgumentType]


def train(model: Any, batches: Any) -> int:
    """One local epoch: the loop that the documentation of each framework has a user write; the number of examples."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=WEIGHT_DECAY)
    model.train()
    for batch in batches:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return len(batches.dataset)


class Rounds:
    """CPU seconds of each round, and wall seconds from the start of the process to the end of the first.

    Args:
        tree: whether other processes take part: their seconds count too, those of all below the one with the id $PEERS_ROOT.
    """

    def __init__(self, tree: bool = False) -> None:
        self._seconds = self._of_tree if tree else time.process_time
        self.cpu_s: list[float] = []
        self.first_s = 0.0
        self._start = self._seconds()

    def done(self) -> None:
        """A round is over."""
        self.cpu_s.append(self._seconds() - self._start)
        self.first_s = self.first_s or time.time() - float(os.environ["PEERS_START"])
        self._start = self._seconds()

    def report(self, **more: float) -> None:
        """Leave what was measured where the command looks for it."""
        Path(os.environ["PEERS_REPORT"]).write_text(json.dumps({"cpu_s": self.cpu_s, "first_s": self.first_s, **more}))

    @staticmethod
    def _of_tree() -> float:
        import psutil

        root, total = psutil.Process(int(os.environ["PEERS_ROOT"])), 0.0
        for process in (root, *root.children(recursive=True)):
            try:
                total += sum(process.cpu_times()[:4])  # of its own, and of its children that ended
            except psutil.NoSuchProcess:
                continue
        return total
