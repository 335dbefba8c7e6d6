"""A natural federation that no setting was chosen on: sentiment at three sites that write differently.

python benchmarks/held_out.py make ARCHIVE FOLDER     # vaderSentiment-3.3.2.tar.gz from PyPI: train.parquet and test.parquet
python benchmarks/held_out.py run FOLDER OUT          # resumable: what is done is not made again
python benchmarks/held_out.py table OUT

The texts are those that VADER (Hutto and Gilbert, ICWSM 2014; MIT licence) was judged on, with the mean of twenty people's ratings, from
-4 to 4: tweets, sentences of New York Times editorials, and sentences of product reviews; a site is where a text is from. Below -0.5 is
negative, above 0.5 positive, the rest neutral. Its fourth source, movie reviews, stays out: its sentences are in mr and sst2. All sentences
of an editorial or a review are on one side, training or test. The settings are those of icd6 in `study.py`.
"""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sharing import outcome  # isort: skip
from study import POOLED  # isort: skip

SITES = {"tweets": "tweets", "editorials": "nytEditorialSnippets", "products": "amazonReviewSnippets"}
TRAIN, TEST, SEEDS = 1200, 600, 3
"""Most texts of a site."""

_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SETTINGS = (
    "data.text_column=text", "data.label_column=label", "data.client_column=client", "federation.partition=column", "data.max_length=64",
    "data.validation_fraction=0.1", "federation.clients_per_round=3", "federation.rounds=8", "training.local_epochs=1",
    "evaluation.every=8", "resources.workers=1",
)  # fmt: skip
METHODS: Mapping[str, tuple[str, ...]] = {
    "lora": ("method.kind=lora", "method.finetune=true"),
    "fibecfed": ("method.kind=fibecfed", "method.preset=best"),
    "local": ("method.kind=local",),
    "pooled": POOLED,
}
"""Runs. That of `lora` ends with a local training, and gives the rows of `lora` and of `lora-finetune`."""


def rated(archive: Path, source: str) -> Iterator[tuple[str, float, str]]:
    """Of a source: which document a text is of, its mean rating, the text; each text once."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(_INNER)
        if inner is None:
            raise SystemExit(f"{archive}: holds no {_INNER}; expected vaderSentiment-3.3.2.tar.gz")
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as found:
            file = found.extractfile(f"hutto_ICWSM_2014/{source}_GroundTruth.txt")
            assert file is not None
            lines = file.read().decode("utf-8").splitlines()
    seen = set[str]()
    for line in lines:
        number, rating, text = line.split("\t")
        if text not in seen:
            seen.add(text)
            yield number.split("_")[0], float(rating), text


def sides(archive: Path, source: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Training and test texts of a source with their classes: every third document is for testing; evenly spread over the file."""
    rows = list(rated(archive, source))
    documents = {name: i for i, name in enumerate(dict.fromkeys(name for name, _, _ in rows))}
    found: tuple[list[tuple[str, str]], list[tuple[str, str]]] = [], []
    for name, rating, text in rows:
        label = "negative" if rating < -0.5 else "positive" if rating > 0.5 else "neutral"
        found[documents[name] % 3 == 0].append((text, label))
    return spread(found[0], TRAIN), spread(found[1], TEST)


def spread(rows: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    return [rows[i * len(rows) // min(most, len(rows))] for i in range(min(most, len(rows)))]


def make(archive: Path, folder: Path) -> None:
    """The two tables."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {site: sides(archive, source) for site, source in SITES.items()}
    for side, name in enumerate(("train", "test")):
        rows = [{"text": text, "label": label, "client": site} for site, part in parts.items() for text, label in part[side]]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
        print(name, {site: len(part[side]) for site, part in parts.items()})


def run(data: Path, out: Path) -> None:
    """Every run that is not done."""
    files = (f"data.path={data / 'train.parquet'}", f"data.test_path={data / 'test.parquet'}")
    for seed in range(SEEDS):
        for name, overrides in METHODS.items():
            folder = out / name / str(seed)
            if not (folder / "summary.json").exists():
                begun = (folder / "config.toml").exists()
                new = ["run", "configs/my-data.toml", *files, *SETTINGS, *overrides, f"seed={seed}", "--out", str(folder)]
                subprocess.run([sys.executable, "-m", "fibecfed", *(["resume", str(folder)] if begun else new)], check=True)


def table(out: Path) -> None:
    """Accuracies in per cent, mean and standard deviation over seeds; MB and processor seconds of a run."""
    print("| method | seeds | personalised | global | MB | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for title, name, own in (
        ("`lora`", "lora", "before"), ("`lora-finetune`", "lora", "after"), ("`fibecfed`", "fibecfed", "after"),
        ("each site alone", "local", "after"), ("pooled", "pooled", "after"),
    ):  # fmt: skip
        found = [outcome(path.parent) for path in sorted((out / name).glob("*/summary.json"))]
        if found:
            cells = [spread_of([getattr(one, key) for one in found]) for key in (own, "server")]
            costs = ("megabytes_before", "seconds_before") if own == "before" else ("megabytes", "seconds")
            size, seconds = (statistics.mean(getattr(one, key) for one in found) for key in costs)
            whole = "-" if name in ("local", "pooled") else cells[1]  # no global model; the one model is that of the first column
            print(f"| {title} | {len(found)} | {cells[0]} | {whole} | {size:.1f} | {seconds:.0f} |")


def spread_of(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def main() -> None:
    match sys.argv[1:]:
        case ["make", archive, folder]:
            make(Path(archive), Path(folder))
        case ["run", data, out]:
            run(Path(data), Path(out))
        case ["table", out]:
            table(Path(out))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
