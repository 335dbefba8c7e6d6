"""A configuration meets examples without classes: what of it needs classes is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from next_tokens import texts
from rich.text import Text
from saved import run_config, save_backbone

from fibecfed.build import prepare, read_inputs
from fibecfed.config import Config, needing_classes
from fibecfed.core.errors import UserError
from fibecfed.inspection import clients_table, data_section

SELF_EVOLUTION = {"kind": "self-evolution"}
NEEDY: list[tuple[dict[str, Any], str]] = [
    (
        {"federation": {"partition": "shards"}},
        'federation.partition: got "shards" for examples without classes; set "column" or "iid"',
    ),
    ({"data": {"label_noise": 0.1}}, "data.label_noise: got 0.1 for examples without classes; remove it"),
    (
        {"training": {"class_weights": "balanced"}},
        "training.class_weights: got weights of classes for examples without classes; remove it",
    ),
    (
        {"method": {"curriculum": {"labels": "model"}}},
        'method.curriculum.labels: got "model", which goes over all classes, for examples without classes; set "true"',
    ),
    (
        {"method": SELF_EVOLUTION},
        'method.kind: got "self-evolution", which needs the probabilities of classes, for examples without classes; choose another',
    ),
    (
        {"model": {"head": "label-words"}, "data": {"template": "{x} <mask>", "label_words": ["a", "b"]}},
        'model.head: got "label-words", which stand for classes, for examples without classes; choose another head',
    ),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_backbone(folder / "backbone")
    return folder


def config(inputs: Path, **tables: Any) -> Config:
    return run_config(inputs, **{**tables, "federation": {"partition": "iid", **tables.get("federation", {})}})


def read_data(*_: Any) -> Any:
    return texts()


@pytest.mark.parametrize(("tables", "said"), NEEDY, ids=[said.partition(":")[0] for _, said in NEEDY])
def test_each_key_that_needs_classes_is_refused_in_a_sentence(tables: dict[str, Any], said: str, inputs: Path) -> None:
    needy = config(inputs, **tables)
    assert needing_classes(needy) == [said]
    with pytest.raises(UserError) as rejection:
        read_inputs(needy, read_data)
    assert str(rejection.value) == said


def test_what_needs_no_classes_is_read(inputs: Path) -> None:
    found = read_inputs(config(inputs), read_data)
    assert found.data.label_names is None and found.prompt is None


def test_a_classification_head_is_refused_before_the_model_is_loaded(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fibecfed.build.build_task", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r'model\.head = "full" needs examples with classes, .*; use data with a column of labels'):
        prepare(config(inputs), read_data=read_data)


def test_the_tables_of_check_count_examples_where_there_are_no_classes() -> None:
    data = texts(3, 5, validation_per_client=1, test_per_client=2)
    prepared: Any = SimpleNamespace(inputs=SimpleNamespace(data=data))
    parts, clients = data_section(prepared)[1], clients_table(prepared)
    assert list(parts.columns[1].cells) == list(map(Text, ("15", "3", "6")))
    assert "by class" not in [str(column.header) for column in parts.columns]
    assert [str(column.header) for column in clients.columns] == ["client", "train", "validation", "test"]
    assert [[str(cell) for cell in column.cells] for column in clients.columns] == [["0", "1", "2"], ["5"] * 3, ["1"] * 3, ["2"] * 3]
