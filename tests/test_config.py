"""Files, key=value pairs and tables become one checked configuration, or a list of every mistake in them."""

from __future__ import annotations

import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fibecfed.adapters.options import PromptAdapter
from fibecfed.comparison.runner.read import is_comparison
from fibecfed.config import Config, config_hash, differences, flat, from_table, keys, load, own_data_toml, to_toml
from fibecfed.config.rules import contradictions
from fibecfed.core.errors import UserError
from fibecfed.core.options import Options
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import METHODS

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> Path:
    path = Path("a.toml")
    path.write_text(text, encoding="utf-8")
    return path


def config(**data: Any) -> Config:
    return from_table({"data": {"task": "sst2"}, **data})


def mistakes(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(write(text), overrides)
    return str(caught.value)


# ---- what is read


def test_a_file_gives_its_values_and_the_defaults_for_the_rest() -> None:
    loaded = load(write('seed = 3\n[data]\ntask = "mr"\n[model]\nalpha = 8\ntarget_modules = ["query"]\n[method]\nkind = "lora"\n'))
    assert loaded.notes == ()
    found = flat(loaded.config)
    assert (found["seed"], found["data.task"], found["model.alpha"], found["model.target_modules"]) == (3, "mr", 8.0, ("query",))
    assert found["method.kind"] == "lora" and found["training.weight_decay"] == 0.01
    assert flat(config())["method.kind"] == "fibecfed"


def test_infinity_is_a_norm() -> None:
    assert load(write('[data]\ntask = "mr"\n'), ["method.layers.norm=inf"]).config == config(
        data={"task": "mr"}, method={"layers": {"norm": math.inf}}
    )


def test_pairs_lie_over_the_file_and_are_read_as_toml_else_as_text() -> None:
    pairs = [
        "federation.rounds=7",
        "training.optimizer=sgd",
        "training.momentum=5e-1",
        'model.target_modules=["a","b"]',
        "federation.rounds=8",
    ]
    found = flat(load(write('[data]\ntask = "mr"\n[federation]\nrounds = 3\n'), pairs).config)
    assert (found["federation.rounds"], found["training.optimizer"], found["training.momentum"]) == (8, "sgd", 0.5)
    assert found["model.target_modules"] == ("a", "b")


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
@settings(max_examples=50, deadline=None)
def test_a_key_of_type_text_takes_what_is_written(text: str) -> None:
    Path("d.csv").touch()
    found = load(
        write('[data]\npath = "d.csv"\nlabel_column = "the label of the row"\n'), [f"data.text_column={text}", "model.revision=true"]
    )
    assert (found.config.data.text_column, found.config.model.revision) == (text, "true")


def test_nothing_behind_the_equals_sign_takes_a_key_out_of_the_file() -> None:
    Path("d.csv").touch()
    file = '[data]\npath = "d.csv"\ntest_path = "none.csv"\nlabels = ["a", "b"]\n[federation]\nrounds = 7\n[method]\nkind = "lora"\n'
    taken = load(write(file), ["data.test_path=", "data.labels=", "federation.rounds=", "method.kind=", "model.revision="]).config
    assert (taken.data.test_path, taken.data.labels, taken.federation.rounds) == (None, None, 40)
    assert taken.method.model_dump()["kind"] == "fibecfed" and taken.model.revision is None
    assert "data.test_pth: got an unknown key" in mistakes(file, "data.test_pth=")


def test_what_follows_from_other_keys_is_set_unless_it_is_given() -> None:
    few = config(federation={"clients": 3}).federation
    assert (few.cohort_size(3), few.cohort_size(9)) == (3, 5)
    assert config(federation={"clients_per_round": 4}).federation.cohort_size(9) == 4
    assert from_table({"data": {"path": "x", "client_column": "who"}}).federation.partition == "column"


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "nothing"])
def test_what_is_no_file_is_called_what_it_is(kind: str) -> None:
    path = {"folder": "f", "pipe": "p", "device": "/dev/null", "nothing": "n"}[kind]
    if kind == "folder":
        Path(path).mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    said = mistakes(f'[data]\npath = "{path}"\n')
    assert {"folder": "(a folder)", "nothing": "(nothing there)"}.get(kind, f"(a {kind}, which can be read only once") in said


def test_trackers_are_a_list_of_known_names_and_one_word_on_a_command_line() -> None:
    file = '[data]\ntask = "mr"\n'
    assert load(write(file)).config.tracking == ()
    for pair in ("tracking=tensorboard, wandb", 'tracking=["tensorboard", "wandb"]'):
        found = load(write(file), [pair]).config
        assert found.tracking == ("tensorboard", "wandb") and load(write(to_toml(found))).config == found
    assert load(write(f'tracking = ["mlflow"]\n{file}'), ["tracking="]).config.tracking == ()
    said = mistakes(f'tracking = ["tensorbord", "trackio"]\n{file}')
    assert 'tracking: got "tensorbord", expected names among tensorboard, mlflow, trackio, wandb; did you mean "tensorboard"?' in said
    assert "expected each name once" in mistakes(file, "tracking=wandb,wandb")
    assert "tracking: got 3, expected a list" in mistakes(file, "tracking=3")
    assert load(write('[data]\npath = "a.toml"\n'), ["data.labels=bad,good"]).config.data.labels == ("bad", "good")


