"""MiniLM on movie reviews over three SuperNodes, by the commands of docs/deploy.md."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from machines import BIN, Machines

from fibecfed.core.rng import Key
from fibecfed.data.options import DataOptions
from fibecfed.data.sources import load

pytestmark = [pytest.mark.flower, pytest.mark.slow]

SITES = ("hospital-a", "hospital-b", "hospital-c")
ROUNDS, TRAIN, TEST = 4, 160, 60


def write_parts(folder: Path) -> None:
    """Each site's own reviews: train and test, no review in two places."""
    dataset = load(DataOptions(task="movie-reviews"), Key(0))
    names = dataset.label_names
    for part, rows, size in (("train", dataset.train, TRAIN), ("test", dataset.test, TEST)):
        order = Key(0).fold(part).permutation(len(rows)).tolist()
        found = iter([(rows.texts[i], names[rows.labels[i]]) for i in order])
        for site in SITES:
            with (folder / f"{site}-{part}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("review", "stars"), *islice(found, size)])


def put(path: Path, **values: str) -> None:
    """Set keys of a commented TOML file that stand in it once."""
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        lines = [line for line in text.splitlines() if line.startswith(f"{key} = ")]
        assert len(lines) == 1, (key, lines)
        text = text.replace(f"\n{lines[0]}\n", f"\n{key} = {value}\n")
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    here = Machines(tmp_path)
    write_parts(tmp_path)
    here.make()
    put(here.app / "federation.toml", labels='["negative", "positive"]', rounds=str(ROUNDS), every=str(ROUNDS))
    try:
        here.link()
        for site in SITES:
            here.key(site)
            here.register(site)
            here.client(site, "--text-column", "review", "--label-column", "stars")
        for site in SITES:
            here.until(f"client-{site}", "listening at")
            here.node(site)
        yield here
    finally:
        here.close()


def test_minilm_learns_reviews_that_stay_at_three_sites(machines: Machines) -> None:
    shown = machines.run(str(BIN / "flwr"), "run", "fed", "production", "--stream")
    (out,) = (machines.app / "runs").iterdir()
    summary = json.loads((out / "summary.json").read_text())
    scores = summary["scores"]
    print(f"\npersonalised {scores['pooled_personalised']:.3f}")
    assert scores["pooled_personalised"] > 0.65, shown
    assert (out / "global" / "adapter_model.safetensors").is_file() and not (out / "clients").exists()
    for site in SITES:
        assert machines.log(f"client-{site}").count(": loaded ") == 1
