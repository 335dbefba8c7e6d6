"""Presets: what they fill in, what they leave, what they say, and that they are nothing but the keys that they stand for."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from made import federation, made_data, made_method, made_task, same

from fibecfed.config import flat, from_table, load, to_toml
from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.local.options import CurriculumOptions, LayerOptions, NeuronOptions
from fibecfed.local.selection import trained_blocks
from fibecfed.methods.options import FibecFedOptions
from fibecfed.methods.presets import DEPTH, DEPTH_KEYS, PRESETS, in_force

DATA = {"data": {"path": "a.csv"}}


def config(method: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Dotted key -> value of a configuration with this table [method]."""
    return flat(from_table({**DATA, **more, "method": method}))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_in_its_keys_and_nothing_else(name: str):
    with_it, without = config({"preset": name}), config({})
    assert {key: with_it[key] for key in PRESETS[name]} == PRESETS[name]
    others = with_it.keys() - PRESETS[name].keys() - {"method.preset", *DEPTH_KEYS}
    assert {key: with_it[key] for key in others} == {key: without[key] for key in others}


@pytest.mark.parametrize(
    ("made", "pairs", "found"),
    [
        ([], ["method.layers.rule=share"], ("shared", False)),
        ([], ["data.validation_fraction=0"], ("agreement", False)),
        ([], ["seed=3"], ("agreement", "validated")),
        (["method.layers.rule=share"], ["method.layers.rule=agreement"], ("agreement", "validated")),
        (["method.layers.rule=share"], ["method.layers.rule=agreement", "method.head=shared"], ("shared", "validated")),
        (["method.layers.rule=share"], ["method.kind=lora-finetune"], ("shared", True)),
        (["method.layers.rule=share"], ["method.kind=fedsa-lora"], ("personal", False)),
        (["method.finetune=true"], ["method.layers.rule=share"], ("shared", True)),
    ],
)
def test_defaults_that_a_run_wrote_out_follow_what_is_changed(made: list[str], pairs: list[str], found: Any, tmp_path: Path):
    file = tmp_path / "file.toml"
    file.write_text('[data]\ntask = "sst2"\n')
    file.write_text(to_toml(load(file, made).config))
    loaded = load(file, pairs)
    head, last = (loaded.config.method.model_dump()[name] for name in ("head", "finetune"))
    assert (head, last) == found
    changed = [note for note in loaded.notes if "dropped from the file's settings" in note]
    assert bool(changed) == (pairs != ["seed=3"])


@pytest.mark.parametrize(
    ("pair", "depth", "rule"),
    [
        ("seed=3", 0.83, "last"),
        ("method.layers.rule=share", None, "fisher"),
        ("method.preset=paper", None, "fisher"),
        ("method.preset=fast", 0.5, "last"),
        ("method.kind=lora", None, "fisher"),
        ("model.layers_to_transform=[1,2]", None, "fisher"),
        ("method.depth=1.0", 1.0, "last"),
    ],
)
def test_how_many_blocks_a_run_wrote_out_follows_what_is_changed(pair: str, depth: float | None, rule: str, tmp_path: Path):
    file = tmp_path / "file.toml"
    file.write_text('[data]\ntask = "sst2"\n')
    file.write_text(to_toml(load(file).config))
    values = flat(load(file, [pair]).config)
    assert (values["method.depth"], values["method.depth_rule"]) == (depth, rule)


def test_best_is_the_default():
    assert config({"preset": "best"}) == {**config({}), "method.preset": "best"}
    assert FibecFedOptions.model_validate({"preset": "best"}) == FibecFedOptions(preset="best")
    assert FibecFedOptions().model_dump() == {**FibecFedOptions(preset="best").model_dump(), "preset": None}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_every_key_in_which_it_differs_from_the_defaults(name: str):
    """So that its name takes the place of whatever a run has written out, whichever preset that run was of."""
    with_it, without = config({"preset": name}), config({})
    assert {key for key in with_it if with_it[key] != without.get(key)} <= PRESETS[name].keys() | {"method.preset", *DEPTH_KEYS}
    assert {"method.finetune", "method.head", "method.curriculum.pace", "method.layers.rule", "method.neurons.rule"} <= PRESETS[name].keys()


