"""A few finished runs on one saved backbone and one file of reviews; they are only read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved import run_config, save_inputs, save_language_model

from fibecfed import session

TEXTS = {"good": "great story is great is witty", "bad": "bad the scene bad stale"}  # of reviews.csv


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with backbones and reviews, with and without a second text, and all runs."""
    folder = save_inputs(tmp_path_factory.mktemp("trained"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_language_model(folder / "masked", masked=True)
        save_language_model(folder / "causal", masked=False)
    lines = (folder / "reviews.csv").read_text().splitlines()
    (folder / "pairs.csv").write_text("\n".join([f"more,{lines[0]}", *(f"the film,{line}" for line in lines[1:])]) + "\n")
    return folder


WORDS: dict[str, Any] = {"template": "{x} . it was <mask> .", "label_words": ["dull", "great"]}
_TABLES: dict[str, dict[str, Any]] = {
    "fibecfed": {},
    "lora": {"method": {"kind": "lora"}},
    "delta": {"method": {"kind": "fedex-lora"}},
    "prefixes": {"method": {"kind": "p-tuning-v2"}},
    "pairs": {"data": {"text_column": "more", "pair_column": "review"}},
    "masked": {"model": {"head": "label-words"}, "data": WORDS, "method": {"kind": "lora"}},
    "causal": {"model": {"head": "label-words"}, "data": WORDS, "method": {"kind": "lora"}},
    "decoder": {"method": {"kind": "lora"}},
}


@pytest.fixture(scope="session")
def made(place: Path) -> Callable[[str], Path]:
    """Makes a run by its name, once."""

    def make(name: str) -> Path:
        out = place / "runs" / name
        if not out.exists():
            kind = {"masked": "masked", "causal": "causal", "decoder": "causal"}.get(name, "backbone")
            short = {} if name == "fibecfed" else {"federation": {"rounds": 2}, "evaluation": {"every": 2}}
            tables = short | {key: dict(value) for key, value in _TABLES[name].items()}
            tables["model"] = {"name": str(place / kind)} | tables.get("model", {})
            if name == "pairs":
                tables["data"] |= {"path": str(place / "pairs.csv")}
            session.start(run_config(place, **tables), out)
        return out

    return make


@pytest.fixture(scope="session")
def run(made: Callable[[str], Path]) -> Path:
    """A run of FibecFed whose clients have models of their own."""
    return made("fibecfed")