def test_in_the_file_for_own_data_a_column_of_clients_is_all_that_has_to_be_set() -> None:
    table = tomllib.loads(own_data_toml())
    table["data"]["client_column"] = "site"
    assert from_table(table).federation.partition == "column"


def test_numbers_and_truth_values_stay_text_where_text_is_expected() -> None:
    Path("d.csv").touch()
    found = load(
        write('[data]\npath = "d.csv"\n'), ["data.text_column=5", "model.revision=1e3", "data.pair_column=false", "model.name= 7 "]
    ).config
    assert (found.data.text_column, found.model.revision, found.data.pair_column, found.model.name) == ("5", "1e3", "false", " 7 ")


def test_another_method_drops_the_keys_it_does_not_have_and_says_which() -> None:
    file = '[data]\ntask = "mr"\n[method]\nkind = "fibecfed"\nscore_after = 2\n[method.curriculum]\nbeta = 0.4\n'
    loaded = load(write(file), ["method.kind=lora", "method.finetune=true"])
    assert loaded.config == config(data={"task": "mr"}, method={"kind": "lora", "finetune": True})
    (note,) = loaded.notes
    assert "method.score_after" in note and "method.curriculum.beta" in note
    assert load(write(file), ["method.kind=fibecfed", "method.curriculum.pace=linear"]).notes == ()
    # a misspelling is no key of the old method, and is not dropped in silence
    assert "method.curriculum" in mistakes(file.replace("beta", "beat"), "method.kind=lora")
    # what the command line itself asks for is never dropped
    assert "method.curriculum" in mistakes(file, "method.kind=lora", "method.curriculum.beta=0.5")


def test_paths_are_taken_from_the_current_folder(tmp_path: Path) -> None:
    Path("sub").mkdir()
    Path("d.csv").touch()
    Path("model").mkdir()
    Path("minilm").mkdir()
    file = Path("sub/a.toml")
    file.write_text('[data]\npath = "d.csv"\n')
    found = load(file, ["model.name=model"]).config
    assert (found.data.path, found.model.name) == (str(tmp_path / "d.csv"), str(tmp_path / "model"))
    assert load(file).config.model.name == "minilm"
    assert load(file, ["model.name=org/model"]).config.model.name == "org/model"


# ---- what is written


@pytest.mark.parametrize("kind", METHODS)
def test_the_resolved_text_holds_every_key_and_reads_back_as_the_same_configuration(kind: str) -> None:
    tables: dict[str, Any] = {"seed": 5, "method": {"kind": kind}, "model": {"name": 'a "b"\n\\ é 😀 \x7f', "target_modules": ["q", "v"]}}
    for before in (config(**tables), config(**tables, training={"learning_rate": 1e-5})):
        text = to_toml(before)
        assert from_table(tomllib.loads(text)) == before
        assert to_toml(from_table(tomllib.loads(text))) == text
        for key in keys(kind):
            assert key.name.rpartition(".")[2] in text and key.description


def test_the_resolved_text_of_an_infinite_norm_reads_back() -> None:
    before = config(method={"layers": {"norm": math.inf}})
    assert from_table(tomllib.loads(to_toml(before))) == before


def test_hash_and_differences_see_values_alone() -> None:
    a, b = config(model={"alpha": 16}), config(model={"alpha": 16.0})
    assert config_hash(a) == config_hash(b) and differences(a, b) == []
    c = config(method={"kind": "lora"}, seed=1)
    assert config_hash(a) != config_hash(c)
    assert "seed" in differences(a, c) and "method.layers.rule" in differences(a, c) and "model.rank" not in differences(a, c)


def test_the_configuration_for_own_data_holds_defaults_and_needs_the_data_alone() -> None:
    table = tomllib.loads(own_data_toml())
    assert "data.path" in mistakes(own_data_toml())
    Path("my-data.csv").touch()
    found = load(write(own_data_toml())).config
    assert found.model_copy(update={"data": config().data}) == config()
    assert table["data"] == {"path": "my-data.csv", "text_column": "text", "label_column": "label", "test_fraction": 0.2}


def test_the_configuration_for_own_answers_needs_the_data_alone_and_deals_them_out_evenly() -> None:
    text = own_data_toml("instruction")
    assert "data.path" in mistakes(text)
    Path("my-chats.jsonl").touch()
    found = load(write(text)).config
    assert (found.data.kind, found.federation.partition, found.model.name) == ("instruction", "iid", "smollm2-135m")