def test_the_options_of_other_methods_and_of_python_keep_their_defaults():
    assert (CurriculumOptions().pace, LayerOptions().rule, NeuronOptions().rule) == ("linear", "share", "share")
    assert config({"kind": "lora"})["method.finetune"] is False and config({"kind": "lora"})["method.head"] == "shared"


@pytest.mark.parametrize(
    ("method", "more", "finetune", "head"),
    [
        ({}, {}, "validated", "agreement"),
        ({}, {"data": {"path": "a.csv", "validation_fraction": 0.0}}, False, "agreement"),
        ({"finetune": True}, {"data": {"path": "a.csv", "validation_fraction": 0.0}}, True, "agreement"),
        ({"layers": {"rule": "share"}}, {}, False, "shared"),
        ({"layers": {"rule": "last", "value": 2}, "finetune": "validated", "head": "personal"}, {}, "validated", "personal"),
        ({"layers": {"rule": "agreement"}}, {}, "validated", "agreement"),
        (
            {},
            {
                "model": {"head": "label-words"},
                "data": {"path": "a.csv", "labels": ["a", "b"], "template": "{x} <mask>", "label_words": ["c", "d"]},
            },
            "validated",
            "shared",
        ),
    ],
)
def test_two_defaults_follow_from_other_keys(method: dict[str, Any], more: dict[str, Any], finetune: Any, head: str):
    values = config(method, **more)
    assert (values["method.finetune"], values["method.head"]) == (finetune, head)


@pytest.mark.parametrize(
    ("method", "model", "depth", "rule"),
    [
        ({}, {}, 0.83, "last"),
        ({"preset": "best"}, {}, 0.83, "last"),
        ({"preset": "fast"}, {}, 0.5, "last"),
        ({"preset": "paper"}, {}, None, "fisher"),
        ({"layers": {"rule": "share"}}, {}, None, "fisher"),
        ({"depth": 1.0}, {}, 1.0, "last"),
        ({"preset": "best", "depth": 0.5}, {}, 0.5, "last"),
        ({"depth": 0.5, "depth_rule": "fisher"}, {}, 0.5, "fisher"),
        ({"depth_rule": "fisher"}, {}, None, "fisher"),  # as in the folders of runs before there was this default
        ({}, {"layers_to_transform": [0]}, None, "fisher"),
        ({"kind": "lora"}, {}, None, "fisher"),
    ],
)
def test_with_the_agreement_rule_the_upper_five_sixths_of_the_blocks_are_trained(method: Any, model: Any, depth: Any, rule: str):
    values = config(method, model=model)
    assert (values["method.depth"], values["method.depth_rule"]) == (depth, rule)


@pytest.mark.parametrize(("blocks", "trained"), [(1, 1), (2, 2), (6, 5), (12, 10), (24, 20), (30, 25), (32, 27)])
def test_five_sixths_of_so_many_blocks(blocks: int, trained: int):
    assert tuple(trained_blocks(DEPTH, "last", torch.ones(blocks), Key(0))) == tuple(range(blocks - trained, blocks))


def test_what_is_trained_otherwise_without_validation_examples_is_said(tmp_path: Any):
    data, file = tmp_path / "a.csv", tmp_path / "run.toml"
    data.write_text("text,label\na,0\n")
    file.write_text(f'[data]\npath = "{data}"\nvalidation_fraction = 0.0\n')
    found = load(file)
    assert found.notes == ("method.finetune = false, since data.validation_fraction = 0 leaves nothing to choose by",)
    again = tmp_path / "config.toml"
    again.write_text(to_toml(found.config))
    assert load(again).notes == () and load(again).config == found.config


