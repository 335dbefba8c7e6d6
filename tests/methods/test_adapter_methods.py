"""The methods whose adapter sets them apart: what they train, what travels, and what a run of theirs leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from made import KEY, federation, made_data, made_method, made_options, made_task
from saved import run_config, save_backbone, write_reviews
from transformers import AutoModelForSequenceClassification

import fibecfed
from fibecfed import session
from fibecfed.build import read_inputs
from fibecfed.core.errors import UserError
from fibecfed.core.types import Round

DATA = made_data(3, 5)
TRAINED = {
    "adapter": "adapter.layers.", "prompt-tuning": "adapter.prompt", "fedprompt": "adapter.prompt", "p-tuning-v2": "adapter.layers.",
    "idpg": "adapter.", "attempt": "adapter.", "lpt": "adapter.",
}  # fmt: skip


@pytest.mark.parametrize("kind", TRAINED)
def test_all_that_is_trained_travels_but_the_head_of_fedprompt(kind: str) -> None:
    task = made_task(2, made_options(kind))
    world = federation(made_method(kind), task, DATA)
    shared = set(world.method.phases[0].broadcast(world.server, Round("tune", 0, 4, 0)).shared)
    heads = {name for name in task.names if name.startswith("classifier.")}
    norms = {name for name in task.names if "LayerNorm" in name}
    assert len(heads) == 2 and bool(norms) == (kind == "adapter")
    assert all(name.startswith(TRAINED[kind]) for name in set(task.names) - heads - norms)
    assert shared == set(task.names) - (heads if kind == "fedprompt" else set())


def test_a_client_of_fedprompt_keeps_its_head_and_the_global_one_stays_as_drawn() -> None:
    task = made_task(2, made_options("fedprompt"))
    world = federation(made_method("fedprompt", rounds=2), task, DATA, per_round=3)
    start = task.init_params(KEY.fold("run", "init"))
    world.finish()
    heads = {name for name in task.names if name.startswith("classifier.")}
    states = [world.state(client).own for client in DATA.clients]
    assert all(set(state) == heads for state in states)
    assert len({state["classifier.weight"].numpy().tobytes() for state in states}) == 3
    assert all(torch.equal(world.server.params[name], start[name]) for name in heads)
    assert not torch.equal(world.server.params["adapter.prompt"], start["adapter.prompt"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapters")
    save_backbone(place / "backbone")
    write_reviews(place / "reviews.csv", 60)
    return place


def test_a_run_ends_with_adapters_that_the_package_loads(folder: Path, tmp_path: Path) -> None:
    method = {"kind": "lpt", "adapter": {"num_tokens": 2, "size": 4}}
    summary = session.start(run_config(folder, method=method, federation={"rounds": 2}), tmp_path / "run")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "backbone", num_labels=2)
    task = fibecfed.load_adapter(base, tmp_path / "run" / "global")
    assert summary["method"] == "lpt" and (task.num_layers, task.num_classes) == (2, 2)
    assert "A late prompt adapter with its classification head" in (tmp_path / "run" / "global" / "README.md").read_text(encoding="utf-8")


def test_a_prompt_that_leaves_too_few_positions_to_the_text_is_refused(folder: Path, tmp_path: Path) -> None:
    method = {"kind": "prompt-tuning", "adapter": {"num_tokens": 125}}
    with pytest.raises(UserError, match=r"expected at most 5, the model's positions without the 125 of the prompt; set it to that"):
        session.start(run_config(folder, method=method), tmp_path / "run")


@pytest.mark.parametrize(("method", "fits"), [("prompt-tuning", False), ("p-tuning-v2", False), ("lpt", False), ("lora", True)])
def test_tokens_before_the_text_that_attention_would_not_reach_are_refused(method: str, fits: bool, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    path = tmp_path / "data" / "backbone" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sliding_window": 12}))
    options = {"kind": method} | ({} if method == "lora" else {"adapter": {"num_tokens": 4}})
    config = run_config(tmp_path / "data", method=options)
    if fits:
        read_inputs(config)
    else:
        with pytest.raises(UserError, match=r"data.max_length: got a text of 10 tokens, expected at most 8: .* window is 12 tokens"):
            read_inputs(config)
