"""What does not go together in a configuration, as a sentence each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fibecfed.config import Config, from_table, keys, load
from fibecfed.core.errors import UserError
from fibecfed.methods.catalogue import CATALOGUE, METHODS

WITH_WORDS: dict[str, Any] = {"model": {"head": "label-words"}}


def config(**data: Any) -> Config:
    return from_table({"data": {"task": "sst2"}, **data})


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"data": {"task": "sst3"}}, "data.task: got 'sst3', expected one of sst2, .*did you mean 'sst2'"),
        ({"data": {"task": "sst2", "path": "x.csv"}}, "set exactly one of `data.task` and `data.path`"),
        ({"data": {"task": "sst2", "text_column": "t"}}, "has a mistake:\\n  data.text_column: .* has its own columns"),
        ({"data": {"task": "sst2", "test_fraction": 0.3}}, "has a mistake:\\n  data.test_fraction: got 0.3 with `data.task`"),
        ({"data": {"path": "x", "pair_column": "text"}}, "data.pair_column: got 'text', which is `data.text_column` already"),
        ({"data": {"path": "x", "labels": ["a", "a"]}}, "data.labels: .* at least two classes, each once"),
        (
            {"data": {"path": "x", "client_column": "c"}, "federation": {"partition": "dirichlet"}},
            "data.client_column: got 'c' with `federation.partition` = \"dirichlet\"",
        ),
        ({"federation": {"partition": "column"}}, "federation.partition: got \"column\" without `data.client_column`"),
        ({"federation": {"clients": 3, "clients_per_round": 5}}, "federation.clients_per_round: got 5, expected at most"),
        ({"data": {"path": "x", "revision": "v1"}}, "data.revision: got 'v1' without `data.task`"),
        ({"data": {"task": "sst2", "skip_empty": True}}, "data.skip_empty: got True with `data.task`"),
        ({"federation": {"quorum": 0.5}}, 'federation.quorum: got 0.5 with `federation.on_failure` = "stop"'),
        ({"federation": {"round_attempts": 2}}, 'federation.round_attempts: got 2 with `federation.on_failure` = "stop"'),
        ({"federation": {"exclude_after": 3}}, 'federation.exclude_after: got 3 with `federation.on_failure` = "stop"'),
        (
            {"federation": {"over_selection": 2.0}},
            'federation.over_selection: got 2.0 with `federation.schedule` = "synchronous"; set .* = "over-select"',
        ),
        ({"federation": {"buffer_size": 2, "schedule": "over-select"}}, 'federation.buffer_size: got 2 with .*; set .* = "buffered"'),
        (
            {"federation": {"buffer_size": 6, "clients_per_round": 4, "schedule": "buffered"}},
            "federation.buffer_size: got 6, expected at most 4",
        ),
        (
            {"federation": {"quorum": 0.5, "on_failure": "drop", "schedule": "buffered"}},
            'federation.quorum: got 0.5 with `federation.schedule` = "buffered"',
        ),
        (
            {"federation": {"speeds": {"factors": [1.0, 2.0], "slow_share": 0.5}}},
            "federation.speeds.factors: got factors beside `federation.speeds.slow_share`",
        ),
        ({"federation": {"links": {"slow_share": 0.5}}}, "federation.links: got factors of bandwidths and no bandwidth"),
        ({"federation": {"speeds": {"factors": [1.0, 0.0]}}}, r"speeds.factors: got .* expected a list of numbers, each above 0"),
        ({"federation": {"schedule": "buffered"}, "method": {"layers": {"importance_round": "first"}}}, "importance_round: got \"first\""),
        ({"federation": {"rounds": 3}, "method": {"score_after": 3}}, "method.score_after: got 3, expected less than"),
        ({"training": {"momentum": 0.9}}, "training.momentum: got 0.9 with `training.optimizer` = \"adamw\""),
        (
            {"training": {"class_weights": "balance"}},
            'training.class_weights: got "balance", expected a list of numbers, or "balanced"; did you mean "balanced"',
        ),
        ({"training": {"weight_decay": math.inf}}, "training.weight_decay: got inf, expected a finite number"),
        ({"training": {"learning_rate": math.nan}}, "training.learning_rate: got nan, expected a number, above 0"),
        ({"method": {"layers": {"rule": "share", "value": 3}}}, "method.layers.value: got 3, expected a fraction"),
        ({"method": {"layers": {"rule": "all", "value": 3}}}, "method.layers.value: got 3, but .* finds the number itself"),
        ({"method": {"layers": {"rule": "last", "value": math.inf}}}, "method.layers.value: got inf, expected a finite number"),
        ({"method": {"layers": {"rule": "agreement", "value": 3}}}, "method.layers.value: got 3, but .* finds the number itself"),
        ({"method": {"layers": {"rule": "share", "pull": 0.5}}}, "method.layers.pull: got 0.5 without `method.layers.mean_every`"),
        ({"method": {"aggregation": "exact", "layers": {"mean_every": 3}}}, 'method.aggregation: got "exact" with a mean of the layers'),
        ({"method": {"aggregation": "exact", "preset": "best"}}, 'method.aggregation: got "exact" with a mean of the layers'),
        ({"method": {"layers": {"rule": "all", "mean_every": 3}}}, "method.layers.mean_every: got 3 with .* nothing stays with a client"),
        (
            {"federation": {"rounds": 3}, "method": {"layers": {"rule": "agreement", "after": 3}}},
            "method.layers.after: got 3, expected less than `federation.rounds` = 3",
        ),
        ({"method": {"finetune": "valid"}}, 'method.finetune: got "valid", expected true or false or "validated"; did you mean'),
        (
            {"data": {"validation_fraction": 0.0}, "method": {"kind": "lora", "finetune": "validated"}},
            'method.finetune: got "validated" with `data.validation_fraction` = 0',
        ),
        (
            {"method": {"head": "agreement", "layers": {"rule": "share"}}},
            'method.head: got "agreement" with `method.layers.rule` = "share"; set both',
        ),
        (
            {"method": {"layers": {"rule": "agreement", "importance_round": "first"}}},
            'method.layers.importance_round: got "first", but `method.layers.rule` = "agreement" measures no importance',
        ),
        (
            {"method": {"layers": {"rule": "last", "importance_round": "first"}}},
            'method.layers.importance_round: got "first", but `method.layers.rule` = "last" measures no importance',
        ),
        (
            {"method": {"layers": {"first_layers": "last"}}},
            'method.layers.first_layers: got "last" with `method.layers.importance_round` = "separate"',
        ),
        ({"method": {"neurons": {"rule": "all", "value": 0.5}}}, "method.neurons.value: .* needs none"),
        ({"method": {"neurons": {"rule": "random", "every": 2}}}, "method.neurons.every: got 2, but .* measures nothing"),
        (
            {"method": {"curriculum": {"scoring": "training", "labels": "model"}}},
            'method.curriculum.labels: got "model" with `method.curriculum.scoring` = "training"',
        ),
        (
            {"method": {"curriculum": {"scoring": "training", "rescore_every": 3}}},
            'method.curriculum.rescore_every: got 3 with `method.curriculum.scoring` = "training"',
        ),
        ({"method": {"kind": "lroa"}}, 'method.kind: got "lroa", expected one of .*did you mean "lora"'),
        ({"method": {"kind": 3}}, "method.kind: got 3, expected one of"),
        ({"method": "lora"}, 'method: got "lora", expected a table'),
        ({"method": {"kind": "lora", "layers": {}}}, "method.layers: got a table of fibecfed.* which method.kind = \"lora\" does not have"),
        ({"data": {"task": "sst2", "template": "{x} <mask>"}}, "data.template: got .* with `model.head` = \"full\"; set"),
        ({"data": {"task": "sst2", "label_words": ["a", "b"]}}, "data.label_words: got .* with `model.head` = \"full\"; set"),
        ({**WITH_WORDS, "data": {"path": "x"}}, "data.template: got none .* such as \"{x} . It was <mask> .\""),
        ({**WITH_WORDS, "data": {"path": "x", "pair_column": "b"}}, "data.template: got none .* such as \"{a} \\? <mask> , {b}\""),
        ({**WITH_WORDS, "data": {"path": "x"}}, "data.label_words: got none .* one word for each class"),
        ({**WITH_WORDS, "data": {"task": "rte", "template": "{x} <mask>"}}, "data.template: got .* expected <mask>, {a}, {b}, each once"),
        ({**WITH_WORDS, "data": {"task": "trec", "label_words": ["a", "b"]}}, "data.label_words: got 2, expected 6, one for each of"),
        ({**WITH_WORDS, "data": {"task": "sst2", "label_words": ["a", "a"]}}, "data.label_words: .* a different word for each class"),
        ({**WITH_WORDS, "data": {"task": "sst2", "label_words": ["a", " b"]}}, "data.label_words: .* without spaces around it"),
        ({"model": {"target_modules": []}}, "model.target_modules: got \\[\\], expected at least one name"),
        ({"model": {"rank": 99999999999}}, "model.rank: got 99999999999, expected an integer, at least 1 and at most 4096"),
        ({"resources": {"threads": 99999999999}}, "resources.threads: got 99999999999, expected an integer, .* at most 1024"),
        ({"method": {"kind": "lora", "server": {"tau": 0.1}}}, r'method\.server\.tau: got 0\.1 with `method\.aggregation` = "mean"'),
        ({"training": {"class_weights": [1.0, -2.0]}}, r"training\.class_weights: got \[1\.0, -2\.0\], expected a positive number for"),
        ({"training": {"class_weights": False}}, r"training\.class_weights: got false, expected a list of numbers, or \"balanced\""),
        ({"training": {"optimizer": "adamw", "momentum": 0.5}}, r"training\.momentum: got 0\.5 with `training\.optimizer` = .adamw."),
        ({"training": {"optimizer": "lbfgs"}}, r"training\.optimizer: got .lbfgs., expected"),
        ({"method": {"kind": "fedavgm", "aggregation": "mean"}}, r"method\.aggregation"),
        ({"method": {"gal_fracton": 0.3}}, r"method\.gal_fracton: got an unknown key, expected one of method\.kind, method\.finetune"),
        ({"method": {"rul": "all"}}, "method.rul: got an unknown key; did you mean `method.layers.rule`"),
        ({"method": {"rank": 3}}, "method.rank: got an unknown key; did you mean `model.rank`"),
        ({"model": {"Rank": 3}}, "model.Rank: got an unknown key; did you mean `model.rank`"),
        ({"model": {"zzz": 3}}, "model.zzz: got an unknown key, expected one of model.name, "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tables: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config(**tables)


@pytest.mark.parametrize("kind", list(METHODS))
def test_without_a_learning_rate_a_run_has_that_of_its_method(kind: str) -> None:
    found = from_table({"data": {"task": "sst2"}, "method": {"kind": kind}})
    assert found.training.learning_rate == CATALOGUE[kind].learning_rate
    assert {key.name: key.default for key in keys(kind)}["training.learning_rate"] == CATALOGUE[kind].learning_rate


def test_another_method_on_the_command_line_brings_its_rate_unless_one_was_chosen(tmp_path: Path) -> None:
    for rate, own in ((0.002, 3e-4), (0.005, 0.005)):  # the first is what every method that trains LoRA has: a file may write it out
        path = tmp_path / "a.toml"
        path.write_text(f'data.task = "sst2"\ntraining.learning_rate = {rate}\n', encoding="utf-8")
        assert load(path, ["method.kind=adapter"]).config.training.learning_rate == own
        assert load(path, ["method.kind=lora"]).config.training.learning_rate == rate
        assert load(path, ["method.kind=adapter", "training.learning_rate=0.002"]).config.training.learning_rate == 0.002
