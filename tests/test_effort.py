"""Batches and tokens are those of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from saved import run_config, save_backbone

from fibecfed import session
from fibecfed.build import prepare
from fibecfed.core.records import RoundRecord, read
from fibecfed.core.rng import Key
from fibecfed.effort import plan_effort
from fibecfed.local.batches import PASS_BATCH, batches, by_length, length_batches, shuffled_batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("effort")
    save_backbone(place / "backbone")
    rows = [f"{'film' + ' the' * (n * 7 % 40)},{n % 2}" for n in range(200)]
    (place / "reviews.csv").write_text("review,verdict\n" + "\n".join(rows) + "\n")
    return place


def config(folder: Path, **more: Any) -> Any:
    table = {"data": {"max_length": 32}, "federation": {"clients": 5, "clients_per_round": 2, "rounds": 3}, "training": {"batch_size": 4}}
    return run_config(folder, **{**table, **more})


@pytest.mark.parametrize("grouped", [True, False])
def test_tokens_are_those_of_the_batches_padding_included(folder: Path, grouped: bool) -> None:
    prepared = prepare(config(folder, training={"batch_size": 4, "group_by_length": grouped}))
    data, options = prepared.inputs.data, prepared.inputs.config.training
    effort = plan_effort(prepared)
    sizes = []
    for client in data.clients:
        train = data.client(client).train
        order = torch.arange(len(train))
        sizes += [batch["input_ids"].numel() for batch in shuffled_batches(train, order, options, Key(1))]
    assert effort.step.tokens == pytest.approx(sum(sizes) / len(sizes), rel=0.05)  # another order
    batch_size = prepared.inputs.config.evaluation.batch_size
    parts = [part for client in data.clients for part in (data.client(client).test, data.client(client).validation)]
    scored = [batch["input_ids"].numel() for part in parts for batch in length_batches(part, batch_size)]
    whole = [batch["input_ids"].numel() for part in (data.test, data.validation) for batch in length_batches(part, batch_size)]
    personal = 1 + prepared.method.is_personal
    evaluations = (effort.predicted / (len(data.test) + len(data.validation)) - 1) / personal
    assert effort.evaluations.tokens == sum(whole) + evaluations * (sum(scored) + (personal - 1) * sum(whole))
    assert effort.evaluations.batches == len(whole) + evaluations * (len(scored) + (personal - 1) * len(whole))


def test_a_validated_training_counts_what_it_asks_of_the_validation_parts(folder: Path) -> None:
    kinds: dict[str, Any] = {}
    for how in (True, "validated"):
        wanted = config(folder, method={"kind": "lora", "finetune": how}, data={"max_length": 32, "validation_fraction": 0.3})
        kinds[str(how)] = prepare(wanted), plan_effort(prepare(wanted))
    (prepared, chosen), (_, plain) = kinds["validated"], kinds["True"]
    parts = [prepared.inputs.data.client(client).validation for client in prepared.inputs.data.clients]
    sizes = [batch["input_ids"].numel() for part in parts for batch in batches(part, by_length(part), PASS_BATCH)]
    assert (chosen.steps, chosen.passes) == (plain.steps, plain.passes)
    assert chosen.evaluations.tokens - plain.evaluations.tokens == 3 * sum(sizes) > 0
    assert chosen.evaluations.batches - plain.evaluations.batches == 3 * len(sizes)
    assert chosen.predicted - plain.predicted == 3 * sum(map(len, parts))


@pytest.mark.parametrize(("finetune", "per_round"), [(False, 2), (True, 2), ("validated", 2), ("validated", 5)])
def test_steps_are_those_of_the_clients_that_are_asked(folder: Path, tmp_path: Path, finetune: Any, per_round: int) -> None:
    federation = {"clients": 5, "clients_per_round": per_round, "rounds": 3}
    changed: Any = {"data": {"max_length": 32, "validation_fraction": 0.3}, "federation": federation}
    wanted = config(folder, method={"kind": "lora", "finetune": finetune}, **changed)
    effort = plan_effort(prepare(wanted))
    summary = session.start(wanted, tmp_path / "run", adapters=False)
    assert effort.steps == summary["steps"]
    records = [record for record in read(tmp_path / "run" / "records.jsonl")[1] if isinstance(record, RoundRecord)]
    assert effort.parts["tune"].answers == sum(len(record.cohort) for record in records if record.phase == "tune") == 3 * per_round
