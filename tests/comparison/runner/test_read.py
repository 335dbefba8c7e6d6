"""A comparison's file, what is laid over it, and every mistake as a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.plan import has_answers
from fibecfed.comparison.runner.read import differences, is_comparison, load, read_back, to_toml
from fibecfed.comparison.runner.tuning import grid, read_tuning
from fibecfed.config import load as load_run
from fibecfed.core.errors import UserError
from fibecfed.methods.catalogue import COMPARED, METHODS
from fibecfed.tracking.sinks import SINKS, Sink

CONFIGS = Path(__file__).parents[3] / "configs"
FOUND = Path(__file__).parents[3] / "benchmarks/results/compare-one-sided"


def test_lists_and_keys_are_laid_over_the_file(compared: Callable[..., ComparisonOptions]) -> None:
    found = compared("methods=lora,local", "seeds=0,1,2", "base.federation.rounds=7", "tuning.trials=3", "resources.workers=2")
    assert (found.methods, found.seeds, found.base["federation"]["rounds"]) == (("lora", "local"), (0, 1, 2), 7)
    assert (found.tuning.trials, found.resources.workers, found.tasks) == (3, 2, ("reviews",))
    assert compared("seeds=5").seeds == (5,) and compared('methods=["lora"]').methods == ("lora",)


def test_all_means_fibecfed_the_seventeen_three_more_that_share_lora_and_the_ten_tasks(compared: Callable[..., ComparisonOptions]) -> None:
    found = compared("methods=all", "tasks=all")
    assert found.methods == tuple(name for name in COMPARED if name in METHODS) and len(COMPARED) == 21
    assert len(found.tasks) == 10 and {"sst2", "boolq"} <= set(found.tasks)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (["methods=fibecfed,lra"], 'methods: got "lra", which is unknown; did you mean "lora"'),
        (["tasks=reviews,trc"], 'tasks: got "trc", which is unknown; did you mean "trec"'),
        (["tuning.trials=3", "tuning.tasks=nothing"], "tuning.tasks"),
        (["method.lra.training.batch_size=3"], 'method: got "lra", which is unknown; did you mean "lora"'),
        (["task.trc.data.max_length=9"], 'task: got "trc", which is unknown; did you mean "trec"'),
        (["metods=lora"], "metods: got an unknown key; did you mean `methods`"),
        (["tuning.trails=3"], "did you mean `tuning.trials`"),
        (["seeds=a"], r'seeds: got \["a"\], expected a list of integers, each at least 0'),
        (["seeds=0,-1"], r"seeds: got \[0, -1\], expected a list of integers, each at least 0 and below 9223372036854775808"),
        (["seeds=9223372036854775808"], r"seeds: got \[9223372036854775808\], expected a list"),
        (["tuning.seed=9223372036854775808"], "tuning.seed: got 9223372036854775808, expected an integer, at least 0 and below"),
        (["seeds=0,0"], r"seeds: got \[0, 0\], expected at least one, each once"),
        (["methods=[]"], "methods: got .*at least one"),
        (["methods="], r"methods: got \[\], expected at least one, each once"),
        (
            [f"tasks={'t' * 200}", f"task.{'t' * 200}.data.path=compare.toml"],
            r'tasks: got a name of 200 bytes, "t{40}"\.\.\., expected at most 140',
        ),
        (["methods=fibecfed,lora,"], r'methods: got the name "", expected one that a folder can have'),
        (["methods=qqq"], 'methods: got "qqq", which is unknown, expected one of fibecfed, lora, .*; see `fibecfed list methods`'),
        (["tasks=qqq"], 'tasks: got "qqq", which is unknown, expected one of .*sst2.*, reviews; see `fibecfed list tasks`'),
        (["base.federation.rouds=3"], r"mistake:\n  base\.federation\.rouds: .* key; did you mean `base\.federation\.rounds`\?$"),
        (["task.reviews.training.batch_size=x"], r"mistake:\n  task\.reviews\.training\.batch_size: got \"x\", expected an integer"),
        (["method.lora.method.finetne=true"], "  method.lora.method.finetne: .* did you mean `method.lora.method.finetune`"),
        (
            ["task.reviews.federation.clients=1"],
            r"in the run of \w+ on reviews: base\.federation\.clients_per_round: got 2, expected at most",
        ),
        (["base.data.root=/nowhere"], r'mistake:\n  base\.data\.root: got "/nowhere" \(nothing there\), expected a folder'),
        (["task.reviews.data.path=no.csv"], r'mistake:\n  task\.reviews\.data\.path: got "no\.csv" \(nothing there\), expected a file'),
        (["method.lora.data.root=/nowhere"], r'mistake:\n  method\.lora\.data\.root: got "/nowhere"'),
        (["base.seed=3"], "base.seed: the comparison sets it.* write `seeds`"),
        (["base.method.kind=lora"], r"base.method: .*write \[method.<name>\]"),
        (["base.data.task=sst2"], "base.data.task: .*write `tasks`"),
        (
            ["base.privacy.secure_aggregation=true", "base.federation.max_samples=9"],
            "base.privacy.secure_aggregation: got true without scores that could be compared",
        ),
        (
            ["base.privacy.unit=client", "base.privacy.epsilon=8", "base.federation.on_failure=drop"],
            'base.privacy.unit: got "client" without scores that could be compared',
        ),
        (
            ["base.privacy.unit=client", "base.privacy.epsilon=8", "base.federation.on_failure=drop", "tuning.trials=3"],
            'base.privacy.unit: got "client" with `tuning.trials` = 3, whose runs would choose a rate',
        ),
        (
            ["base.resources.devices=cuda:0"],
            "base.resources.devices: a comparison makes each run on one device; .* set `resources.devices`",
        ),
        (["resources.devices=cuda:0,cuda:0"], "resources.devices: got .*, expected GPUs, each once"),
        (["resources.devices=cpu"], "resources.devices: got .*, expected GPUs, each once"),
        (["resources.devices=cuda:0", "base.training.device=cpu"], "base.training.device: got .* with `resources.devices`"),
        (["tuning.trials=4"], "tuning.trials: got 4, expected an odd number.* set 5"),
        (["tuning.trials=3", "base.training.learning_rate=0.1"], "base.training.learning_rate: fixes the rate"),
        (["tuning.trials=3", "task.reviews.training.learning_rate=0.1"], "task.reviews.training.learning_rate: got 0.1, expected none"),
        (["tuning.trials=3", "base.data.validation_fraction=0"], "needs validation examples"),
        (
            ["task.reviews.evaluation.metric=loss"],
            r'task\.reviews\.evaluation\.metric: got "loss", but a comparison has one metric, accuracy here',
        ),
        (["base.evaluation.metric=loss", "method.lora.evaluation.metric=macro_f1"], r"method\.lora\.evaluation\.metric: .*, loss here"),
        (["task.reviews=3"], "task.reviews: got 3, expected a table"),
        (["methods.lora=3"], "methods.lora: got a key inside of methods, which is not a table"),
        (["rounds"], "expected key=value"),
    ],
)
def test_mistakes_are_sentences(pairs: list[str], expected: str, compared: Callable[..., ComparisonOptions]) -> None:
    with pytest.raises(UserError, match=expected):
        compared(*pairs)


def test_all_mistakes_are_told_at_once(compared: Callable[..., ComparisonOptions]) -> None:
    with pytest.raises(UserError, match=r"has 2 mistakes.*\n.*lra.*\n.*trc"):
        compared("methods=lra", "tasks=trc")


def test_a_file_is_a_comparison_by_tables_and_lists_that_a_run_does_not_have(inputs: Path, tmp_path: Path) -> None:
    for path in CONFIGS.glob("*.toml"):
        assert is_comparison(path) == path.name.startswith("compare-"), path
    assert is_comparison(inputs / "compare.toml")
    for text, expected in (("tasks = [1]", True), ("[base.data]\nx = 1", True), ("", False), ("seeds = [1]\n[data]\nx = 1", False)):
        (tmp_path / "c.toml").write_text(text)
        assert is_comparison(tmp_path / "c.toml") == expected, text


def test_a_runs_file_is_told_from_a_comparisons_in_one_line(inputs: Path) -> None:
    with pytest.raises(UserError, match=r"^\S+sst2\.toml: got the file of a single run, .*; run it with: fibecfed run \S+sst2\.toml$"):
        load(CONFIGS / "sst2.toml", ["methods=lora"])
    with pytest.raises(UserError, match=r"^\S+: got the file of a comparison, .*; run it with: fibecfed compare \S+compare\.toml$"):
        load_run(inputs / "compare.toml")


def test_what_is_written_into_the_folder_reads_back_equal(compared: Callable[..., ComparisonOptions], tmp_path: Path) -> None:
    written = compared("seeds=0,1", "method.lora.training.learning_rate=0.1", "tuning.trials=3")
    (tmp_path / "c.toml").write_text(to_toml(written))
    assert read_back(tmp_path / "c.toml") == written
    for text, reason in (("methods = 3\n", "methods: Input"), ("", "methods: Field required"), ('methods = ["lo', "not valid TOML: ")):
        (tmp_path / "c.toml").write_text(text)
        with pytest.raises(UserError, match=rf"c\.toml: not what .* wrote \({reason}.*; restore the file, or remove it: then the config"):
            read_back(tmp_path / "c.toml")


def test_more_methods_tasks_seeds_or_workers_make_no_other_comparison(compared: Callable[..., ComparisonOptions]) -> None:
    old = compared()
    assert differences(old, compared('base.tracking=["tensorboard"]', "method.lora.tracking_by_client=true")) == []
    assert differences(old, compared("methods=local", "seeds=4", "resources.workers=7", "method.local.training.batch_size=9")) == []
    changed = ("base.federation.rounds=9", "tuning.factor=2.0", "task.reviews.data.max_train=9", "method.lora.method.finetune=true")
    assert differences(old, compared(*changed)) == [
        "base.federation.rounds",
        "method.lora.method.finetune",
        "task.reviews.data.max_train",
        "tuning.factor",
    ]


def test_a_tracker_that_is_not_installed_is_said_before_any_run(
    compared: Callable[..., ComparisonOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SINKS, "trackio", Sink("to_trackio", ("no_such_package",), "trackio"))
    with pytest.raises(UserError, match="not installed here; install it: pip install trackio"):
        compared('method.lora.tracking=["trackio"]')
    with pytest.raises(UserError, match='did you mean "tensorboard"'):
        compared('base.tracking=["tensorbord"]')


def test_a_list_of_texts_is_given_without_quotes_as_for_a_run(compared: Callable[..., ComparisonOptions]) -> None:
    found = compared("base.tracking=tensorboard", "task.reviews.data.labels=no, yes")
    assert found.base["tracking"] == ["tensorboard"] and found.task["reviews"]["data"]["labels"] == ["no", "yes"]


def test_another_table_of_a_task_that_rates_are_tuned_on_makes_another_comparison(compared: Callable[..., ComparisonOptions]) -> None:
    def on_sst2(trials: int, examples: int) -> ComparisonOptions:
        return compared(f"tuning.trials={trials}", 'tuning.tasks=["sst2"]', f"task.sst2.data.max_train={examples}")

    assert differences(on_sst2(3, 80), on_sst2(3, 90)) == ["task.sst2.data.max_train"]
    assert differences(on_sst2(0, 80), on_sst2(0, 90)) == []


@pytest.mark.parametrize("name", [path.name for path in sorted(CONFIGS.glob("compare-*.toml"))])
def test_the_projects_own_comparisons_hold(name: str) -> None:
    found = load(CONFIGS / name)
    if has_answers(found, found.tasks[0]):
        assert {found.kind(method) for method in found.methods} == {"fibecfed", "lora", "lora-finetune", "local"}
    else:
        assert set(found.methods) - {"fibecfed-fast", "fibecfed-paper", "fibecfed-decay", "lora-decay"} == set(COMPARED) - (
            {"fedprox", "fedadam"} if "one-sided" in name else set()
        )


def test_the_rates_found_for_the_quick_comparison_can_be_gone_on_with() -> None:
    quick = load(CONFIGS / "compare-one-sided.toml")
    held = read_back(FOUND / "comparison.toml")
    assert differences(held, quick) == [] and {path.name for path in FOUND.iterdir()} == {"comparison.toml", "tuning.json"}
    assert "data" not in held.base or "root" not in held.base["data"]
    tuned = read_tuning(FOUND)
    assert set(tuned) == set(quick.methods)
    for row in tuned.values():
        assert {one.step for one in row.tried} >= set(grid(quick.tuning)) and row.rates
