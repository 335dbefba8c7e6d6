"""Exported models in an environment of their own, without fibecfed and PEFT: are the probabilities those of `fibecfed predict`?

Run: python benchmarks/elsewhere.py [folder for the environment]

A short run of FedAvg-LoRA with the packaged MiniLM on the packaged movie reviews, exported as merged weights and as ONNX; a new virtual
environment with torch, transformers and onnxruntime in the versions of constraints.txt, and nothing else that was asked for; there 200
texts go through both. Prints the largest difference of a probability from those of `fibecfed predict`, and ends with code 1 where it is
above 1e-5.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import fibecfed
from fibecfed.config import load
from fibecfed.core.rng import Key
from fibecfed.data.options import DataOptions
from fibecfed.data.sources import load as load_data
from fibecfed.trained.export import export
from fibecfed.trained.model import load as load_trained
from fibecfed.trained.predict import TextColumns, predict_file

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("torch", "transformers", "onnxruntime")
MOST = 1e-5
SHORT = (
    "method.kind=lora", "data.max_train=400", "data.max_test=60", "federation.clients=4", "federation.clients_per_round=4",
    "federation.rounds=2", "training.device=cpu",
)  # fmt: skip

PROGRAM = """
import importlib.util, json, sys
import onnxruntime, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
found = {name: importlib.util.find_spec(name) is not None for name in ("fibecfed", "peft")}
tokenizer, texts = AutoTokenizer.from_pretrained("merged"), json.load(open("texts.json", encoding="utf-8"))
model = AutoModelForSequenceClassification.from_pretrained("merged").eval()
session = onnxruntime.InferenceSession("onnx/model.onnx")
merged, onnx = [], []
for text in texts:
    batch = tokenizer([text], truncation=True, return_tensors="pt")
    with torch.no_grad():
        merged += model(**batch).logits.softmax(-1).tolist()
    [logits] = session.run(["logits"], {one.name: batch[one.name].numpy() for one in session.get_inputs()})
    onnx += torch.tensor(logits).softmax(-1).tolist()
versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "python": sys.version.split()[0]}
json.dump({"there": found, "merged": merged, "onnx": onnx, "labels": model.config.id2label, "versions": versions}, open("found.json", "w"))
"""


def environment(folder: Path) -> Path:
    """The interpreter of a new environment with what is needed; one that is there already is taken."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(pins))
            file.flush()
            subprocess.run([python, "-m", "pip", "install", "-q", "--constraint", file.name, *NEEDED], check=True)
    return python


def main(place: Path, folder: Path) -> int:
    """Print what differs."""
    data = load_data(DataOptions(task="movie-reviews"), Key(0))
    texts = [*data.test.texts][:200]
    fibecfed.run(load(ROOT / "configs" / "demo.toml", SHORT).config, folder / "run")
    export(folder / "run", None, {"merged": folder / "merged", "onnx": folder / "onnx"})
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    predict_file(load_trained(folder / "run", device="cpu"), str(folder / "texts.csv"), folder / "out.csv", TextColumns(), lambda b, _: b)
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    subprocess.run([environment(place), "-I", "-c", PROGRAM], cwd=folder, check=True)
    found = json.loads((folder / "found.json").read_text())
    assert not any(found["there"].values()), found["there"]
    names = [found["labels"][str(place)] for place in range(len(found["labels"]))]
    with (folder / "out.csv").open(newline="", encoding="utf-8") as file:
        ours = [[float(row[f"probability_{name}"]) for name in names] for row in csv.DictReader(file)]
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()) + "; neither fibecfed nor PEFT")
    worst = 0.0
    for form in ("merged", "onnx"):
        far = max(abs(a - b) for mine, theirs in zip(ours, found[form], strict=True) for a, b in zip(mine, theirs, strict=True))
        print(f"{form}: {len(texts)} texts, largest difference of a probability {far:.1e}")
        worst = max(worst, far)
    return int(worst > MOST)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(made) / "venv", Path(made)))