@pytest.mark.parametrize(("kind", "file"), [("classification", "my-data.csv"), ("instruction", "my-chats.jsonl")])
def test_the_short_file_has_eight_keys_and_stands_for_the_same_run(kind: str, file: str) -> None:
    few, every = own_data_toml(kind, few=True), own_data_toml(kind)
    names = re.findall(r"(?m)^(?:# )?(\w+) =", few)
    assert len(names) == 8 and set(names) <= set(re.findall(r"(?m)^(?:# )?(\w+) =", every))
    Path(file).touch()
    assert load(write(few)).config == load(write(every)).config
    assert "fibecfed init --all" in few and "init --all" not in every


OF_RUNS = [path for path in sorted(CONFIGS.glob("*.toml")) if not is_comparison(path)]  # of comparisons: comparison/runner/test_read.py


@pytest.mark.parametrize("path", OF_RUNS, ids=lambda path: path.stem)
def test_every_file_in_configs_is_right(path: Path) -> None:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    from_table(table)


# ---- mistakes


def test_every_mistake_is_told_in_one_go_with_what_to_do() -> None:
    text = mistakes(
        """
        seed = "a"
        [data]
        tsk = "sst2"
        labels = ["a", 3]
        test_fraction = 2
        max_test = 2020-01-01
        [trainning]
        [training]
        optimizer = "adamm"
        learning_rate = true
        device = "gpu"
        [federation]
        clients = 3
        clients_per_round = 5
        round = 5
        [method.layers]
        rule = "count"
        value = 1.5
        """,
        "nonsense",
        "resources.threads=0",
        "method.curriculum=easy",
        "learning_rate=1",
    )
    sentences = (
        'seed: got "a", expected an integer, at least 0',
        "data.tsk: got an unknown key; did you mean `data.task`?",
        'data.labels: got ["a", 3], expected a list of strings',
        "data.test_fraction: got 2, expected a number, above 0 and below 1",
        "data.max_test: got 2020-01-01 (a date)",
        "trainning: got an unknown table; did you mean `training`?",
        'training.optimizer: got "adamm", expected one of "adadelta", "adagrad", "adam", ',
        "training.learning_rate: got true, expected a number, above 0",
        "training.device: got 'gpu', expected",
        "federation.round: got an unknown key; did you mean `federation.rounds`?",
        "federation.clients_per_round: got 5, expected at most `federation.clients` = 3",
        "method.layers.value: got 1.5, expected an integer number of layers",
        "'nonsense': expected key=value",
        "resources.threads: got 0, expected an integer, at least 1",
        "method.curriculum: got a value for a table",
        "learning_rate: got an unknown key; did you mean `training.learning_rate`?",
    )
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert text.splitlines()[0] == f"a.toml has {len(sentences)} mistakes:"


def test_one_mistake_is_told_once() -> None:
    assert mistakes('[data]\ntask = "sst2"\n[federation]\nclients = "3"\nclients_per_round = 60\n').startswith(
        "a.toml has a mistake:\n  federation.clients: "
    )
    assert mistakes("[data]\ntask = 5\n").startswith("a.toml has a mistake:\n  data.task: ")
    assert "data: set exactly one of" in mistakes("")
    assert mistakes('data = "sst2"').startswith('a.toml has a mistake:\n  data: got "sst2", expected a table')


WITH_WORDS: dict[str, Any] = {"model": {"head": "label-words"}}


def test_a_task_brings_its_template_and_words_and_own_data_give_theirs() -> None:
    assert config(**WITH_WORDS).data.template is None
    mine = {"path": "x.csv", "template": "{x} <mask>", "label_words": ["up", "down"]}
    assert config(**WITH_WORDS, data=mine).data.label_words == ("up", "down")


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_label_words_are_refused_to_a_method_whose_adapter_is_trained_with_a_head() -> None:
    class OwnAdapter(Options):
        kind: str = "prompts"
        adapter: PromptAdapter = PromptAdapter()

    (sentence,) = contradictions(config(**WITH_WORDS).model_copy(update={"method": OwnAdapter()}))
    assert sentence.startswith('model.head: got "label-words" with `method.kind` = "prompts"')


def test_a_configuration_made_in_python_is_checked_too() -> None:
    right = config()
    with pytest.raises(ValidationError, match=r"expected at most `federation\.clients`"):
        Config(data=right.data, federation=right.federation.model_copy(update={"clients": 3, "clients_per_round": 5}))
    assert Config(data=right.data) == right


def test_a_configuration_made_in_python_has_the_rate_of_its_method() -> None:
    data = config().data
    for kind in METHODS:
        made = Config(data=data, method=METHODS[kind](), training=TrainingOptions(batch_size=4))
        read = from_table({"data": data.model_dump(), "method": {"kind": kind}, "training": {"batch_size": 4}})
        assert made.training == read.training, kind
    assert Config(data=data, training=TrainingOptions(learning_rate=0.5)).training.learning_rate == 0.5
