"""A loaded model is the one that the run scored: on the run's own test examples it gives the confusion matrices of the run's records."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fibecfed.build import read_inputs
from fibecfed.core.errors import UserError
from fibecfed.core.records import EvalRecord, read
from fibecfed.core.statistics import class_sums, plain
from fibecfed.core.types import Examples
from fibecfed.data.text import TableExamples
from fibecfed.trained.model import BATCH, TOKENS, TrainedModel, batches_by_length, load

KINDS = ("fibecfed", "lora", "delta", "prefixes", "pairs", "masked", "causal", "decoder")


def sums(model: TrainedModel, examples: Examples) -> dict[str, Any]:
    assert examples.labels is not None
    assert isinstance(examples, TableExamples)
    return plain(class_sums(model.logits(examples), examples.labels))


def same(found: dict[str, Any], recorded: Any) -> None:
    assert found["confusion"] == [list(row) for row in recorded["confusion"]]
    assert found["nll"] == pytest.approx(recorded["nll"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_that_the_run_scored(kind: str, made: Callable[[str], Path]) -> None:
    run = made(kind)
    last = [record for record in read(run / "records.jsonl")[1] if isinstance(record, EvalRecord)][-1]
    model = load(run)
    data = read_inputs(model.found.config).data
    same(sums(model, data.test), last.server)
    for client in sorted(path.name for path in run.glob("clients/*"))[:2]:
        same(sums(load(run, client), data.client(client).test), last.clients[client])


def test_texts_are_read_as_in_training(run: Path) -> None:
    model = load(run)
    data = read_inputs(model.found.config).data
    rows = (Path(str(model.found.config.data.path)).read_text().splitlines())[1:]
    texts = {tuple(model.tokens([row.rpartition(",")[0]]).table.ids.tolist()) for row in rows}
    ids, offsets = data.test.table.ids, data.test.table.offsets
    assert {tuple(ids[a:b].tolist()) for a, b in itertools.pairwise(offsets)} <= texts


def test_the_order_is_that_of_the_texts_whatever_their_length(run: Path) -> None:
    model = load(run)
    texts = ["bad", "great story is great is witty the film", "dull plot", "good the cast a", "cold"] * 20
    together = model.probabilities(texts)
    alone = torch.cat([model.probabilities([text]) for text in texts[:5]])
    torch.testing.assert_close(together, alone.repeat(20, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(together.sum(-1), torch.ones(100))
    assert len({round(float(p), 5) for p in alone[:, 0]}) >= 4, "texts that the model tells apart"


def test_batches_hold_each_text_once_and_long_ones_few() -> None:
    lengths = torch.tensor([8] * 200 + [512] * 20 + [9000])
    batches = batches_by_length(lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(221))
    assert all(len(batch) == 1 or len(batch) * int(lengths[batch].max()) <= TOKENS for batch in batches)
    assert max(map(len, batches)) == BATCH and batches[0] == [220]


def test_one_text_and_two_are_told_apart(run: Path, made: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="got two texts, expected one"):
        load(run).probabilities(["a"], ["b"])
    with pytest.raises(UserError, match="got one text, expected two"):
        load(made("pairs")).probabilities(["a"])


def test_other_weights_than_those_it_was_trained_on_are_rejected(run: Path, place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other weights than the run was trained on.*--base"):
        load(run, base=str(place / "causal"))
    shutil.copytree(place / "backbone", tmp_path / "moved")
    assert load(run, base=str(tmp_path / "moved")).labels == ("bad", "good")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "labels.json"])
@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_damaged_adapter_is_rejected_in_a_sentence(file: str, text: str | None, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "clients"))
    damaged = tmp_path / "run" / "global" / file
    damaged.unlink() if text is None else damaged.write_text(text)
    with pytest.raises(UserError, match=r"restore the folder from a backup"):
        load(tmp_path / "run")


@pytest.mark.parametrize("kind", ["lora", "fibecfed", "hetlora", "fedpeptao"])
def test_a_run_of_version_0_1_is_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = Path(__file__).parents[1] / "frozen" / "0.1"
    monkeypatch.chdir(frozen)
    run = Path("finished") / kind
    score = json.loads((run / "summary.json").read_text())["scores"]["global"]
    model = load(run)
    found = sums(model, read_inputs(model.found.config).data.test)["confusion"]
    assert sum(row[place] for place, row in enumerate(found)) / sum(map(sum, found)) == pytest.approx(score)
