"""Prices by shape are those of the models of that shape."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fibecfed.comparison.runner import price as pricing
from fibecfed.comparison.runner.options import ComparisonOptions
from fibecfed.comparison.runner.price import price, price_comparison
from fibecfed.comparison.runner.read import load
from fibecfed.comparison.runner.sizes import Sizes
from fibecfed.core.errors import UserError
from fibecfed.models.shapes import config_of, shape_of
from fibecfed.rehearsal import peak_memory

PAPER = load(Path(__file__).parents[3] / "configs" / "compare-paper.toml", ["methods=lora"])


@pytest.mark.parametrize(
    ("name", "millions", "layers", "hidden"), [("FacebookAI/roberta-large", 354, 24, 1024), ("huggyllama/llama-7b", 6607, 32, 4096)]
)
def test_published_models_have_their_published_sizes(name: str, millions: int, layers: int, hidden: int) -> None:
    shape = shape_of(config_of(name, PAPER.architecture[name]))
    assert (round(shape.values / 1e6), shape.layers, shape.hidden) == (millions, layers, hidden)
    assert shape.block_values < shape.values


def test_a_price_is_the_sum_over_tasks_and_seeds(compared: Callable[..., ComparisonOptions]) -> None:
    few, many = (compared("resources.teraflops=1", f"seeds={seeds}") for seeds in ("0", "0,1,2"))
    one, three = (price(each, "lora", pricing._model(each, each.base["model"]["name"]), Sizes(each, True)) for each in (few, many))
    assert (three.steps, three.bytes) == (3 * one.steps, 3 * one.bytes)
    assert one.bytes == pytest.approx(2 * 2 * (one.bytes_down + one.bytes_up), abs=100)  # 2 clients in 2 rounds


def test_the_papers_comparison_is_priced_for_both_models_without_their_weights() -> None:
    console = Console(file=io.StringIO(), width=200)
    price_comparison(PAPER.model_copy(update={"tasks": ("sst2",)}), console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    # LoRA of rank 8 on query and value, a dense head and its last map: 24 x 2 x 16 x 1024 + 1024 x 1024 + 1024 + 2 x 1024 + 2
    assert "FacebookAI/roberta-large: roberta, 24 layers" in text and "1,838,082" in text
    assert "huggyllama/llama-7b: llama, 32 layers" in text and f"{32 * 2 * 16 * 4096 + 2 * 4096:,}" in text
    assert "adapter and head" in text and "trained values" not in text  # of which a method may train a part
    assert "weights 13.2 GB in bf16" in text and "before them 6 to 8 trials of rates" in text
    assert text.rstrip().endswith("Nothing was trained or written.")


def test_on_a_narrow_terminal_nothing_is_cut(compared: Callable[..., ComparisonOptions]) -> None:
    console = Console(file=io.StringIO(), width=72)
    price_comparison(compared("methods=lora", "resources.teraflops=1"), console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "10^15" in text and "…" not in text
    assert "beside what Python and torch take" in " ".join(text.split())


def test_what_cannot_be_priced_says_why(compared: Callable[..., ComparisonOptions]) -> None:
    with pytest.raises(UserError, match=r'architecture\."x": .*expected `model_type`'):
        config_of("x", {"hidden_size": 3})
    nowhere = compared("base.model.name=nobody/nothing")
    with pytest.raises(UserError, match=r'write its shapes into \[architecture\."nobody/nothing"\]'):
        price_comparison(nowhere, Console(file=io.StringIO()))


def test_a_model_of_any_family_is_priced(compared: Callable[..., ComparisonOptions]) -> None:
    console = Console(file=io.StringIO(), width=200)
    price_comparison(compared("methods=lora").model_copy(update={"architecture": {"x": {"model_type": "mpnet"}}}), console)
    # rank 4 on query and value of 12 layers of width 768, a dense head and its last map
    values = 12 * 2 * 4 * 2 * 768 + 768 * 768 + 768 + 2 * 768 + 2
    assert f"{values:,}" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_reason_that_ends_with_a_full_stop_gets_no_second_one(
    compared: Callable[..., ComparisonOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(source: object) -> object:
        raise UserError("no connection and no cached files.")

    monkeypatch.setattr(pricing, "load_config", offline)
    with pytest.raises(UserError, match=r"cached files\. To price it without its files"):
        price_comparison(compared("methods=lora"), Console(file=io.StringIO()))


def test_one_run_is_one_run_and_its_memory_is_measured(compared: Callable[..., ComparisonOptions]) -> None:
    file = io.StringIO()
    price_comparison(compared("methods=lora"), Console(file=file, width=200))
    assert "M values; 1 run\n" in file.getvalue()
    found = re.search(r"memory: about ([\d.]+) (MB|GB) in (each|its) process, the most that measuring took here", file.getvalue())
    assert found is not None
    said = float(found[1]) * {"MB": 1e6, "GB": 1e9}[found[2]]
    assert said == pytest.approx(peak_memory(), rel=0.1) and said > 1e8


@pytest.mark.parametrize(
    ("metric", "task", "reason"),
    [
        ("f1", "trec", "f1 is of two classes; .*macro_f1"),
        ("f1:negativ", "sst2", "expected a class of the data after the colon: .*negative"),
    ],
)
def test_a_metric_that_the_classes_of_a_task_cannot_give_is_rejected(metric: str, task: str, reason: str) -> None:
    """The paper's model has no tokenizer here: the task's classes are known without its data."""
    one = PAPER.model_copy(update={"tasks": (task,), "base": {**PAPER.base, "evaluation": {**PAPER.base["evaluation"], "metric": metric}}})
    with pytest.raises(UserError, match=rf"in the runs on {task}: evaluation\.metric: .*{reason}"):
        price_comparison(one, Console(file=io.StringIO()))


def test_a_metric_of_data_that_are_read_is_checked_by_their_classes(compared: Callable[..., ComparisonOptions]) -> None:
    names = Sizes(one := compared("methods=lora"), True)
    name = names.classes("reviews", names.inputs("reviews", "lora"))[0]
    price_comparison(compared("methods=lora", f"base.evaluation.metric=f1:{name}"), Console(file=io.StringIO()))
    with pytest.raises(UserError, match=r"in the runs on reviews: evaluation\.metric: got 'f1:none', expected a class of the data"):
        price_comparison(compared("methods=lora", "base.evaluation.metric=f1:none"), Console(file=io.StringIO()))
    unknown = Sizes(one, False)
    assert unknown.classes("reviews", unknown.inputs("reviews", "lora")) == ()
