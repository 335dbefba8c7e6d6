"""A run that is killed by SIGKILL at ten random points and resumed each time ends with the adapters of one that was not.

Run: python benchmarks/kill_resume.py [--kills 10] [--seed 0] [CONFIG [KEY=VALUE ...]]

Everything goes through the command line, `fibecfed run` and `fibecfed resume`, each in a process of its own. Without a configuration a
small random model is made and trained on made reviews (about two minutes, most of it starting Python). First the run is made without
a kill, which also tells how long it trains; then once more, killed a random time after training began or went on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = (sys.executable, "-m", "fibecfed")
MADE = """
[model]
name = "{folder}/backbone"
rank = 8
[data]
path = "{folder}/reviews.csv"
[federation]
clients = 8
clients_per_round = 3
rounds = 60
[training]
batch_size = 4
learning_rate = 0.02
"""
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "great", "warm", "bad", "dull", "cold", "film", "plot", "cast", "story", "the", "a")


def make_inputs(folder: Path) -> Path:
    """A random BERT, its tokenizer, reviews, and the configuration of a run on them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    from fibecfed.models.tiny import tiny_config

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(tiny_config("bert", layers=4, hidden=64)).save_pretrained(folder / "backbone")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder / "backbone")
    draw = random.Random(0)
    rows = ["text,label"]
    for n in range(240):
        telling = WORDS[4:7] if n % 2 else WORDS[7:10]
        words = [draw.choice(telling), *draw.choices(WORDS[10:], k=draw.randint(2, 8)), draw.choice(telling)]
        rows.append(f"{' '.join(words)},{'good' if n % 2 else 'bad'}")
    (folder / "reviews.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "run.toml").write_text(MADE.format(folder=folder), encoding="utf-8")
    return folder / "run.toml"


def begin(arguments: list[str]) -> subprocess.Popen[str]:
    """A process that runs until it ends or is killed; returns when its training has begun or gone on."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the first line is written when everything is loaded
    return process


def rounds(out: Path) -> int:
    """Rounds in the records, those that a checkpoint knows of and those after it."""
    text = (out / "records.jsonl").read_bytes() if (out / "records.jsonl").exists() else b""
    return text.count(b'\n{"kind":"round"')


def checksum(out: Path) -> str:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))["adapters"]["sha256"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: other ones each time")
    parser.add_argument("config", nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = options.config or str(make_inputs(folder))
        whole, killed = folder / "whole", folder / "killed"
        first = begin(["run", config, *options.overrides, "--out", str(whole)])
        start = time.monotonic()
        if first.communicate() and first.returncode:
            sys.exit(f"the run itself ended with exit code {first.returncode}")
        took = time.monotonic() - start
        print(f"without a kill: {rounds(whole)} rounds in {took:.1f} s, adapters sha256 {checksum(whole)}")
        for number in range(1, options.kills + 1):
            begun = (killed / "config.toml").exists()
            process = begin(["resume", str(killed)] if begun else ["run", config, *options.overrides, "--out", str(killed)])
            after = draw.uniform(0.0, 2 * took / (options.kills + 2))  # on the whole the kills take up most of the run
            time.sleep(after)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            how = "killed" if process.returncode == -signal.SIGKILL else "was done already"
            print(f"{number:3}: {how} {after:5.2f} s after it {'went on' if begun else 'began'}, {rounds(killed)} rounds in the records")
        subprocess.run([*COMMAND, "resume", str(killed)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        same = checksum(killed) == checksum(whole)
        print(f"resumed to its end: adapters sha256 {checksum(killed)}: {'the same' if same else 'NOT THE SAME'}")
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