@pytest.mark.parametrize(
    ("pairs", "note"),
    [
        (["method.curriculum.beta=0.4"], 'method.curriculum.beta: no effect with method.curriculum.pace = "none"; set that to "linear"'),
        (["method.layers.importance=increment"], 'method.layers.importance: no effect with method.layers.rule = "agreement"; set that to'),
        (["method.neurons.momentum=0.5"], 'method.neurons.momentum: no effect with method.neurons.rule = "all"; set that to "share"'),
        (["method.curriculum.labels=model"], 'method.curriculum.labels: no effect with method.curriculum.pace = "none"'),
        (["method.depth=2", "method.layers.norm=3"], 'method.layers.norm: no effect with method.layers.rule = "agreement"; set that to'),
    ],
)
def test_a_key_that_has_nothing_to_do_beside_the_defaults_is_named(pairs: list[str], note: str, tmp_path: Any):
    data, file = tmp_path / "a.csv", tmp_path / "run.toml"
    data.write_text("text,label\na,0\n")
    file.write_text(f'[data]\npath = "{data}"\n')
    (said,) = load(file, pairs).notes
    assert said.startswith(note) and said.endswith('or method.preset = "paper"')
    assert load(file, ["method.preset=paper", *pairs]).notes == ()


def test_what_only_a_measured_curvature_uses_is_named(tmp_path: Any):
    data, file = tmp_path / "a.csv", tmp_path / "run.toml"
    data.write_text("text,label\na,0\n")
    file.write_text(f'[data]\npath = "{data}"\n')
    for preset in ("best", "paper"):
        (said,) = load(file, [f"method.preset={preset}", "method.layers.mu=0.5", "method.layers.spectrum_clients=2"]).notes
        assert said.startswith("method.layers.spectrum_clients, method.layers.mu: no effect with method.layers.rule = ")
        assert said.endswith('; set that to "layer_gap"')
    assert load(file, ["method.preset=paper", "method.layers.rule=plateau", "method.layers.mu=0.5"]).notes == ()
    assert load(file, ["method.depth=2", "method.layers.importance_clients=3"]).notes == ()


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (
            {"layers": {"value": 3.0}},
            r'got 3\.0, but `method\.layers\.rule` = "agreement" finds the number itself; set that to "share" or "count"',
        ),
        ({"layers": {"importance_round": "first"}}, r'`method\.layers\.rule` = "agreement" measures no importance; set that to "share"'),
        ({"neurons": {"value": 0.5}}, r'`method\.neurons\.rule` = "all" needs none; set that to "share"'),
        ({"neurons": {"every": 2}}, r'`method\.neurons\.rule` = "all" measures nothing; set that to "share"'),
    ],
)
def test_a_key_of_the_published_method_beside_the_defaults_is_rejected_with_what_to_set(method: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence):
        config(method)


def test_a_key_that_is_set_is_left():
    values = config({"preset": "fast", "depth": 0.75, "curriculum": {"pace": "step"}}, resources={"activation_cache_mb": 7})
    assert (values["method.depth"], values["method.curriculum.pace"], values["resources.activation_cache_mb"]) == (0.75, "step", 7)
    assert values["method.layers.value"] == 0.67


def test_a_resolved_configuration_reads_back_equal():
    found = from_table({**DATA, "method": {"preset": "best", "neurons": {"rule": "random"}}})
    assert from_table(tomllib.loads(to_toml(found))) == found


def test_options_without_a_whole_configuration_have_it_too():
    assert FibecFedOptions.model_validate({"preset": "best"}).layers.rule == "agreement"
    assert FibecFedOptions.model_validate({"preset": "best", "layers": {"rule": "all"}}).layers.rule == "all"


@pytest.mark.parametrize(
    ("method", "data", "sentence"),
    [
        ({"preset": "bst"}, {}, r'method\.preset: got "bst", expected one of "paper", "fast", "best"; did you mean "best"\?'),
        ({"preset": 3}, {}, r"method\.preset: got 3, expected one of"),
        ({"kind": "lora", "preset": "best"}, {}, r'method\.preset: got a key of fibecfed, which method\.kind = "lora" does not have'),
        (
            {"preset": "best", "layers": {"rule": "share"}},
            {},
            r'method\.head: got "agreement" with `method\.layers\.rule` = "share".*\(method\.head = "agreement" by method\.preset',
        ),
        ({"preset": "best"}, {"validation_fraction": 0.0}, r'nothing to choose by.*\(method\.finetune = "validated" by method\.preset'),
        ({"preset": "best", "layers": 3}, {}, r"method\.layers: got 3, expected a table"),
    ],
)
def test_what_does_not_go_with_it_is_rejected_in_a_sentence(method: dict[str, Any], data: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=sentence) as caught:
        from_table({"data": {**DATA["data"], **data}, "method": method})
    assert str(caught.value).startswith("the configuration has a mistake:")


def test_a_pair_for_it_takes_the_place_of_the_files_keys(tmp_path: Any):
    file, data = tmp_path / "run.toml", tmp_path / "a.csv"
    data.write_text("text,label\na,0\n")
    file.write_text(f'[data]\npath = "{data}"\n[method]\nhead = "personal"\nscore_after = 1\n[method.layers]\nrule = "share"\n')
    found = load(file, ["method.preset=best", "method.neurons.rule=random"])
    method = found.config.method
    assert (method.head, method.layers.rule, method.score_after, method.neurons.rule) == ("agreement", "agreement", 1, "random")  # type: ignore[attr-defined]
    dropped, unused = found.notes
    assert dropped == "method.preset=best sets method.head, method.layers.rule: dropped from the file's settings"
    assert unused.startswith("method.score_after: no effect with")


@pytest.mark.parametrize("old", ["best", "fast", "paper", ""])
@pytest.mark.parametrize(
    "new", ["method.preset=best", "method.preset=paper", "method.kind=lora", "method.kind=lora-finetune", "method.kind=fedsa-lora"]
)
def test_what_a_run_has_written_out_of_its_preset_does_not_outlive_it(old: str, new: str, tmp_path: Any):
    """config.toml of a run has the name and the keys; with another kind it is what a run suggests to compare with."""
    data, plain, resolved = tmp_path / "a.csv", tmp_path / "plain.toml", tmp_path / "config.toml"
    data.write_text("text,label\na,0\n")
    plain.write_text(f'[data]\npath = "{data}"\n')
    resolved.write_text(to_toml(load(plain, [f"method.preset={old}", "method.layers.mu=0.25"]).config))
    got, expected = load(resolved, [new]).config, load(plain, [new]).config
    if "kind" not in new:  # a key of the user's own stays
        expected = load(plain, [new, "method.layers.mu=0.25"]).config
    assert got == expected


def test_records_name_it_with_its_values_and_those_beside_it():
    said = in_force(config({"preset": "best", "neurons": {"rule": "random"}}))
    assert said is not None and said["name"] == "best" and said["beside"] == {"method.neurons.rule": "random"}
    assert said["values"] == {name: value for name, value in PRESETS["best"].items() if name != "method.neurons.rule"}
    assert in_force(config({})) is None


def test_a_run_with_it_has_the_bits_of_its_keys():
    data, task = made_data(), made_task(2)
    nested = {"finetune": "validated", "head": "agreement", "layers": {"rule": "agreement"}}
    nested |= {"curriculum": {"pace": "none"}, "neurons": {"rule": "all"}}
    ends = []
    for options in ({"preset": "best"}, nested):
        world = federation(made_method("fibecfed", **options), task, data)
        world.finish()
        ends.append(world.server.params)
    assert same(*ends)


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize("clients", [1, 2])
def test_one_client_and_two_can_be_trained_with_it(preset: str, clients: int):
    """With one nothing is known of how far clients agree, and everything stays shared."""
    data, task = made_data(clients, 12), made_task(2)
    world = federation(made_method("fibecfed", clients=clients, rounds=3, preset=preset), task, data, per_round=clients)
    world.finish()
    assert all(value.isfinite().all() for value in world.server.params.values())
    if clients == 1 and preset == "best":
        assert not world.method.summary(world.server)["left_after_round"]
